//! CPU budget of the search for stalls of unrecorded polls.
//!
//! A token bucket of CPU time, not of checks or rounds: the cost of a check depends on the number
//! of threads, on the depth of their stacks and on the cache state. So the limit holds under any
//! load.

use std::time::Duration;

use crate::base::Moment;

/// Divisor of the CPU share: 1 / 1000 of a core, 0.1 %. The rest of the limit of 0.2 % covers
/// wake-ups, which no thread clock shows in full.
const SHARE: u32 = 1000;

/// Capacity of the bucket, and so the size of a burst above the share.
const MAX_SAVED: Duration = Duration::from_millis(6);

/// Reserve for suspicions with evidence. Confirming that a thread computes takes about 10 rounds of
/// 0.3 ms.
const RESERVE: Duration = Duration::from_millis(4);

/// Divisor of the share of checks alone: 1 / 2000 of a core, 0.05 %.
const LOOK_SHARE: u32 = 2000;

/// Cost of waking the agent thread for a check, in addition to what its CPU clock shows.
const WAKE_UP: Duration = Duration::from_micros(4);

/// Slow-down of unoptimized code, about 8 times. Costs are divided by it, because debug builds do
/// not run in production.
const SLOWNESS: u32 = if cfg!(debug_assertions) { 8 } else { 1 };

/// A token bucket of CPU time. It can go into debt, because a cost is known only afterwards.
#[derive(Debug)]
pub(crate) struct SearchBudget {
    /// In nanoseconds.
    saved: i64,
    refilled: Option<Moment>,
    /// Moving average of the cost of a check.
    look: Duration,
}

impl SearchBudget {
    pub(crate) fn new() -> Self {
        Self { saved: nanos(RESERVE), refilled: None, look: Duration::ZERO }
    }

    /// Adds the budget accrued until `now`.
    pub(crate) fn refill(&mut self, now: Moment) {
        let passed = self.refilled.map_or(Duration::ZERO, |before| now.since(before));
        self.refilled = Some(now);
        self.saved = (self.saved + nanos(passed / SHARE)).min(nanos(MAX_SAVED));
    }

    /// Charges used CPU time.
    pub(crate) fn charge(&mut self, cost: Duration) {
        self.saved = self.saved.saturating_sub(nanos(cost / SLOWNESS));
    }

    /// Charges a check and updates the average cost of a check.
    pub(crate) fn charge_look(&mut self, cost: Duration) {
        let cost = cost / SLOWNESS + WAKE_UP;
        self.look = if self.look.is_zero() { cost } else { (self.look * 7 + cost) / 8 };
        self.saved = self.saved.saturating_sub(nanos(cost));
    }

    /// Returns `true` if a suspicion with evidence can be followed up.
    pub(crate) fn has_any(&self) -> bool {
        self.saved > 0
    }

    /// Returns `true` if threads can be sampled on a mere hint: the reserve for suspicions with
    /// evidence is untouched.
    pub(crate) fn has_plenty(&self) -> bool {
        self.saved >= nanos(RESERVE)
    }

    /// Returns the minimum time between two checks.
    pub(crate) fn pace(&self) -> Duration {
        self.look.saturating_mul(LOOK_SHARE)
    }
}

fn nanos(time: Duration) -> i64 {
    i64::try_from(time.as_nanos()).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn whatever_rounds_cost_no_more_is_used_than_the_share() {
        for cost in [1, 30, 300, 3_000, 80_000].map(Duration::from_micros) {
            let (mut budget, mut used, mut rounds) = (SearchBudget::new(), Duration::ZERO, 0u32);
            const END: u64 = 1_000;
            for step in 0..END * 100 {
                budget.refill(Moment::from_nanos(step * 10_000_000));
                if budget.has_any() {
                    budget.charge(cost * SLOWNESS);
                    (used, rounds) = (used + cost, rounds + 1);
                }
            }
            let most = Duration::from_secs(END) / SHARE + MAX_SAVED + cost;
            assert!(used <= most, "{cost:?}: {used:?}");
            // The budget is also used up if there is enough demand.
            let least = (Duration::from_secs(END) / SHARE).min(cost * (END as u32 * 100));
            assert!(used + cost >= least, "{cost:?}: {used:?}");
        }
    }

    #[test]
    fn hints_leave_the_reserve_to_suspicions_with_evidence() {
        let mut budget = SearchBudget::new();
        budget.refill(Moment::from_nanos(0));
        budget.refill(Moment::from_nanos(3_600_000_000_000));
        let mut hints = 0;
        while budget.has_plenty() {
            budget.charge(Duration::from_millis(1) * SLOWNESS);
            hints += 1;
        }
        assert_eq!(hints, 3);
        assert!(budget.has_any());
    }

    #[test]
    fn looks_that_cost_more_come_less_often() {
        let mut budget = SearchBudget::new();
        assert_eq!(budget.pace(), Duration::ZERO);
        for _ in 0..100 {
            budget.charge_look(Duration::from_micros(16) * SLOWNESS);
        }
        assert_eq!(budget.pace().as_millis(), 40);
    }
}
