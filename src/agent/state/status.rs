//! The status as reported by the agent loop.

use crate::agent::history::row;
use crate::agent::state::AgentState;
use crate::agent::state::missing_features::missing_features;
use crate::agent::status::{BudgetStatus, IncidentStatus, RuleStatus, Status, Toggled};
use crate::base::{log, panics, warnings};
use crate::config::default_rules;
use crate::model::{CaptureSet, Limits, Metric, Rule};
use crate::policy::incidents::ToggleState;

impl AgentState {
    pub(super) fn status(&self) -> Status {
        let anchor = self.clock.anchor();
        let states = self.decider.engine.states();
        let rules = states.map(|state| {
            let mut rule = RuleStatus::new(&state, anchor);
            rule.explanation.extend(self.note(&rule.metric).map(|note| format!("; {note}")));
            rule
        });
        let incidents = self.decider.incidents.iter().map(|incident| IncidentStatus {
            id: incident.id,
            name: incident.name.to_owned(),
            opened: incident.opened,
            dir: self.dir(incident.id),
            running: incident.running,
            held_by: incident.held_by.to_vec(),
        });
        Status {
            version: env!("CARGO_PKG_VERSION"),
            service: self.settings.service.clone(),
            domain: self.settings.domain.clone(),
            dir: self.location.path(),
            started: self.started,
            config: self.config.clone(),
            toggle: self.toggled(self.decider.incidents.toggle()),
            incidents: incidents.collect(),
            streams: self.streams.status(anchor),
            stalls: self.stuck.recent(),
            budget: self.budget(),
            rules: rules.collect(),
            limits: Limits::from(&self.vitals),
            cpu: self.cpu.words(&self.settings),
            vitals: row(&self.vitals, anchor),
            histograms: self.reader.distributions(),
            store: self.stored,
            counters: self.counters,
            engines: self.engines.clone(),
            warnings: warnings::list(),
            panics: panics::list(),
            log: log::check(),
            failures: self.failures.clone(),
            last_failure: self.last_failure.clone(),
        }
    }

    /// Returns remarks about a metric: the reason it has no value, or how to interpret it.
    fn note(&self, metric: &Metric) -> Option<String> {
        match metric.value(&self.vitals) {
            None => Some(self.reader.why_absent(metric)),
            Some(_) if metric.is_of_memory() => self.vitals.memory_note(),
            Some(_) => None,
        }
    }

    /// Logs the start of the agent once, after the first tick has read the limits.
    pub(super) fn log_start(&mut self) {
        let Some(endpoint) = self.endpoint.take() else { return };
        let limits = Limits::from(&self.vitals);
        let of = |value: Option<String>, source: Option<String>| match (value, source) {
            (Some(value), Some(source)) => format!("{value} ({source})"),
            (Some(value), None) => value,
            (None, _) => "unlimited".to_owned(),
        };
        let missing = missing_features();
        let without = match missing.is_empty() {
            true => String::new(),
            false => format!(", built without {}", missing.join(", ")),
        };
        log::info(format!(
            "marple {} watches process {}: memory {}, cpu {}, descriptors {}, {}, directory {}, endpoint {endpoint}, cpu engine \
             {}{without}",
            env!("CARGO_PKG_VERSION"),
            std::process::id(),
            of(limits.memory.map(|bytes| bytes.to_string()), limits.memory_source),
            of(limits.cpu_cores.map(|cores| format!("{cores} cores")), limits.cpu_source),
            of(
                self.vitals.fd_limit.map(|limit| limit.to_string()),
                Some("RLIMIT_NOFILE".to_owned())
            ),
            rules_in_words(&self.settings.rules),
            self.location.path().display(),
            self.cpu.words(&self.settings)
        ));
    }

    fn budget(&self) -> BudgetStatus {
        let (anchor, decider) = (self.clock.anchor(), &self.decider);
        let (opening, spent) = (decider.opening(anchor.moment), decider.spent(anchor.moment));
        BudgetStatus::new(anchor, &self.settings.budget, (opening, spent), &self.streams.allowance)
    }

    pub(super) fn toggled(&self, state: Option<ToggleState>) -> Toggled {
        let running = self
            .decider
            .incidents
            .iter()
            .fold(CaptureSet::EMPTY, |running, incident| running.union(incident.wanted));
        Toggled {
            on: state.is_some(),
            running,
            since: state.map(|state| state.since),
            until: state.and_then(|state| state.since.checked_add(state.max_duration).ok()),
            incident: state.map(|state| state.incident),
            dir: state.and_then(|state| self.dir(state.incident)),
        }
    }
}

/// Summarizes the rules: `14 rules (12 default, 2 own)`, `2 rules (2 own), 13 default rules off`.
/// Rule names are omitted, as some are words that operators search the log for; the status lists
/// them.
fn rules_in_words(rules: &[Rule]) -> String {
    let default = default_rules();
    let kept = rules.iter().filter(|rule| default.contains(rule)).count();
    let own = rules.len() - kept;
    let is_off = |known: &&Rule| !rules.iter().any(|rule| rule.name == known.name);
    let off = default.iter().filter(is_off).count();
    let mut parts = Vec::new();
    if kept > 0 {
        parts.push(format!("{kept} default"));
    }
    if own > 0 {
        parts.push(format!("{own} own"));
    }
    let mut text = format!("{} rules", rules.len());
    if !parts.is_empty() {
        text += &format!(" ({})", parts.join(", "));
    }
    if off > 0 {
        text += &format!(", {off} default rules off");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_are_counted_and_so_are_default_rules_that_are_off() {
        let mut rules = default_rules();
        let all = rules.len();
        assert_eq!(rules_in_words(&rules), format!("{all} rules ({all} default)"));
        rules[0].abs = Some(85.0);
        rules.pop();
        let expected =
            format!("{} rules ({} default, 1 own), 1 default rules off", all - 1, all - 2);
        assert_eq!(rules_in_words(&rules), expected);
        assert_eq!(rules_in_words(&[]), format!("0 rules, {all} default rules off"));
    }
}
