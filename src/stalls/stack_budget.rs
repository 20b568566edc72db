//! CPU budget for the stacks of recorded stalls.

use std::collections::HashMap;
use std::time::Duration;

use crate::base::Moment;

/// The stacks of recorded stalls may take `1 / STACK_CPU_DIVISOR` of a core, with up to
/// [`MAX_SAVED_CPU`] saved up.
const STACK_CPU_DIVISOR: u32 = 500;
const MAX_SAVED_CPU: Duration = Duration::from_millis(20);

/// Maximum debt at which the first stall of a task still gets a stack.
const MAX_DEBT: Duration = Duration::from_millis(200);

/// Time after which the next stall of a task counts as its first.
const FIRST_STALL_INTERVAL: Duration = Duration::from_secs(10);

/// A token bucket of CPU time for the stacks of recorded stalls. When many stalls occur at once,
/// all are counted but few get a stack.
#[derive(Debug, Default)]
pub(crate) struct StackBudget {
    /// CPU time used beyond the share.
    debt: Duration,
    refilled_at: Moment,
    /// Tasks whose stacks were taken recently.
    recent_tasks: HashMap<String, Moment>,
}

impl StackBudget {
    /// Returns `true` if the stack of a stall of `task` may be taken: the budget allows it, or the
    /// stall is the task's first.
    pub(crate) fn allows(&mut self, now: Moment, task: &str) -> bool {
        self.debt = self.debt.saturating_sub(now.since(self.refilled_at) / STACK_CPU_DIVISOR);
        self.refilled_at = now;
        self.recent_tasks.retain(|_, taken| now.since(*taken) < FIRST_STALL_INTERVAL);
        let is_first = !self.recent_tasks.contains_key(task);
        let allows = self.debt < MAX_SAVED_CPU || (is_first && self.debt < MAX_DEBT);
        if allows && is_first {
            self.recent_tasks.insert(task.to_owned(), now);
        }
        allows
    }

    /// Charges used CPU time, up to a maximum: reading symbols for the first time is expensive.
    pub(crate) fn charge(&mut self, cost: Duration) {
        self.debt += cost.min(MAX_DEBT / 2);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stacks_stay_within_cpu_budget_and_each_task_gets_one() {
        let mut budget = StackBudget::default();
        let mut used = Duration::ZERO;
        let mut stacks = 0;
        // 200 stalls a second for a minute, 1 ms for each stack.
        for step in 0..12_000_u64 {
            let now = Moment::from_nanos(1_000_000_000 + step * 5_000_000);
            if budget.allows(now, "a.rs:1") {
                budget.charge(Duration::from_millis(1));
                used += Duration::from_millis(1);
                stacks += 1;
            }
        }
        assert!(
            used <= Duration::from_secs(60) / STACK_CPU_DIVISOR + MAX_SAVED_CPU * 2,
            "{used:?}"
        );
        assert!(stacks > 60, "{stacks}");
        let now = Moment::from_nanos(61_000_000_000);
        budget.refilled_at = now;
        budget.debt = MAX_SAVED_CPU;
        assert!(budget.allows(now, "b.rs:2") && !budget.allows(now, "b.rs:2"));
    }
}
