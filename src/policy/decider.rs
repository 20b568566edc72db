//! All decisions, without a thread, a clock or a file: rules, budgets and incidents.
//!
//! The loop drives this module with measured values, [`replay`](super::replay) with recorded ones.
//!
//! ```text
//!  vitals ──► Budget: admission ──► Engine: evaluate rules ──► Incidents: claim
//!               ▲                                                  │
//!               └───────────── opened, or could not be opened ◄────┘
//! ```

use jiff::Timestamp;

use super::incidents::{CaptureRequest, CommandResult, IncidentCommand, IncidentUpdate, Incidents};
use crate::base::{ClockReading, IncidentId, Moment, TimeAnchor};
use crate::config::BudgetSettings;
use crate::model::{CaptureKind, CaptureSet, Metric, Mode, Origin, Reason, Rule, Vitals};
use crate::policy::incident_budget::{IncidentBudget, SavedState};
use crate::policy::saved_state::RuleState;
use crate::rules::{Admission, Decision, Engine, ThresholdCrossing};

/// A rule firing.
#[derive(Debug)]
pub(crate) struct FiredRule {
    pub(crate) rule: String,
    /// The reason, as a sentence.
    pub(crate) text: String,
    /// The incident the firing belongs to, or `None` if the rule is a dry run.
    pub(crate) incident: Option<IncidentId>,
}

/// Rules, budgets and incidents, driven by one caller.
pub(crate) struct Decider {
    pub(crate) engine: Engine,
    pub(crate) incidents: Incidents,
    budget: IncidentBudget,
    settings: BudgetSettings,
    /// Names of the rules that capture; they share the budget.
    capture_rules: Vec<String>,
    /// True if the state must be saved.
    dirty: bool,
    /// Description of the stall in progress.
    pub(crate) stall_description: Option<String>,
    /// Description of the location with the most panics.
    pub(crate) panic_description: Option<String>,
}

impl Decider {
    pub(crate) fn new(rules: Vec<Rule>, settings: BudgetSettings) -> Self {
        let mut incidents = Incidents::default();
        incidents.set_join_window(settings.join_window);
        Self {
            capture_rules: capture_rule_names(&rules),
            engine: Engine::new(rules),
            incidents,
            budget: IncidentBudget::default(),
            settings,
            dirty: false,
            stall_description: None,
            panic_description: None,
        }
    }

    /// Restores the state saved by an earlier process, with times converted to the wall clock of
    /// `anchor`. Captures that this process has already made are kept.
    pub(crate) fn restore(&mut self, anchor: TimeAnchor, state: &SavedState) {
        self.budget.restore(anchor, state);
        for (name, saved) in &state.rules {
            let known = self.engine.states().find(|state| state.rule.name == *name);
            // Values of another metric are not comparable.
            let comparable = known.is_some_and(|state| {
                saved.metric.as_ref().is_none_or(|metric| *metric == state.rule.metric)
            });
            if comparable && self.engine.history(name).is_none() {
                let (captured, records) = saved.restore(anchor);
                self.engine.restore_rule(name, captured, &records);
            }
        }
    }

    /// Returns the state to save, or `None` if it has not changed since the last call.
    pub(crate) fn take_state(&mut self, anchor: TimeAnchor) -> Option<SavedState> {
        if !std::mem::take(&mut self.dirty) {
            return None;
        }
        // A dry run captures nothing, so there is nothing to refire.
        let captures = self.engine.states().filter(|state| state.rule.mode == Mode::Capture);
        let rules = captures.filter_map(|state| {
            let (captured, records) = self.engine.history(&state.rule.name)?;
            let saved = RuleState::new(state.rule, anchor, captured, records);
            Some((state.rule.name.clone(), saved))
        });
        Some(SavedState {
            schema: SavedState::SCHEMA,
            clock: Some(ClockReading::new(anchor)),
            incidents: self.budget.saved_incidents(anchor),
            rules: rules.collect(),
            on_demand_captures: Vec::new(),
        })
    }

    /// Marks the state as changed because another part of it has.
    pub(crate) fn mark_dirty(&mut self) {
        self.dirty = true;
    }

    /// Replaces the rules and budgets.
    pub(crate) fn replace(&mut self, rules: Vec<Rule>, settings: BudgetSettings) {
        self.capture_rules = capture_rule_names(&rules);
        for removed in self.engine.replace(rules) {
            self.incidents.clear(&removed.name);
        }
        self.incidents.set_join_window(settings.join_window);
        self.settings = settings;
    }

    /// Evaluates every rule against a tick and applies the decisions. Allocates only if a rule
    /// fires or clears.
    pub(crate) fn evaluate(
        &mut self,
        now: Moment,
        vitals: &Vitals,
        mut new_id: impl FnMut() -> IncidentId,
        wall: impl Fn() -> Timestamp,
    ) -> Vec<FiredRule> {
        let rules = std::mem::take(&mut self.capture_rules);
        let budget = &self.budget;
        let incidents = &self.incidents;
        let settings = &self.settings;
        let admission = |rule: &Rule| match incidents.fire_count_in_joinable(now, &rule.name) {
            Some(fires) if fires >= settings.captures_per_incident => {
                Admission::CaptureLimitReached
            }
            Some(_) => Admission::Allowed,
            None => budget.admission(now, settings, &rule.name, rules.iter().map(String::as_str)),
        };
        let decisions: Vec<(usize, Decision)> = self
            .engine
            .evaluate_with_admission(now, vitals, &admission)
            .filter(|(_, decision)| !matches!(decision, Decision::Hold(_)))
            .collect();
        self.capture_rules = rules;
        let mut fired = Vec::new();
        for (index, decision) in decisions {
            let Some(rule) = self.engine.rule(index).cloned() else { continue };
            match decision {
                Decision::Fire(crossing) => {
                    let text = decision.explain(&rule, now).to_string();
                    fired.push(self.fire(now, &rule, crossing, text, vitals, &mut new_id, wall()));
                }
                Decision::Clear => self.incidents.clear(&rule.name),
                Decision::Hold(_) => {}
            }
        }
        fired
    }

    #[allow(clippy::too_many_arguments, reason = "all parameters describe one firing of a rule")]
    fn fire(
        &mut self,
        now: Moment,
        rule: &Rule,
        crossing: ThresholdCrossing,
        mut text: String,
        vitals: &Vitals,
        new_id: &mut impl FnMut() -> IncidentId,
        at: Timestamp,
    ) -> FiredRule {
        if let Some(stall) =
            self.stall_description.as_ref().filter(|_| rule.metric == Metric::Stall)
        {
            text.push_str(&format!("; {stall}"));
        }
        if let Some(panics) =
            self.panic_description.as_ref().filter(|_| rule.metric == Metric::Panics)
        {
            text.push_str(&format!("; {panics}"));
        }
        if let Some(note) = vitals.memory_note().filter(|_| rule.metric.is_memory_metric()) {
            text.push_str(&format!("; {note}"));
        }
        self.engine.capture_started(&rule.name);
        self.dirty = true;
        if rule.mode == Mode::DryRun {
            self.engine.capture_ended(&rule.name, now);
            return FiredRule { rule: rule.name.clone(), text, incident: None };
        }
        let mut wanted = rule.capture;
        if needs_descriptor_dump(&rule.metric, vitals) {
            wanted.insert(CaptureKind::Descriptors);
        }
        if rule.metric == Metric::Panics {
            wanted.insert(CaptureKind::Panics);
        }
        let kinds = self.kinds_within_cpu_limit(wanted, vitals, &mut text);
        let reason = Reason {
            origin: Origin::Rule,
            at,
            rule: Some(rule.name.clone()),
            metric: Some(rule.metric.clone()),
            value: Some(crossing.value),
            threshold: Some(crossing.threshold),
            text: text.clone(),
        };
        let mut opened = false;
        let make_id = || {
            opened = true;
            new_id()
        };
        let request = CaptureRequest { kinds, duration: rule.duration };
        let id = self.incidents.claim_for_rule(now, make_id, &rule.name, request, reason);
        self.incidents.request_collectors(id, &rule.collectors);
        if opened {
            self.budget.consume(now, &rule.name, id);
        }
        if self.incidents.fire_count(id, &rule.name) >= self.settings.captures_per_incident {
            self.engine.capture_limit_reached(&rule.name);
        }
        FiredRule { rule: rule.name.clone(), text, incident: Some(id) }
    }

    /// Returns the captures of `kinds` that are allowed at the CPU load of `vitals`. Appends the
    /// skipped ones to `text`.
    fn kinds_within_cpu_limit(
        &self,
        kinds: CaptureSet,
        vitals: &Vitals,
        text: &mut String,
    ) -> CaptureSet {
        let Some((ceiling, used)) = self.settings.skip_cpu_profile_above.zip(vitals.cpu_percent())
        else {
            return kinds;
        };
        if used.get() <= ceiling.get() {
            return kinds;
        }
        let cheap: CaptureSet = kinds.iter().filter(|kind| kind.has_low_overhead()).collect();
        for kind in kinds.difference(cheap).iter() {
            text.push_str(&format!(
                "; {kind} skipped: cpu {used} is above skip_cpu_profile_above {ceiling}"
            ));
        }
        cheap
    }

    /// Returns the admission of a new incident for a rule without one, regardless of the rule.
    pub(crate) fn admission(&self, now: Moment) -> Admission {
        match self.incidents.has_joinable(now) {
            true => Admission::Allowed,
            false => self.budget.admission_for_any_rule(now, &self.settings),
        }
    }

    /// Returns the number of incidents that rules opened in the 24 hours before `now`.
    pub(crate) fn incidents_in_last_day(&self, now: Moment) -> usize {
        self.budget.used_count(now)
    }

    /// Ends the claims that have expired at `now`.
    pub(crate) fn expire(&mut self, now: Moment) {
        let updates = self.incidents.expire(now);
        self.apply_updates(now, &updates);
    }

    pub(crate) fn next_command(&mut self, now: Moment) -> Option<IncidentCommand> {
        self.incidents.next_command(now)
    }

    /// Applies the result of a command. Returns the incidents that ended.
    pub(crate) fn apply_result(&mut self, now: Moment, result: CommandResult) -> Vec<IncidentId> {
        let updates = self.incidents.apply_result(now, result);
        self.apply_updates(now, &updates);
        let removed = updates.into_iter().filter_map(|update| match update {
            IncidentUpdate::Removed(id) => Some(id),
            IncidentUpdate::CaptureEnded(_) | IncidentUpdate::OpenFailed(..) => None,
        });
        removed.collect()
    }

    fn apply_updates(&mut self, now: Moment, updates: &[IncidentUpdate]) {
        for update in updates {
            match update {
                IncidentUpdate::CaptureEnded(rule) => self.engine.capture_ended(rule, now),
                IncidentUpdate::OpenFailed(rule, id) => {
                    self.engine.incident_open_failed(rule, now);
                    self.budget.refund(*id);
                    self.dirty = true;
                }
                IncidentUpdate::Removed(_) => {}
            }
        }
    }
}

/// Returns `true` if an incident of a rule over `metric` must list the open descriptors in any
/// case. That is so for rules about descriptors, and if more than half of the allowed number are
/// open.
fn needs_descriptor_dump(metric: &Metric, vitals: &Vitals) -> bool {
    matches!(metric, Metric::Fds | Metric::FdUtilization | Metric::FdRise)
        || has_high_fd_usage(vitals)
}

/// Returns `true` if more than half of the allowed number of descriptors are open.
pub(crate) fn has_high_fd_usage(vitals: &Vitals) -> bool {
    vitals.fd_percent().is_some_and(|share| share.get() > 50.0)
}

fn capture_rule_names(rules: &[Rule]) -> Vec<String> {
    let capturing = rules.iter().filter(|rule| rule.mode == Mode::Capture);
    capturing.map(|rule| rule.name.clone()).collect()
}
