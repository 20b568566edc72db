//! The status of the agent, and the log line of its start.

use crate::agent::history::vitals_row;
use crate::agent::state::AgentState;
use crate::agent::state::missing_features::missing_features;
use crate::agent::status::{BudgetStatus, IncidentStatus, RuleStatus, Status, ToggleStatus};
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
            rule.explanation.extend(self.metric_note(&rule.metric).map(|note| format!("; {note}")));
            rule
        });
        let incidents = self.decider.incidents.iter().map(|incident| IncidentStatus {
            id: incident.id,
            name: incident.name.to_owned(),
            opened: incident.opened_at,
            dir: self.dir(incident.id),
            running: incident.running,
            first_finding: self.first_finding(incident.id),
            active_rules: incident.active_rules.to_vec(),
        });
        Status {
            version: env!("CARGO_PKG_VERSION"),
            service: self.settings.service.clone(),
            instance: self.settings.instance.clone(),
            dir: self.location.path(),
            started: self.started,
            config: self.config.clone(),
            toggle: self.toggle_status(self.decider.incidents.toggle_state()),
            incidents: incidents.collect(),
            on_demand_captures: self.on_demand.status(anchor),
            stalls: self.recent_stalls.recent(),
            budget: self.budget_status(),
            rules: rules.collect(),
            limits: Limits::from(&self.vitals),
            cpu: self.lookback.description(&self.settings),
            vitals: vitals_row(&self.vitals, anchor),
            histograms: self.reader.distributions(),
            store: self.store_usage,
            counters: self.counters,
            engines: self.engines.clone(),
            warnings: warnings::list(),
            panics: panics::list(),
            log: log::check_status(),
            failures: self.failures.clone(),
            last_failure: self.last_failure.clone(),
        }
    }

    /// Returns a note about a metric: the reason why it has no value, or how to interpret the
    /// value.
    fn metric_note(&self, metric: &Metric) -> Option<String> {
        match metric.value(&self.vitals) {
            None => Some(self.reader.unavailable_reason(metric)),
            Some(_) if metric.is_memory_metric() => self.vitals.memory_note(),
            Some(_) => None,
        }
    }

    /// Logs the start of the agent once, after the first tick has read the limits.
    pub(super) fn log_start(&mut self) {
        let Some(endpoint) = self.endpoint.take() else { return };
        let limits = Limits::from(&self.vitals);
        let with_source = |value: Option<String>, source: Option<String>| match (value, source) {
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
            "marple {} watches process {}: memory {}, cpu {}, descriptors {}, {}, directory {}, \
             endpoint {endpoint}, cpu engine {}{without}",
            env!("CARGO_PKG_VERSION"),
            std::process::id(),
            with_source(limits.memory.map(|bytes| bytes.to_string()), limits.memory_source),
            with_source(limits.cpu_cores.map(|cores| format!("{cores} cores")), limits.cpu_source),
            with_source(
                self.vitals.fd_limit.map(|limit| limit.to_string()),
                Some("RLIMIT_NOFILE".to_owned())
            ),
            describe_rules(&self.settings.rules),
            self.location.path().display(),
            self.lookback.description(&self.settings)
        ));
    }

    fn budget_status(&self) -> BudgetStatus {
        let anchor = self.clock.anchor();
        BudgetStatus::new(
            anchor,
            &self.settings.budget,
            self.decider.admission(anchor.moment),
            self.decider.incidents_in_last_day(anchor.moment),
            &self.on_demand.quota,
        )
    }

    pub(super) fn toggle_status(&self, state: Option<ToggleState>) -> ToggleStatus {
        let running = self
            .decider
            .incidents
            .iter()
            .fold(CaptureSet::EMPTY, |running, incident| running.union(incident.claimed_kinds));
        ToggleStatus {
            on: state.is_some(),
            running,
            since: state.map(|state| state.turned_on_at),
            until: state.and_then(|state| state.turned_on_at.checked_add(state.max_duration).ok()),
            incident: state.map(|state| state.incident),
            dir: state.and_then(|state| self.dir(state.incident)),
        }
    }
}

/// Summarizes the rules: `14 rules (12 default, 2 own)`, `2 rules (2 own), 13 default rules off`.
/// Omits the names of rules, because operators search the log for some of these words. The status
/// lists them.
fn describe_rules(rules: &[Rule]) -> String {
    let default = default_rules();
    let default_count = rules.iter().filter(|rule| default.contains(rule)).count();
    let own_count = rules.len() - default_count;
    let is_off = |known: &&Rule| !rules.iter().any(|rule| rule.name == known.name);
    let disabled_count = default.iter().filter(is_off).count();
    let mut parts = Vec::new();
    if default_count > 0 {
        parts.push(format!("{default_count} default"));
    }
    if own_count > 0 {
        parts.push(format!("{own_count} own"));
    }
    let mut text = format!("{} rules", rules.len());
    if !parts.is_empty() {
        text += &format!(" ({})", parts.join(", "));
    }
    if disabled_count > 0 {
        text += &format!(", {disabled_count} default rules off");
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rule_summary_counts_default_own_and_disabled_rules() {
        let mut rules = default_rules();
        let all = rules.len();
        assert_eq!(describe_rules(&rules), format!("{all} rules ({all} default)"));
        rules[0].abs = Some(85.0);
        rules.pop();
        let expected =
            format!("{} rules ({} default, 1 own), 1 default rules off", all - 1, all - 2);
        assert_eq!(describe_rules(&rules), expected);
        assert_eq!(describe_rules(&[]), format!("0 rules, {all} default rules off"));
    }
}
