//! The part of the budgets persisted in `state.json`, so that a service in a crash loop stays
//! within them.
//!
//! The file contains wall times. [`SavedState::rebase`] converts them to the current wall clock
//! before they are used: `new = now - (age at the save + time since the save)`. Within one boot of
//! the machine the time since the save does not depend on the wall clock. A clock that was set
//! forward or back, before the start or while the process ran, therefore enlarges no budget and
//! blocks none for years.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::{SignedDuration, Timestamp};
use serde::{Deserialize, Serialize};

use crate::base::{ClockReading, Elapsed, EventTime, Moment, TimeAnchor};
use crate::model::{Metric, Rule};
use crate::rules::{FireKind, FireRecord, LastFire};

/// Maximum downtime assumed between two boots. Only the wall clock is available then, and one that
/// is hours ahead (a hardware clock in local time) must not renew the budgets.
const MAX_DOWNTIME: Duration = Duration::from_secs(60 * 60);

/// Contents of `state.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(try_from = "AnyState")]
pub(crate) struct SavedState {
    /// Schema version.
    pub(crate) schema: u32,
    /// Clock readings at the time of the save.
    pub(crate) clock: Option<ClockReading>,
    /// Incidents opened by rules in the last 24 hours, oldest first.
    pub(crate) incidents: Vec<OpenedIncident>,
    /// Captures by rule name.
    pub(crate) rules: BTreeMap<String, RuleState>,
    /// On-demand captures of the last 24 hours.
    pub(crate) on_demand_captures: Vec<SavedQuarterHour>,
}

/// An incident opened by a rule.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct OpenedIncident {
    pub(crate) at: Timestamp,
    /// Name of the rule; empty if the file's schema does not have it.
    pub(crate) rule: String,
}

/// The captures of one rule.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct RuleState {
    /// Metric that the values belong to, or `None` if the file has an older schema.
    pub(crate) metric: Option<Metric>,
    /// End of the last capture.
    pub(crate) captured: Timestamp,
    /// Incidents of the rule in the last 24 hours, oldest first.
    pub(crate) fires: Vec<SavedFire>,
}

/// One incident of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(crate) struct SavedFire {
    at: Timestamp,
    /// Worst value the rule fired on, in the metric's unit.
    value: f64,
    /// Headroom below the limit at that time.
    headroom: Option<f64>,
    /// Shortest forecast the rule fired on, in seconds.
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

impl SavedState {
    /// Schema version written by this version of marple.
    pub(crate) const SCHEMA: u32 = 2;

    /// Converts every time to the current wall clock. The module documentation describes the
    /// method.
    pub(crate) fn rebase(mut self, now: &ClockReading) -> Self {
        let latest = self.timestamps_mut().map(|at| *at).max();
        let Some(saved) = self.clock.clone().or(latest.map(ClockReading::from_wall)) else {
            return self;
        };
        let elapsed = match now.elapsed_since(&saved) {
            Elapsed::Exact(elapsed) => elapsed,
            Elapsed::WallClock(elapsed) => elapsed.min(MAX_DOWNTIME),
        };
        for at in self.timestamps_mut() {
            // A time later than the save was in the future even then; its age is 0.
            let age = Duration::try_from(saved.wall.duration_since(*at)).unwrap_or_default();
            let age = SignedDuration::try_from(age + elapsed).unwrap_or(SignedDuration::MAX);
            *at = now.wall.checked_sub(age).unwrap_or(Timestamp::MIN);
        }
        self.clock = Some(now.clone());
        self
    }

    fn timestamps_mut(&mut self) -> impl Iterator<Item = &mut Timestamp> {
        let incidents = self.incidents.iter_mut().map(|incident| &mut incident.at);
        let rules = self.rules.values_mut().flat_map(|rule| {
            [&mut rule.captured].into_iter().chain(rule.fires.iter_mut().map(|fire| &mut fire.at))
        });
        incidents
            .chain(rules)
            .chain(self.on_demand_captures.iter_mut().map(SavedQuarterHour::time_mut))
    }
}

impl RuleState {
    pub(crate) fn new(
        rule: &Rule,
        anchor: TimeAnchor,
        captured: EventTime,
        records: &[FireRecord],
    ) -> Self {
        let fire = |record: &FireRecord| SavedFire {
            at: to_wall_time(anchor, record.at),
            value: record.worst_fire.value,
            headroom: record.worst_fire.headroom,
            forecast: record.forecast.map(|remaining| remaining.as_secs_f64()),
            kind: match record.kind {
                FireKind::Worse => SavedKind::Worse,
                FireKind::Critical => SavedKind::Critical,
                FireKind::Repeat => SavedKind::Repeat,
            },
        };
        Self {
            metric: Some(rule.metric.clone()),
            captured: to_wall_time(anchor, captured),
            fires: records.iter().map(fire).collect(),
        }
    }

    /// Returns the end of the last capture and the incidents.
    pub(crate) fn restore(&self, anchor: TimeAnchor) -> (EventTime, Vec<FireRecord>) {
        let fire = |fire: &SavedFire| FireRecord {
            at: to_event_time(anchor, fire.at),
            worst_fire: LastFire { value: fire.value, headroom: fire.headroom },
            forecast: fire.forecast.and_then(|seconds| Duration::try_from_secs_f64(seconds).ok()),
            kind: match fire.kind {
                SavedKind::Worse => FireKind::Worse,
                SavedKind::Critical => FireKind::Critical,
                SavedKind::Repeat => FireKind::Repeat,
            },
        };
        (to_event_time(anchor, self.captured), self.fires.iter().map(fire).collect())
    }
}

/// Returns the wall time of `event`.
pub(crate) fn to_wall_time(anchor: TimeAnchor, event: EventTime) -> Timestamp {
    let age = SignedDuration::try_from(event.age(anchor.moment)).unwrap_or(SignedDuration::MAX);
    anchor.wall.checked_sub(age).unwrap_or(Timestamp::MIN)
}

/// Returns the event time of wall time `at`, or the present if `at` is in the future.
pub(crate) fn to_event_time(anchor: TimeAnchor, at: Timestamp) -> EventTime {
    let age = Duration::try_from(anchor.wall.duration_since(at)).unwrap_or_default();
    EventTime::ago(anchor.moment, age)
}

/// Returns the monotonic time of wall time `at`, or 0 if `at` precedes the clock's origin.
pub(crate) fn to_moment(anchor: TimeAnchor, at: Timestamp) -> Moment {
    let age = Duration::try_from(anchor.wall.duration_since(at)).unwrap_or_default();
    anchor.moment - age
}

/// Contents of `state.json` in any schema version.
#[derive(Deserialize)]
struct AnyState {
    schema: u32,
    #[serde(default)]
    clock: Option<ClockReading>,
    #[serde(default)]
    incidents: Vec<AnyIncident>,
    #[serde(default)]
    rules: BTreeMap<String, AnyRule>,
    #[serde(default, alias = "streams")]
    on_demand_captures: Vec<SavedQuarterHour>,
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
    /// Schema 1, which has only the last capture.
    Last {
        captured: Timestamp,
        value: f64,
        #[serde(default, alias = "room")]
        headroom: Option<f64>,
    },
}

impl TryFrom<AnyState> for SavedState {
    type Error = String;

    fn try_from(any: AnyState) -> Result<Self, String> {
        if !(1..=Self::SCHEMA).contains(&any.schema) {
            let schema = any.schema;
            let known = Self::SCHEMA;
            return Err(format!(
                "schema {schema} is not supported: this version of marple reads up to {known}"
            ));
        }
        let incident = |any| match any {
            AnyIncident::Time(at) => OpenedIncident { at, rule: String::new() },
            AnyIncident::Opened(opened) => opened,
        };
        let rule = |any| match any {
            AnyRule::Fires(rule) => rule,
            AnyRule::Last { captured, value, headroom } => RuleState {
                metric: None,
                captured,
                fires: vec![SavedFire {
                    at: captured,
                    value,
                    headroom,
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
            on_demand_captures: any.on_demand_captures,
        })
    }
}

/// A quarter hour in `state.json`.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct SavedQuarterHour {
    /// Start time.
    pub(crate) from: Timestamp,
    /// Upper bound of the number of captures.
    pub(crate) captures: u64,
}

impl SavedQuarterHour {
    /// Returns the time field, for rebasing.
    pub(crate) fn time_mut(&mut self) -> &mut Timestamp {
        &mut self.from
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOUR: Duration = Duration::from_secs(3600);

    fn anchor(hours: u64, wall: &str) -> TimeAnchor {
        TimeAnchor {
            moment: Moment::from_nanos(hours * 3_600_000_000_000),
            wall: wall.parse().unwrap(),
            suspended: Duration::ZERO,
        }
    }

    fn saved_state(anchor: TimeAnchor, at: &str) -> SavedState {
        let incidents = vec![OpenedIncident { at: at.parse().unwrap(), rule: "memory".into() }];
        let clock = Some(ClockReading::new(anchor));
        SavedState { schema: SavedState::SCHEMA, clock, incidents, ..SavedState::default() }
    }

    fn age_after_rebase(state: SavedState, now: TimeAnchor) -> Duration {
        let state = state.rebase(&ClockReading::new(now));
        to_event_time(now, state.incidents[0].at).age(now.moment)
    }

    #[test]
    fn clock_change_before_restart_does_not_change_ages() {
        let saved_at = anchor(10, "2026-11-23T12:00:00Z");
        for wall in ["2026-11-23T14:00:00Z", "2027-12-01T00:00:00Z", "1970-01-01T00:00:00Z"] {
            let state = saved_state(saved_at, "2026-11-23T11:00:00Z");
            assert_eq!(age_after_rebase(state, anchor(12, wall)), 3 * HOUR, "{wall}");
        }
    }

    #[test]
    fn clock_ahead_after_reboot_does_not_renew_budget() {
        let saved_at = anchor(10, "2026-11-23T12:00:00Z");
        for (wall, hours) in [
            ("2026-11-23T12:30:00Z", 1.5),
            ("2026-11-24T02:00:00Z", 2.0),
            ("2027-12-01T00:00:00Z", 2.0),
            ("1970-01-01T00:00:00Z", 1.0),
        ] {
            let state = saved_state(saved_at, "2026-11-23T11:00:00Z");
            assert_eq!(age_after_rebase(state, anchor(1, wall)), HOUR.mul_f64(hours), "{wall}");
        }
    }

    #[test]
    fn future_time_counts_as_time_of_the_save() {
        let saved_at = anchor(10, "2026-11-23T12:00:00Z");
        let state = saved_state(saved_at, "2031-01-01T00:00:00Z");
        assert_eq!(age_after_rebase(state, anchor(11, "2026-11-23T13:00:00Z")), HOUR);
    }

    #[test]
    fn reads_schema_version_1() {
        let text = r#"{"schema":1,"incidents":["2026-11-23T11:00:00Z"],"rules":{"memory":
            {"captured":"2026-11-23T11:00:10Z","value":81.5,"room":18.5}}}"#;
        let state: SavedState = serde_json::from_str(text).unwrap();
        assert_eq!((state.schema, state.incidents.len()), (SavedState::SCHEMA, 1));
        let now = anchor(100, "2026-11-23T11:30:10Z");
        let state = state.rebase(&ClockReading::new(now));
        let (captured, records) = state.rules["memory"].restore(now);
        assert_eq!(captured.age(now.moment), HOUR / 2);
        assert_eq!(records[0].worst_fire, LastFire { value: 81.5, headroom: Some(18.5) });
        let error = serde_json::from_str::<SavedState>(r#"{"schema":3}"#).unwrap_err().to_string();
        assert!(error.contains("schema 3 is not supported"), "{error}");
    }

    #[test]
    fn state_round_trips_through_json() {
        let now = anchor(10, "2026-11-23T12:00:00Z");
        let record = FireRecord {
            at: EventTime::ago(now.moment, 20 * HOUR),
            worst_fire: LastFire { value: 94.0, headroom: Some(6.0) },
            forecast: Some(Duration::from_secs(3)),
            kind: FireKind::Repeat,
        };
        let rule = RuleState::new(&Rule::new(Metric::Memory), now, now.moment.into(), &[record]);
        let rules = [("memory".to_owned(), rule)].into();
        let state = SavedState { rules, ..saved_state(now, "2026-11-23T11:00:00Z") };
        let text = serde_json::to_string(&state).unwrap();
        assert_eq!(serde_json::from_str::<SavedState>(&text).unwrap(), state);
        let (captured, records) = state.rules["memory"].restore(now);
        assert_eq!((captured, records), (now.moment.into(), vec![record]));
    }
}
