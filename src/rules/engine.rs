//! Evaluation of all rules.

use std::time::Duration;

use super::Admission;
use super::decision::{Decision, StateExplanation};
use super::decision_history::{DecisionChange, DecisionHistory};
use super::history::FireRecord;
use super::watched_rule::WatchedRule;
use crate::base::{EventTime, Moment};
use crate::model::{Rule, Vitals};

/// The rules and their states. Rules are independent of each other, so their order does not matter.
///
/// The owner reports the outcome of each [`Decision::Fire`]. It calls [`Engine::capture_started`]
/// when the capture starts, and [`Engine::capture_ended`] when it has ended, or at once if there
/// will be none. Otherwise a rule with [`Refire::AfterCooldown`](crate::model::Refire) fires again
/// at the next tick.
#[derive(Clone, Debug)]
pub struct Engine {
    watched_rules: Vec<WatchedRule>,
    now: Moment,
    admission: Admission,
}

/// The state of one rule.
#[derive(Clone, Copy, Debug)]
pub struct State<'e> {
    /// The rule.
    pub rule: &'e Rule,
    /// Value of the metric at the last tick, in its unit. `None` if it could not be measured.
    pub value: Option<f64>,
    /// Decision of the last tick.
    pub decision: Decision,
    /// Time of the last change of the kind of decision. `None` before the first tick.
    pub changed_at: Option<Moment>,
    /// `true` if its incident is open.
    pub active: bool,
    /// Number of incidents in the last 24 hours that the rule opened or joined.
    pub incidents: usize,
    decision_history: &'e DecisionHistory,
    now: Moment,
}

impl<'e> State<'e> {
    /// Returns the decision of the last tick as one sentence.
    pub fn explain(&self) -> StateExplanation<'e> {
        self.decision.explain(self.rule, self.now)
    }

    /// Returns the last 16 decisions that differ in kind from the one before, the newest first.
    pub fn recent_decisions(&self) -> impl Iterator<Item = DecisionChange> + use<'e> {
        self.decision_history.newest_first()
    }
}

impl Engine {
    /// Returns an engine without values. The rules' names should differ; see `Settings::validate`.
    pub fn new(rules: Vec<Rule>) -> Self {
        Self {
            watched_rules: rules.into_iter().map(WatchedRule::new).collect(),
            now: Moment::default(),
            admission: Admission::Allowed,
        }
    }

    /// Sets the permission for rules to open an incident, from the next tick on.
    pub fn set_admission(&mut self, admission: Admission) {
        self.admission = admission;
    }

    /// Evaluates every rule at a tick. Returns each rule's index and decision, in the rules' order.
    /// All rules are evaluated even if the iterator is dropped.
    pub fn evaluate<'e>(
        &'e mut self,
        now: Moment,
        vitals: &Vitals,
    ) -> impl Iterator<Item = (usize, Decision)> + use<'e> {
        let admission = self.admission;
        self.evaluate_with_admission(now, vitals, &|_| admission)
    }

    /// Evaluates every rule like [`Engine::evaluate`]. `admission` returns the permission of each
    /// rule that is about to open an incident.
    pub fn evaluate_with_admission<'e>(
        &'e mut self,
        now: Moment,
        vitals: &Vitals,
        admission: &dyn Fn(&Rule) -> Admission,
    ) -> impl Iterator<Item = (usize, Decision)> + use<'e> {
        self.now = now;
        for watched in &mut self.watched_rules {
            watched.evaluate(now, vitals, admission);
        }
        self.watched_rules.iter().map(|watched| watched.decision).enumerate()
    }

    /// Excludes `time`, in which the process was stopped and nothing was measured, from the hold
    /// times.
    pub fn exclude_standstill(&mut self, time: Duration) {
        self.watched_rules.iter_mut().for_each(|watched| watched.exclude_standstill(time));
    }

    /// Returns the rule at `index`.
    pub fn rule(&self, index: usize) -> Option<&Rule> {
        self.watched_rules.get(index).map(|watched| &watched.rule)
    }

    /// Marks a capture of the rule called `name` as running. The rule does not fire until
    /// [`Engine::capture_ended`], unless the value becomes worse and `refire` is
    /// `"on-worsening"`. The name identifies the rule because rules may be replaced meanwhile; an
    /// unknown name is ignored.
    pub fn capture_started(&mut self, name: &str) {
        self.find(name).into_iter().for_each(WatchedRule::capture_started);
    }

    /// Marks a capture of the rule called `name` as ended at `now`, or as cancelled. Its cooldown
    /// starts.
    pub fn capture_ended(&mut self, name: &str, now: Moment) {
        self.find(name).into_iter().for_each(|watched| watched.capture_ended(now));
    }

    /// Records that the incident of the rule called `name` could not be opened. It is retried
    /// within a minute.
    pub fn incident_open_failed(&mut self, name: &str, now: Moment) {
        self.find(name).into_iter().for_each(|watched| watched.incident_open_failed(now));
    }

    /// Records that the incident of the rule called `name` may have no more captures.
    pub fn capture_limit_reached(&mut self, name: &str) {
        self.find(name).into_iter().for_each(WatchedRule::mark_capture_limit_reached);
    }

    /// Returns the time of the last capture of the rule called `name` and the records of the last
    /// 24 hours. The time is the end of the capture, or its start if it is running. Returns `None`
    /// if there was no capture.
    pub fn history(&self, name: &str) -> Option<(EventTime, &[FireRecord])> {
        let watched = self.watched_rules.iter().find(|watched| watched.rule.name == name)?;
        let records = watched.history.records();
        let times = [watched.last_capture_end, records.last().map(|record| record.at)];
        let last = times.into_iter().flatten().min_by_key(|time| time.age(self.now))?;
        Some((last, records))
    }

    /// Restores the state of the rule called `name` that an earlier process saved: the end of its
    /// last capture and its incidents.
    pub fn restore_rule(&mut self, name: &str, captured: EventTime, records: &[FireRecord]) {
        self.find(name).into_iter().for_each(|watched| watched.restore(captured, records));
    }

    /// Replaces the rules. A rule with the name of an existing one keeps part of its state:
    ///
    /// - unchanged rule: everything;
    /// - other thresholds: the average, the cooldown (recomputed from the same capture), the
    ///   running capture and the open incident; `for` restarts;
    /// - another metric: the cooldown, the running capture and the open incident; the rule warms
    ///   up.
    ///
    /// Returns the removed rules whose incidents are open.
    pub fn replace(&mut self, rules: Vec<Rule>) -> Vec<Rule> {
        let mut old = std::mem::take(&mut self.watched_rules);
        for rule in rules {
            let known = old.iter().position(|watched| watched.rule.name == rule.name);
            let watched = match known {
                Some(index) => {
                    let mut watched = old.swap_remove(index);
                    watched.replace_rule(rule);
                    watched
                }
                None => WatchedRule::new(rule),
            };
            self.watched_rules.push(watched);
        }
        old.into_iter().filter(|watched| watched.active).map(|watched| watched.rule).collect()
    }

    /// Returns the state of each rule, in the rules' order.
    pub fn states(&self) -> impl Iterator<Item = State<'_>> {
        self.watched_rules.iter().map(|watched| State {
            rule: &watched.rule,
            value: watched.value,
            decision: watched.decision,
            changed_at: watched.changed_at,
            active: watched.active,
            incidents: watched.history.incident_count(self.now),
            decision_history: &watched.decision_history,
            now: self.now,
        })
    }

    fn find(&mut self, name: &str) -> Option<&mut WatchedRule> {
        self.watched_rules.iter_mut().find(|watched| watched.rule.name == name)
    }
}
