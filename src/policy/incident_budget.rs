//! The budget of incidents opened by rules in 24 hours.
//!
//! All rules share `incidents_per_day`. Each rule has a [`MAX_RESERVE_PER_RULE`] that the others
//! cannot use, so that a rule that fires all day does not block the others. A firing that is
//! critical, or worse than any capture of the rule that day, is exempt (see `rules`) but counted.

use std::cmp::Reverse;
use std::time::Duration;

use crate::base::{EventTime, IncidentId, Moment, TimeAnchor};
use crate::config::BudgetSettings;
pub(crate) use crate::policy::saved_state::SavedState;
use crate::policy::saved_state::{OpenedIncident, to_event_time, to_wall_time};
use crate::rules::Admission;

pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Incidents per day reserved for each rule. The reserve is reduced if the reserves would exceed
/// two thirds of `incidents_per_day` in total.
const MAX_RESERVE_PER_RULE: usize = 2;

/// Returns the reserve of each of `rules` rules.
fn reserve_per_rule(incidents_per_day: usize, rule_count: usize) -> usize {
    let equal_share = incidents_per_day.saturating_mul(2) / 3 / rule_count.max(1);
    MAX_RESERVE_PER_RULE.min(equal_share)
}

/// Incidents opened by rules in the last 24 hours, oldest first.
#[derive(Debug, Default)]
pub(crate) struct IncidentBudget {
    entries: Vec<BudgetEntry>,
}

#[derive(Debug, PartialEq, Eq)]
struct BudgetEntry {
    at: EventTime,
    rule: String,
    /// `None` if an earlier process opened it.
    id: Option<IncidentId>,
}

impl IncidentBudget {
    /// Adds the incidents saved by an earlier process.
    pub(crate) fn restore(&mut self, anchor: TimeAnchor, state: &SavedState) {
        let saved = state.incidents.iter().map(|OpenedIncident { at, rule }| BudgetEntry {
            at: to_event_time(anchor, *at),
            rule: rule.clone(),
            id: None,
        });
        self.entries.extend(saved);
        self.entries.sort_by_key(|entry| Reverse(entry.at.age(anchor.moment)));
    }

    /// Counts the incident `id`, which `rule` opened.
    pub(crate) fn consume(&mut self, now: Moment, rule: &str, id: IncidentId) {
        self.entries.retain(|entry| entry.at.age(now) < DAY);
        self.entries.push(BudgetEntry { at: now.into(), rule: rule.to_owned(), id: Some(id) });
    }

    /// Removes the incident `id`, which could not be opened.
    pub(crate) fn refund(&mut self, id: IncidentId) {
        self.entries.retain(|entry| entry.id != Some(id));
    }

    /// Returns the admission of a new incident of `rule` at `now`, given that the other rules in
    /// `rules` have reserves.
    pub(crate) fn admission<'r>(
        &self,
        now: Moment,
        settings: &BudgetSettings,
        rule: &str,
        rules: impl Iterator<Item = &'r str> + Clone,
    ) -> Admission {
        let used = self.used_count(now);
        let reserve = reserve_per_rule(settings.incidents_per_day, rules.clone().count());
        let unused_reserve =
            |other: &str| reserve.saturating_sub(self.used_count_of_rule(now, other));
        let reserved_for_others =
            rules.filter(|other| *other != rule).map(unused_reserve).sum::<usize>();
        let max_allowed = settings.incidents_per_day.saturating_sub(reserved_for_others);
        if used >= max_allowed {
            let freeing_entry = self.entries_in_last_day(now).nth(used - max_allowed);
            return Admission::DailyBudgetSpent {
                until: freeing_entry.map_or(now + DAY, |entry| entry.at.time_at_age(DAY)),
            };
        }
        self.admission_by_min_gap(now, settings)
    }

    /// Returns the admission of a new incident of any rule at `now`.
    pub(crate) fn admission_for_any_rule(
        &self,
        now: Moment,
        settings: &BudgetSettings,
    ) -> Admission {
        self.admission(now, settings, "", std::iter::empty())
    }

    fn admission_by_min_gap(&self, now: Moment, settings: &BudgetSettings) -> Admission {
        match self.entries.last().map(|entry| entry.at.time_at_age(settings.min_between_incidents))
        {
            Some(until) if now < until => Admission::TooSoon { until },
            _ => Admission::Allowed,
        }
    }

    /// Returns the number of incidents that rules opened in the 24 hours before `now`.
    pub(crate) fn used_count(&self, now: Moment) -> usize {
        self.entries_in_last_day(now).count()
    }

    fn used_count_of_rule(&self, now: Moment, rule: &str) -> usize {
        self.entries_in_last_day(now).filter(|entry| entry.rule == rule).count()
    }

    fn entries_in_last_day(&self, now: Moment) -> impl Iterator<Item = &BudgetEntry> {
        self.entries.iter().filter(move |entry| entry.at.age(now) < DAY)
    }

    /// Returns the incidents to save.
    pub(crate) fn saved_incidents(&self, anchor: TimeAnchor) -> Vec<OpenedIncident> {
        let entries = self.entries_in_last_day(anchor.moment);
        entries
            .map(|entry| OpenedIncident {
                at: to_wall_time(anchor, entry.at),
                rule: entry.rule.clone(),
            })
            .collect()
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

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

    /// Returns the admission of a new incident of the only rule.
    fn admission(budget: &IncidentBudget, now: Moment, settings: &BudgetSettings) -> Admission {
        budget.admission(now, settings, "memory", ["memory"].into_iter())
    }

    #[test]
    fn enforces_min_gap_and_incidents_per_day() {
        let mut budget = IncidentBudget::default();
        let day = 24 * 60 * 60;
        for start in [0, 60, 200] {
            assert_eq!(admission(&budget, at(start), &settings()), Admission::Allowed, "{start}");
            budget.consume(at(start), "memory", id());
            if start == 0 {
                let until = at(60);
                assert_eq!(admission(&budget, at(59), &settings()), Admission::TooSoon { until });
            }
        }
        for now in [260, day - 1] {
            let spent = Admission::DailyBudgetSpent { until: at(day) };
            assert_eq!(admission(&budget, at(now), &settings()), spent, "{now}");
        }
        assert_eq!(admission(&budget, at(day), &settings()), Admission::Allowed);
        assert_eq!(budget.used_count(at(day)), 2);
        let tighter = BudgetSettings { incidents_per_day: 1, ..settings() };
        let spent = Admission::DailyBudgetSpent { until: at(day + 200) };
        assert_eq!(admission(&budget, at(day), &tighter), spent, "as the settings say now");
    }

    #[test]
    fn rule_cannot_use_reserve_of_other_rules() {
        let rules = ["cpu", "lag", "tasks", "memory"];
        let settings = BudgetSettings {
            incidents_per_day: 12,
            min_between_incidents: Duration::ZERO,
            ..BudgetSettings::default()
        };
        let mut budget = IncidentBudget::default();
        let mut spend = |rule: &str| {
            let mut spent = 0;
            while budget.admission(at(0), &settings, rule, rules.into_iter()) == Admission::Allowed
            {
                budget.consume(at(0), rule, id());
                spent += 1;
            }
            spent
        };
        let spent = ["cpu", "lag", "cpu", "tasks", "memory", "memory"].map(&mut spend);
        assert_eq!(spent, [6, 2, 0, 2, 2, 0]);
        assert_eq!(budget.used_count(at(0)), 12);
    }

    #[test]
    fn default_rules_have_a_reserve() {
        let rules = crate::config::default_rules().len();
        assert_eq!(reserve_per_rule(24, rules), 1, "{rules} rules");
        for (incidents, rules, expected) in [(24, 4, 2), (24, 8, 2), (24, 16, 1), (24, 17, 0)] {
            assert_eq!(reserve_per_rule(incidents, rules), expected, "{incidents} {rules}");
        }
    }

    #[test]
    fn no_reserve_with_more_rules_than_incidents() {
        let names: Vec<String> = (0..30).map(|n| format!("rule-{n}")).collect();
        let rules = || names.iter().map(String::as_str);
        let mut budget = IncidentBudget::default();
        let settings =
            BudgetSettings { min_between_incidents: Duration::ZERO, ..BudgetSettings::default() };
        for _ in 0..settings.incidents_per_day {
            assert_eq!(budget.admission(at(0), &settings, "rule-0", rules()), Admission::Allowed);
            budget.consume(at(0), "rule-0", id());
        }
        let spent = budget.admission(at(0), &settings, "rule-1", rules());
        assert_eq!(spent, Admission::DailyBudgetSpent { until: at(24 * 60 * 60) });
    }

    #[test]
    fn refunded_incident_does_not_count() {
        let mut budget = IncidentBudget::default();
        let ids = [id(), id()];
        ids.iter().for_each(|id| budget.consume(at(0), "memory", *id));
        budget.refund(ids[0]);
        assert_eq!(budget.used_count(at(1)), 1);
    }
}
