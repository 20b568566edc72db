//! What rules have used up of what they may, and what of it outlives the process.
//!
//! In the process all is dated by the monotonic clock, in `state.json` by the wall: each is turned into
//! the other through the anchor of the moment. What the wall says is in the future (it was turned back)
//! is taken to have been just then, so that a wrong clock never makes a budget larger.

use std::collections::BTreeMap;
use std::time::Duration;

use jiff::Timestamp;
use serde::{Deserialize, Serialize};

use super::stream::allowance::Saved;
use crate::base::{Anchor, IncidentId, Moment};
use crate::config::BudgetSettings;
use crate::rules::{Mark, Opening};

pub(super) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// What `state.json` holds.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub(super) struct State {
    /// The version of this form.
    pub(super) schema: u32,
    /// When rules opened incidents, the oldest first, no further back than a day.
    pub(super) incidents: Vec<Timestamp>,
    /// The last capture of each rule that has made one.
    pub(super) rules: BTreeMap<String, RuleState>,
    /// The captures handed over without an incident.
    #[serde(default)]
    pub(super) streams: Vec<Saved>,
}

impl State {
    /// The version of the form that this marple writes.
    pub(super) const SCHEMA: u32 = 1;
}

/// The last capture of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Serialize, Deserialize)]
pub(super) struct RuleState {
    /// When it was asked for.
    pub(super) captured: Timestamp,
    /// The value it fired on, in the metric's unit.
    pub(super) value: f64,
    /// What was left below the limit then.
    #[serde(default)]
    pub(super) room: Option<f64>,
}

impl From<RuleState> for Mark {
    fn from(state: RuleState) -> Self {
        Self { value: state.value, room: state.room }
    }
}

/// The incidents that rules opened within a day.
#[derive(Debug, Default)]
pub(super) struct Budget {
    opened: Vec<(Moment, Option<IncidentId>)>,
}

impl Budget {
    /// Adds what an earlier process has saved.
    pub(super) fn restore(&mut self, anchor: Anchor, state: &State) {
        let saved = state.incidents.iter().map(|&at| (moment_of(anchor, at), None));
        self.opened.extend(saved);
        self.opened.sort_by_key(|(at, _)| *at);
    }

    /// A rule opened the incident `id`.
    pub(super) fn spend(&mut self, now: Moment, id: IncidentId) {
        self.forget(now);
        self.opened.push((now, Some(id)));
    }

    /// The incident `id` came to nothing.
    pub(super) fn refund(&mut self, id: IncidentId) {
        self.opened.retain(|(_, opened)| *opened != Some(id));
    }

    /// Whether there may be another incident at `now`.
    pub(super) fn opening(&self, now: Moment, settings: &BudgetSettings) -> Opening {
        let within = self.opened.iter().filter(|(at, _)| now.since(*at) < DAY);
        let count = within.clone().count();
        if count >= settings.incidents_per_day {
            let spent = within.map(|(at, _)| *at).nth(count - settings.incidents_per_day);
            return Opening::Spent { until: spent.unwrap_or(now) + DAY };
        }
        match self.opened.last().map(|(at, _)| *at + settings.min_between_incidents) {
            Some(until) if now < until => Opening::Gap { until },
            _ => Opening::Free,
        }
    }

    /// How many incidents rules opened in the day before `now`.
    pub(super) fn spent(&self, now: Moment) -> usize {
        self.opened.iter().filter(|(at, _)| now.since(*at) < DAY).count()
    }

    /// When they were.
    pub(super) fn incidents(&self, anchor: Anchor) -> Vec<Timestamp> {
        self.opened.iter().map(|(at, _)| anchor.wall_at(*at)).collect()
    }

    fn forget(&mut self, now: Moment) {
        self.opened.retain(|(at, _)| now.since(*at) < DAY);
    }
}

/// When `at` was, by the monotonic clock; its zero when it was before that.
pub(super) fn moment_of(anchor: Anchor, at: Timestamp) -> Moment {
    let ago = Duration::try_from(anchor.wall.duration_since(at)).unwrap_or_default();
    anchor.moment - ago
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Moment {
        Moment::from_nanos(seconds * 1_000_000_000)
    }

    fn id() -> IncidentId {
        IncidentId::new(Timestamp::UNIX_EPOCH)
    }

    fn settings() -> BudgetSettings {
        BudgetSettings { incidents_per_day: 3, ..BudgetSettings::default() }
    }

    #[test]
    fn incidents_are_a_gap_apart_and_so_many_a_day() {
        let mut budget = Budget::default();
        let day = 24 * 60 * 60;
        for start in [0, 60, 200] {
            assert_eq!(budget.opening(at(start), &settings()), Opening::Free, "{start}");
            budget.spend(at(start), id());
            if start == 0 {
                let until = at(60);
                assert_eq!(budget.opening(at(59), &settings()), Opening::Gap { until });
            }
        }
        for now in [260, day - 1] {
            let spent = Opening::Spent { until: at(day) };
            assert_eq!(budget.opening(at(now), &settings()), spent, "{now}");
        }
        assert_eq!(budget.opening(at(day), &settings()), Opening::Free);
        assert_eq!(budget.spent(at(day)), 2);
        let tighter = BudgetSettings { incidents_per_day: 1, ..settings() };
        let spent = Opening::Spent { until: at(day + 200) };
        assert_eq!(budget.opening(at(day), &tighter), spent, "as the settings say now");
    }

    #[test]
    fn an_incident_that_came_to_nothing_costs_nothing() {
        let mut budget = Budget::default();
        let ids = [id(), id()];
        ids.iter().for_each(|id| budget.spend(at(0), *id));
        budget.refund(ids[0]);
        assert_eq!(budget.spent(at(1)), 1);
    }

    #[test]
    fn a_clock_turned_back_makes_no_budget_larger() {
        let wall: Timestamp = "2026-11-23T12:00:00Z".parse().unwrap();
        let anchor = Anchor { moment: at(1000), wall, suspended: Duration::ZERO };
        let saved = |text: &str| vec![text.parse().unwrap()];
        for (incidents, seconds) in [
            (saved("2026-11-23T11:59:00Z"), 940),
            (saved("2026-11-23T11:00:00Z"), 0),
            (saved("2026-11-24T12:00:00Z"), 1000),
        ] {
            let state = State { incidents, ..State::default() };
            let mut budget = Budget::default();
            budget.restore(anchor, &state);
            assert_eq!(budget.opened, [(at(seconds), None)]);
        }
    }
}
