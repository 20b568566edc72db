//! The budget of incidents opened by rules in 24 hours.
//!
//! All rules share `incidents_per_day`. Each rule has a [`RESERVE`] that the others cannot use, so
//! that a rule that fires all day does not block the others. A firing that is critical, or worse
//! than any capture of the rule that day, is exempt (see `rules`) but counted.

use std::cmp::Reverse;
use std::time::Duration;

use crate::base::{EventTime, IncidentId, Moment, TimeAnchor};
use crate::config::BudgetSettings;
pub(crate) use crate::policy::saved_state::SavedState;
use crate::policy::saved_state::{OpenedIncident, time_of, wall_of};
use crate::rules::Admission;

pub(crate) const DAY: Duration = Duration::from_secs(24 * 60 * 60);

/// Incidents per day reserved for each rule. The reserve is reduced if the reserves would exceed
/// two thirds of `incidents_per_day` in total.
const RESERVE: usize = 2;

/// Returns the reserve of each of `rules` rules.
fn reserve(incidents_per_day: usize, rules: usize) -> usize {
    let share = incidents_per_day.saturating_mul(2) / 3 / rules.max(1);
    RESERVE.min(share)
}

/// Incidents opened by rules in the last 24 hours, oldest first.
#[derive(Debug, Default)]
pub(crate) struct IncidentBudget {
    opened: Vec<Opened>,
}

#[derive(Debug, PartialEq, Eq)]
struct Opened {
    at: EventTime,
    rule: String,
    /// `None` if an earlier process opened it.
    id: Option<IncidentId>,
}

impl IncidentBudget {
    /// Adds the incidents saved by an earlier process.
    pub(crate) fn restore(&mut self, anchor: TimeAnchor, state: &SavedState) {
        let saved = state.incidents.iter().map(|OpenedIncident { at, rule }| Opened {
            at: time_of(anchor, *at),
            rule: rule.clone(),
            id: None,
        });
        self.opened.extend(saved);
        self.opened.sort_by_key(|it| Reverse(it.at.age(anchor.moment)));
    }

    /// Counts the incident `id`, which `rule` opened.
    pub(crate) fn spend(&mut self, now: Moment, rule: &str, id: IncidentId) {
        self.opened.retain(|it| it.at.age(now) < DAY);
        self.opened.push(Opened { at: now.into(), rule: rule.to_owned(), id: Some(id) });
    }

    /// Removes the incident `id`, which could not be opened.
    pub(crate) fn refund(&mut self, id: IncidentId) {
        self.opened.retain(|it| it.id != Some(id));
    }

    /// Returns the admission of a new incident of `rule` at `now`, given that the other rules in
    /// `rules` have reserves.
    pub(crate) fn opening<'r>(
        &self,
        now: Moment,
        settings: &BudgetSettings,
        rule: &str,
        rules: impl Iterator<Item = &'r str> + Clone,
    ) -> Admission {
        let spent = self.spent(now);
        let reserve = reserve(settings.incidents_per_day, rules.clone().count());
        let unspent = |other: &str| reserve.saturating_sub(self.spent_by(now, other));
        let others = rules.filter(|other| *other != rule).map(unspent).sum::<usize>();
        let most = settings.incidents_per_day.saturating_sub(others);
        if spent >= most {
            let freed = self.within(now).nth(spent - most);
            return Admission::Spent { until: freed.map_or(now + DAY, |it| it.at.reaches(DAY)) };
        }
        self.gap(now, settings)
    }

    /// Returns the admission of a new incident of any rule at `now`.
    pub(crate) fn opening_of_any(&self, now: Moment, settings: &BudgetSettings) -> Admission {
        self.opening(now, settings, "", std::iter::empty())
    }

    fn gap(&self, now: Moment, settings: &BudgetSettings) -> Admission {
        match self.opened.last().map(|it| it.at.reaches(settings.min_between_incidents)) {
            Some(until) if now < until => Admission::Gap { until },
            _ => Admission::Free,
        }
    }

    /// Returns the number of incidents that rules opened in the 24 hours before `now`.
    pub(crate) fn spent(&self, now: Moment) -> usize {
        self.within(now).count()
    }

    fn spent_by(&self, now: Moment, rule: &str) -> usize {
        self.within(now).filter(|it| it.rule == rule).count()
    }

    fn within(&self, now: Moment) -> impl Iterator<Item = &Opened> {
        self.opened.iter().filter(move |it| it.at.age(now) < DAY)
    }

    /// Returns the incidents to save.
    pub(crate) fn incidents(&self, anchor: TimeAnchor) -> Vec<OpenedIncident> {
        let opened = self.within(anchor.moment);
        opened
            .map(|it| OpenedIncident { at: wall_of(anchor, it.at), rule: it.rule.clone() })
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
    fn opening(budget: &IncidentBudget, now: Moment, settings: &BudgetSettings) -> Admission {
        budget.opening(now, settings, "memory", ["memory"].into_iter())
    }

    #[test]
    fn incidents_are_a_gap_apart_and_so_many_a_day() {
        let mut budget = IncidentBudget::default();
        let day = 24 * 60 * 60;
        for start in [0, 60, 200] {
            assert_eq!(opening(&budget, at(start), &settings()), Admission::Free, "{start}");
            budget.spend(at(start), "memory", id());
            if start == 0 {
                let until = at(60);
                assert_eq!(opening(&budget, at(59), &settings()), Admission::Gap { until });
            }
        }
        for now in [260, day - 1] {
            let spent = Admission::Spent { until: at(day) };
            assert_eq!(opening(&budget, at(now), &settings()), spent, "{now}");
        }
        assert_eq!(opening(&budget, at(day), &settings()), Admission::Free);
        assert_eq!(budget.spent(at(day)), 2);
        let tighter = BudgetSettings { incidents_per_day: 1, ..settings() };
        let spent = Admission::Spent { until: at(day + 200) };
        assert_eq!(opening(&budget, at(day), &tighter), spent, "as the settings say now");
    }

    #[test]
    fn a_rule_cannot_spend_what_is_reserved_for_the_others() {
        let rules = ["cpu", "lag", "tasks", "memory"];
        let settings = BudgetSettings {
            incidents_per_day: 12,
            min_between_incidents: Duration::ZERO,
            ..BudgetSettings::default()
        };
        let mut budget = IncidentBudget::default();
        let mut spend = |rule: &str| {
            let mut spent = 0;
            while budget.opening(at(0), &settings, rule, rules.into_iter()) == Admission::Free {
                budget.spend(at(0), rule, id());
                spent += 1;
            }
            spent
        };
        let spent = ["cpu", "lag", "cpu", "tasks", "memory", "memory"].map(&mut spend);
        assert_eq!(spent, [6, 2, 0, 2, 2, 0]);
        assert_eq!(budget.spent(at(0)), 12);
    }

    #[test]
    fn default_rules_have_a_reserve_and_leave_half_to_all() {
        let rules = crate::config::default_rules().len();
        assert_eq!(reserve(24, rules), 1, "{rules} rules");
        for (incidents, rules, expected) in [(24, 4, 2), (24, 8, 2), (24, 16, 1), (24, 17, 0)] {
            assert_eq!(reserve(incidents, rules), expected, "{incidents} {rules}");
        }
    }

    #[test]
    fn with_more_rules_than_incidents_nothing_is_reserved() {
        let names: Vec<String> = (0..30).map(|n| format!("rule-{n}")).collect();
        let rules = || names.iter().map(String::as_str);
        let mut budget = IncidentBudget::default();
        let settings =
            BudgetSettings { min_between_incidents: Duration::ZERO, ..BudgetSettings::default() };
        for _ in 0..settings.incidents_per_day {
            assert_eq!(budget.opening(at(0), &settings, "rule-0", rules()), Admission::Free);
            budget.spend(at(0), "rule-0", id());
        }
        let spent = budget.opening(at(0), &settings, "rule-1", rules());
        assert_eq!(spent, Admission::Spent { until: at(24 * 60 * 60) });
    }

    #[test]
    fn an_incident_that_came_to_nothing_costs_nothing() {
        let mut budget = IncidentBudget::default();
        let ids = [id(), id()];
        ids.iter().for_each(|id| budget.spend(at(0), "memory", *id));
        budget.refund(ids[0]);
        assert_eq!(budget.spent(at(1)), 1);
    }
}
