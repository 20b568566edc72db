//! Rules whose metric cannot be measured on this system.

use std::time::Duration;

use crate::agent::state::AgentState;
use crate::base::{Moment, warnings};
use crate::model::Metric;
use crate::rules::{Decision, HoldReason};

const TOPIC: &str = "rules";

/// Time that a rule may have no value. Some values need two readings, a second apart.
const MAX_TIME_WITHOUT_VALUE: Duration = Duration::from_secs(3);

/// Time that a rule over growth may have no value. Growth needs 10 readings.
const MAX_TIME_WITHOUT_GROWTH_VALUE: Duration = Duration::from_secs(15);

/// Interval between two checks.
const CHECK_INTERVAL: Duration = Duration::from_secs(1);

/// Indexes of the rules that have had no value for too long.
#[derive(Debug, Default)]
pub(super) struct DeadRules {
    checked_at: Option<Moment>,
    reported: Vec<usize>,
    /// Those of the current check. A field so that its memory is reused.
    current: Vec<usize>,
}

impl DeadRules {
    /// Makes the next check report again. Must be called after the rules were replaced.
    pub(super) fn report_again(&mut self) {
        // Differs from the result of any check.
        self.reported = vec![usize::MAX];
    }
}

impl AgentState {
    /// Warns about rules that have had no value for a while. Custom metrics are excluded: they have
    /// no value until the service sets one, which the rule's explanation states.
    pub(super) fn warn_about_dead_rules(&mut self) {
        let now = self.clock.now();
        if self.dead_rules.checked_at.is_some_and(|last| now.since(last) < CHECK_INTERVAL) {
            return;
        }
        self.dead_rules.checked_at = Some(now);
        let DeadRules { current, reported, .. } = &mut self.dead_rules;
        current.clear();
        let states = self.decider.engine.states().enumerate();
        current.extend(
            states
                .filter(|(_, state)| {
                    let max_time = max_time_without_value(&state.rule.metric);
                    matches!(state.decision, Decision::Hold(HoldReason::NoValue))
                        && state.rule.metric.custom_name().is_none()
                        && !is_optional(&state.rule.metric)
                        && state.changed_at.is_some_and(|since| now.since(since) >= max_time)
                })
                .map(|(index, _)| index),
        );
        if current == reported {
            return;
        }
        std::mem::swap(current, reported);
        let mut text = String::new();
        for (index, state) in self.decider.engine.states().enumerate() {
            if self.dead_rules.reported.contains(&index) {
                let metric = &state.rule.metric;
                let separator = if text.is_empty() { "" } else { "; " };
                let reason = self.reader.unavailable_reason(metric);
                text += &format!(
                    "{separator}rule `{}` cannot fire, as {metric} has no value: {reason}",
                    state.rule.name
                );
            }
        }
        match text.is_empty() {
            true => warnings::clear(TOPIC),
            false => warnings::set(TOPIC, text),
        }
    }
}

/// Returns `true` for metrics of default rules that some runtimes do not have. A runtime without
/// worker threads has no blocked ones. The rule's explanation in the status states this.
fn is_optional(metric: &Metric) -> bool {
    matches!(metric, Metric::Blocked | Metric::Stall)
}

fn max_time_without_value(metric: &Metric) -> Duration {
    match metric {
        Metric::MemoryGrowth | Metric::TimeToLimit | Metric::TaskGrowth => {
            MAX_TIME_WITHOUT_GROWTH_VALUE
        }
        _ => MAX_TIME_WITHOUT_VALUE,
    }
}
