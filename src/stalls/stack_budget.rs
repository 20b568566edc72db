//! CPU budget for the stacks of recorded stalls.

use std::collections::HashMap;
use std::time::Duration;

use crate::base::Moment;

/// The stacks of recorded stalls may take `1 / STACK_SHARE` of a core, with up to [`MAX_STACKS`]
/// saved up.
const STACK_SHARE: u32 = 500;
const MAX_STACKS: Duration = Duration::from_millis(20);

/// Maximum debt at which the first stall of a task still gets a stack.
const MAX_DEBT: Duration = Duration::from_millis(200);

/// Time after which the next stall of a task counts as its first.
const FORGOTTEN: Duration = Duration::from_secs(10);

/// A token bucket of CPU time for the stacks of recorded stalls. When many stalls occur at once,
/// all are counted but few get a stack.
#[derive(Debug, Default)]
pub(crate) struct StackBudget {
    /// CPU time used beyond the share.
    debt: Duration,
    refilled: Moment,
    /// Tasks whose stacks were taken recently.
    tasks: HashMap<String, Moment>,
}

impl StackBudget {
    /// Returns `true` if the stack of a stall of `task` may be taken: the budget allows it, or the
    /// stall is the task's first.
    pub(crate) fn allows(&mut self, now: Moment, task: &str) -> bool {
        self.debt = self.debt.saturating_sub(now.since(self.refilled) / STACK_SHARE);
        self.refilled = now;
        self.tasks.retain(|_, taken| now.since(*taken) < FORGOTTEN);
        let is_first = !self.tasks.contains_key(task);
        let allows = self.debt < MAX_STACKS || (is_first && self.debt < MAX_DEBT);
        if allows && is_first {
            self.tasks.insert(task.to_owned(), now);
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
    fn many_stalls_use_no_more_cpu_than_the_share_and_each_task_gets_a_stack() {
        let mut budget = StackBudget::default();
        let (mut used, mut asked) = (Duration::ZERO, 0);
        // 200 stalls a second for a minute, 1 ms for each stack.
        for step in 0..12_000_u64 {
            let now = Moment::from_nanos(1_000_000_000 + step * 5_000_000);
            if budget.allows(now, "a.rs:1") {
                budget.charge(Duration::from_millis(1));
                (used, asked) = (used + Duration::from_millis(1), asked + 1);
            }
        }
        assert!(used <= Duration::from_secs(60) / STACK_SHARE + MAX_STACKS * 2, "{used:?}");
        assert!(asked > 60, "{asked}");
        let now = Moment::from_nanos(61_000_000_000);
        budget.refilled = now;
        budget.debt = MAX_STACKS;
        assert!(budget.allows(now, "b.rs:2") && !budget.allows(now, "b.rs:2"));
    }
}
