//! How things stand, as the loop sees it.

use super::Core;
use crate::agent::history::row;
use crate::agent::incidents::ToggleState;
use crate::agent::status::{BudgetStatus, IncidentStatus, RuleStatus, Status, Toggled};
use crate::model::{CaptureSet, Limits};
use crate::rules::Opening;

impl Core {
    pub(super) fn status(&self) -> Status {
        let anchor = self.clock.anchor();
        let rules = self.decider.engine.states().map(|state| RuleStatus {
            name: state.rule.name.clone(),
            metric: state.rule.metric.clone(),
            value: state.value,
            mode: state.rule.mode.name(),
            active: state.active,
            decision: state.decision.name(),
            explanation: state.explain().to_string(),
            since: state.since.map(|since| anchor.wall_at(since)),
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
            dir: self.settings.dir.clone(),
            started: self.started,
            config: self.config.clone(),
            toggle: self.toggled(self.decider.incidents.toggle()),
            incidents: incidents.collect(),
            streams: self.streams.status(anchor),
            budget: self.budget(),
            rules: rules.collect(),
            limits: Limits::from(&self.vitals),
            cpu: self.cpu.words(&self.settings),
            vitals: row(&self.vitals, anchor),
            counters: self.counters,
            engines: self.engines.clone(),
            failures: self.failures.clone(),
            last_failure: self.last_failure.clone(),
        }
    }

    fn budget(&self) -> BudgetStatus {
        let (now, anchor) = (self.clock.now(), self.clock.anchor());
        let (opening, until) = match self.decider.opening(now) {
            Opening::Free => ("free", None),
            Opening::Gap { until } => ("gap", Some(until)),
            Opening::Spent { until } => ("spent", Some(until)),
            Opening::Exhausted => ("exhausted", None),
        };
        BudgetStatus {
            incidents_in_a_day: self.decider.spent(now),
            incidents_per_day: self.settings.budget.incidents_per_day,
            opening,
            until: until.map(|until| anchor.wall_at(until)),
        }
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
