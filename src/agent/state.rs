//! What the budgets keep in `state.json`, so that a service that crashes in a loop stays within them.
//!
//! Times are wall times in the file. [`State::rebase`] brings them to the present wall clock before they are
//! used: the age of everything grows by the time that passed since the file was written, which within one
//! boot of the machine does not depend on the wall clock. A clock that was set in either direction, before
//! the start or while the process ran, therefore makes no budget larger, and none is blocked for years.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use super::stream::allowance::Saved;
use crate::base::{Anchor, ClockReading, Elapsed, EventTime, Moment};
use crate::model::{Metric, Rule};
use crate::rules::{FireKind, FireRecord, Mark};

/// The most that counts as time passed between two boots: the wall clock is all there is, and one that is
/// hours ahead (a hardware clock in local time) must not make the budgets fresh.
const MAX_DOWNTIME: Duration = Duration::from_secs(60 * 60);

/// Contents of `state.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "AnyState")]
pub(super) struct State {
    /// The version of this form.
    pub(super) schema: u32,
    /// The clocks when it was written.
    pub(super) clock: Option<ClockReading>,
    /// Incidents that rules opened, the oldest first, no further back than a day.
    pub(super) incidents: Vec<OpenedIncident>,
    /// The captures of each rule.
    pub(super) rules: BTreeMap<String, RuleState>,
    /// The captures handed over without an incident.
    pub(super) streams: Vec<Saved>,
}

/// An incident that a rule opened.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(super) struct OpenedIncident {
    pub(super) at: Timestamp,
    /// The rule; empty if the file is of a version that did not save it.
    pub(super) rule: String,
}

/// The captures of one rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct RuleState {
    /// The metric, without which the values mean nothing; `None` if the file is of an older version.
    pub(super) metric: Option<Metric>,
    /// When the last capture ended.
    pub(super) captured: Timestamp,
    /// Its incidents of the last 24 hours, the oldest first.
    pub(super) fires: Vec<SavedFire>,
}

/// One incident of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct SavedFire {
    at: Timestamp,
    /// The worst value it fired on, in the metric's unit.
    value: f64,
    /// What was left below the limit then.
    room: Option<f64>,
    /// The shortest forecast it fired on, in seconds.
    forecast: Option<f64>,
    kind: SavedKind,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum SavedKind {
    Worse,
    Critical,
    Repeat,
}

impl State {
    /// The version of the form that this marple writes.
    pub(super) const SCHEMA: u32 = 2;

    /// Brings every time to the present wall clock; see the header of this module.
    pub(super) fn rebase(mut self, now: &ClockReading) -> Self {
        let latest = self.times().map(|at| *at).max();
        let Some(saved) = self.clock.clone().or(latest.map(ClockReading::of_wall)) else {
            return self;
        };
        let elapsed = match now.elapsed_since(&saved) {
            Elapsed::Exact(elapsed) => elapsed,
            Elapsed::ByWall(elapsed) => elapsed.min(MAX_DOWNTIME),
        };
        for at in self.times() {
            // What is after the save was in the future already.
            let age = Duration::try_from(saved.wall.duration_since(*at)).unwrap_or_default();
            let age = SignedDuration::try_from(age + elapsed).unwrap_or(SignedDuration::MAX);
            *at = now.wall.checked_sub(age).unwrap_or(Timestamp::MIN);
        }
        self.clock = Some(now.clone());
        self
    }

    fn times(&mut self) -> impl Iterator<Item = &mut Timestamp> {
        let incidents = self.incidents.iter_mut().map(|it| &mut it.at);
        let rules = self.rules.values_mut().flat_map(|rule| {
            [&mut rule.captured].into_iter().chain(rule.fires.iter_mut().map(|fire| &mut fire.at))
        });
        incidents.chain(rules).chain(self.streams.iter_mut().map(Saved::time_mut))
    }
}

impl RuleState {
    pub(super) fn new(
        rule: &Rule,
        anchor: Anchor,
        captured: EventTime,
        records: &[FireRecord],
    ) -> Self {
        let fire = |record: &FireRecord| SavedFire {
            at: wall_of(anchor, record.at),
            value: record.mark.value,
            room: record.mark.room,
            forecast: record.forecast.map(|left| left.as_secs_f64()),
            kind: match record.kind {
                FireKind::Worse => SavedKind::Worse,
                FireKind::Critical => SavedKind::Critical,
                FireKind::Repeat => SavedKind::Repeat,
            },
        };
        Self {
            metric: Some(rule.metric.clone()),
            captured: wall_of(anchor, captured),
            fires: records.iter().map(fire).collect(),
        }
    }

    /// The end of the last capture, and the incidents.
    pub(super) fn restore(&self, anchor: Anchor) -> (EventTime, Vec<FireRecord>) {
        let fire = |fire: &SavedFire| FireRecord {
            at: time_of(anchor, fire.at),
            mark: Mark { value: fire.value, room: fire.room },
            forecast: fire.forecast.and_then(|left| Duration::try_from_secs_f64(left).ok()),
            kind: match fire.kind {
                SavedKind::Worse => FireKind::Worse,
                SavedKind::Critical => FireKind::Critical,
                SavedKind::Repeat => FireKind::Repeat,
            },
        };
        (time_of(anchor, self.captured), self.fires.iter().map(fire).collect())
    }
}

/// The wall time of `event`.
pub(super) fn wall_of(anchor: Anchor, event: EventTime) -> Timestamp {
    let age = SignedDuration::try_from(event.age(anchor.moment)).unwrap_or(SignedDuration::MAX);
    anchor.wall.checked_sub(age).unwrap_or(Timestamp::MIN)
}

/// The time that was `at` by the wall clock of `anchor`; the present if that is in the future.
pub(super) fn time_of(anchor: Anchor, at: Timestamp) -> EventTime {
    let age = Duration::try_from(anchor.wall.duration_since(at)).unwrap_or_default();
    EventTime::ago(anchor.moment, age)
}

/// When `at` was, by the monotonic clock; its zero when it was before that.
pub(super) fn moment_of(anchor: Anchor, at: Timestamp) -> Moment {
    let ago = Duration::try_from(anchor.wall.duration_since(at)).unwrap_or_default();
    anchor.moment - ago
}

/// Contents of `state.json` as any version wrote it.
#[derive(Deserialize)]
struct AnyState {
    schema: u32,
    #[serde(default)]
    clock: Option<ClockReading>,
    #[serde(default)]
    incidents: Vec<AnyIncident>,
    #[serde(default)]
    rules: BTreeMap<String, AnyRule>,
    #[serde(default)]
    streams: Vec<Saved>,
}

#[derive(Deserialize)]
#[serde(untagged)]
enum AnyIncident {
    /// Schema 1.
    Time(Timestamp),
    Opened(OpenedIncident),
}

#[derive(Deserialize)]
#[serde(untagged)]
enum AnyRule {
    Fires(RuleState),
    /// Schema 1: the last capture only.
    Last {
        captured: Timestamp,
        value: f64,
        #[serde(default)]
        room: Option<f64>,
    },
}

impl TryFrom<AnyState> for State {
    type Error = String;

    fn try_from(any: AnyState) -> Result<Self, String> {
        if !(1..=Self::SCHEMA).contains(&any.schema) {
            let (schema, known) = (any.schema, Self::SCHEMA);
            return Err(format!(
                "schema {schema} is of a later version; this one reads up to {known}"
            ));
        }
        let incident = |any| match any {
            AnyIncident::Time(at) => OpenedIncident { at, rule: String::new() },
            AnyIncident::Opened(opened) => opened,
        };
        let rule = |any| match any {
            AnyRule::Fires(rule) => rule,
            AnyRule::Last { captured, value, room } => RuleState {
                metric: None,
                captured,
                fires: vec![SavedFire {
                    at: captured,
                    value,
                    room,
                    forecast: None,
                    kind: SavedKind::Worse,
                }],
            },
        };
        Ok(Self {
            schema: Self::SCHEMA,
            clock: any.clock,
            incidents: any.incidents.into_iter().map(incident).collect(),
            rules: any.rules.into_iter().map(|(name, any)| (name, rule(any))).collect(),
            streams: any.streams,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn anchor(hours: u64, wall: &str) -> Anchor {
        Anchor {
            moment: Moment::from_nanos(hours * 3_600_000_000_000),
            wall: wall.parse().unwrap(),
            suspended: Duration::ZERO,
        }
    }

    fn saved(anchor: Anchor, at: &str) -> State {
        let incidents = vec![OpenedIncident { at: at.parse().unwrap(), rule: "memory".into() }];
        let clock = Some(ClockReading::new(anchor));
        State { schema: State::SCHEMA, clock, incidents, ..State::default() }
    }

    fn age_after(state: State, now: Anchor) -> Duration {
        let state = state.rebase(&ClockReading::new(now));
        time_of(now, state.incidents[0].at).age(now.moment)
    }

    #[test]
    fn a_clock_set_before_a_restart_changes_no_age() {
        let then = anchor(10, "2026-11-23T12:00:00Z");
        for wall in ["2026-11-23T14:00:00Z", "2027-12-01T00:00:00Z", "1970-01-01T00:00:00Z"] {
            let state = saved(then, "2026-11-23T11:00:00Z");
            assert_eq!(age_after(state, anchor(12, wall)), 3 * HOUR, "{wall}");
        }
    }

    #[test]
    fn across_a_reboot_a_clock_that_is_ahead_makes_no_budget_fresh() {
        let then = anchor(10, "2026-11-23T12:00:00Z");
        for (wall, hours) in [
            ("2026-11-23T12:30:00Z", 1.5),
            ("2026-11-24T02:00:00Z", 2.0),
            ("2027-12-01T00:00:00Z", 2.0),
            ("1970-01-01T00:00:00Z", 1.0),
        ] {
            let state = saved(then, "2026-11-23T11:00:00Z");
            assert_eq!(age_after(state, anchor(1, wall)), HOUR.mul_f64(hours), "{wall}");
        }
    }

    #[test]
    fn what_was_in_the_future_when_it_was_saved_is_taken_for_then() {
        let then = anchor(10, "2026-11-23T12:00:00Z");
        let state = saved(then, "2031-01-01T00:00:00Z");
        assert_eq!(age_after(state, anchor(11, "2026-11-23T13:00:00Z")), HOUR);
    }

    #[test]
    fn the_first_version_of_the_file_is_read() {
        let text = r#"{"schema":1,"incidents":["2026-11-23T11:00:00Z"],"rules":{"memory":
            {"captured":"2026-11-23T11:00:10Z","value":81.5,"room":18.5}}}"#;
        let state: State = serde_json::from_str(text).unwrap();
        assert_eq!((state.schema, state.incidents.len()), (State::SCHEMA, 1));
        let now = anchor(100, "2026-11-23T11:30:10Z");
        let state = state.rebase(&ClockReading::new(now));
        let (captured, records) = state.rules["memory"].restore(now);
        assert_eq!(captured.age(now.moment), HOUR / 2);
        assert_eq!(records[0].mark, Mark { value: 81.5, room: Some(18.5) });
        let later = serde_json::from_str::<State>(r#"{"schema":3}"#).unwrap_err().to_string();
        assert!(later.contains("schema 3 is of a later version"), "{later}");
    }

    #[test]
    fn what_is_written_is_read_again() {
        let now = anchor(10, "2026-11-23T12:00:00Z");
        let record = FireRecord {
            at: EventTime::ago(now.moment, 20 * HOUR),
            mark: Mark { value: 94.0, room: Some(6.0) },
            forecast: Some(Duration::from_secs(3)),
            kind: FireKind::Repeat,
        };
        let rule = RuleState::new(&Rule::on(Metric::Memory), now, now.moment.into(), &[record]);
        let rules = [("memory".to_owned(), rule)].into();
        let state = State { rules, ..saved(now, "2026-11-23T11:00:00Z") };
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<State>(&text).unwrap(), state);
        let (captured, records) = state.rules["memory"].restore(now);
        assert_eq!((captured, records), (now.moment.into(), vec![record]));
    }
}
