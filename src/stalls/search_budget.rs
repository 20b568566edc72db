//! CPU budget of the search for stalls of unrecorded polls.
//!
//! A token bucket of CPU time, not of checks or rounds: the cost of a check depends on the number
//! of threads, on the depth of their stacks and on the cache state. So the limit holds under any
//! load.

use std::time::Duration;

use crate::base::Moment;

/// Divisor of the CPU share: 1 / 1000 of a core, 0.1 %. The rest of the limit of 0.2 % covers
/// wake-ups, which no thread clock shows in full.
const CPU_SHARE_DIVISOR: u32 = 1000;

/// Capacity of the bucket, and so the size of a burst above the share.
const BUCKET_CAPACITY: Duration = Duration::from_millis(6);

/// Reserve for suspicions with evidence. Confirming that a thread computes takes about 10 rounds of
/// 0.3 ms.
const RESERVE: Duration = Duration::from_millis(4);

/// Divisor of the share of checks alone: 1 / 2000 of a core, 0.05 %.
const CHECK_SHARE_DIVISOR: u32 = 2000;

/// Cost of waking the agent thread for a check, in addition to what its CPU clock shows.
const WAKE_UP_COST: Duration = Duration::from_micros(4);

/// Slow-down of unoptimized code, about 8 times. Costs are divided by it, because debug builds do
/// not run in production.
const DEBUG_SLOWDOWN: u32 = if cfg!(debug_assertions) { 8 } else { 1 };

/// A token bucket of CPU time. It can go into debt, because a cost is known only afterwards.
#[derive(Debug)]
pub(crate) struct SearchBudget {
    /// In nanoseconds.
    available: i64,
    refilled_at: Option<Moment>,
    /// Moving average of the cost of a check.
    check_cost: Duration,
}

impl SearchBudget {
    pub(crate) fn new() -> Self {
        Self { available: nanos(RESERVE), refilled_at: None, check_cost: Duration::ZERO }
    }

    /// Adds the budget accrued until `now`.
    pub(crate) fn refill(&mut self, now: Moment) {
        let elapsed = self.refilled_at.map_or(Duration::ZERO, |before| now.since(before));
        self.refilled_at = Some(now);
        self.available =
            (self.available + nanos(elapsed / CPU_SHARE_DIVISOR)).min(nanos(BUCKET_CAPACITY));
    }

    /// Charges used CPU time.
    pub(crate) fn charge(&mut self, cost: Duration) {
        self.available = self.available.saturating_sub(nanos(cost / DEBUG_SLOWDOWN));
    }

    /// Charges a check and updates the average cost of a check.
    pub(crate) fn charge_check(&mut self, cost: Duration) {
        let cost = cost / DEBUG_SLOWDOWN + WAKE_UP_COST;
        self.check_cost =
            if self.check_cost.is_zero() { cost } else { (self.check_cost * 7 + cost) / 8 };
        self.available = self.available.saturating_sub(nanos(cost));
    }

    /// Returns `true` if a suspicion with evidence can be followed up.
    pub(crate) fn has_any(&self) -> bool {
        self.available > 0
    }

    /// Returns `true` if threads can be sampled on a mere hint: the reserve for suspicions with
    /// evidence is untouched.
    pub(crate) fn exceeds_reserve(&self) -> bool {
        self.available >= nanos(RESERVE)
    }

    /// Returns the minimum time between two checks.
    pub(crate) fn min_check_interval(&self) -> Duration {
        self.check_cost.saturating_mul(CHECK_SHARE_DIVISOR)
    }
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn used_cpu_stays_within_share_at_any_round_cost() {
        for cost in [1, 30, 300, 3_000, 80_000].map(Duration::from_micros) {
            let mut budget = SearchBudget::new();
            let mut used = Duration::ZERO;
            const END: u64 = 1_000;
            for step in 0..END * 100 {
                budget.refill(Moment::from_nanos(step * 10_000_000));
                if budget.has_any() {
                    budget.charge(cost * DEBUG_SLOWDOWN);
                    used += cost;
                }
            }
            let max_used = Duration::from_secs(END) / CPU_SHARE_DIVISOR + BUCKET_CAPACITY + cost;
            assert!(used <= max_used, "{cost:?}: {used:?}");
            // The budget is also used up if there is enough demand.
            let min_used =
                (Duration::from_secs(END) / CPU_SHARE_DIVISOR).min(cost * (END as u32 * 100));
            assert!(used + cost >= min_used, "{cost:?}: {used:?}");
        }
    }

    #[test]
    fn hints_do_not_use_the_reserve() {
        let mut budget = SearchBudget::new();
        budget.refill(Moment::from_nanos(0));
        budget.refill(Moment::from_nanos(3_600_000_000_000));
        let mut hints = 0;
        while budget.exceeds_reserve() {
            budget.charge(Duration::from_millis(1) * DEBUG_SLOWDOWN);
            hints += 1;
        }
        assert_eq!(hints, 3);
        assert!(budget.has_any());
    }

    #[test]
    fn check_interval_grows_with_check_cost() {
        let mut budget = SearchBudget::new();
        assert_eq!(budget.min_check_interval(), Duration::ZERO);
        for _ in 0..100 {
            budget.charge_check(Duration::from_micros(16) * DEBUG_SLOWDOWN);
        }
        assert_eq!(budget.min_check_interval().as_millis(), 40);
    }
}
