//! The CPU time that the search for stalls of unrecorded polls may use.
//!
//! A token bucket in CPU time that was used, not in looks or rounds: what a look costs depends on the number of
//! threads, on how deep their stacks are and on how cold the caches are. So the ceiling holds on any load.

use std::time::Duration;

use crate::base::Moment;

/// One part of so many of a core: 0.1 %. The rest of the 0.2 % is for wake-ups, which no thread's clock shows whole.
const SHARE: u32 = 1000;

/// Saved up at most, which is what a burst takes beyond the share.
const MAX_SAVED: Duration = Duration::from_millis(6);

/// What is kept for suspicions with evidence. Confirming that a thread computes takes about 10 rounds of 0.3 ms.
const RESERVE: Duration = Duration::from_millis(4);

/// What the looks alone may use of it: 0.05 % of a core.
const LOOK_SHARE: u32 = 2000;

/// Waking the agent's thread for a look, beyond what its clock shows.
const WAKE_UP: Duration = Duration::from_micros(4);

/// Unoptimized code takes some 8 times as long, and is not what runs in production.
const SLOWNESS: u32 = if cfg!(debug_assertions) { 8 } else { 1 };

/// A token bucket of CPU time. May be in debt, because costs are known afterwards.
#[derive(Debug)]
pub(super) struct Budget {
    /// In nanoseconds.
    saved: i64,
    refilled: Option<Moment>,
    /// The mean cost of a look.
    look: Duration,
}

impl Budget {
    pub(super) fn new() -> Self {
        Self { saved: nanos(RESERVE), refilled: None, look: Duration::ZERO }
    }

    /// Adds what has accrued by `now`.
    pub(super) fn refill(&mut self, now: Moment) {
        let passed = self.refilled.map_or(Duration::ZERO, |before| now.since(before));
        self.refilled = Some(now);
        self.saved = (self.saved + nanos(passed / SHARE)).min(nanos(MAX_SAVED));
    }

    /// Charges CPU time that was used.
    pub(super) fn charge(&mut self, cost: Duration) {
        self.saved = self.saved.saturating_sub(nanos(cost / SLOWNESS));
    }

    /// Charges a look.
    pub(super) fn charge_look(&mut self, cost: Duration) {
        let cost = cost / SLOWNESS + WAKE_UP;
        self.look = if self.look.is_zero() { cost } else { (self.look * 7 + cost) / 8 };
        self.saved = self.saved.saturating_sub(nanos(cost));
    }

    /// Whether a suspicion that has evidence may be followed up.
    pub(super) fn has_any(&self) -> bool {
        self.saved > 0
    }

    /// Whether threads may be asked on no more than a hint: enough is left for a suspicion with evidence.
    pub(super) fn has_plenty(&self) -> bool {
        self.saved >= nanos(RESERVE)
    }

    /// The least time between two looks.
    pub(super) fn pace(&self) -> Duration {
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
            let (mut budget, mut used, mut rounds) = (Budget::new(), Duration::ZERO, 0u32);
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
            // And all of it is used where there is a use for it.
            let least = (Duration::from_secs(END) / SHARE).min(cost * (END as u32 * 100));
            assert!(used + cost >= least, "{cost:?}: {used:?}");
        }
    }

    #[test]
    fn hints_leave_the_reserve_to_suspicions_with_evidence() {
        let mut budget = Budget::new();
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
        let mut budget = Budget::new();
        assert_eq!(budget.pace(), Duration::ZERO);
        for _ in 0..100 {
            budget.charge_look(Duration::from_micros(16) * SLOWNESS);
        }
        assert_eq!(budget.pace().as_millis(), 40);
    }
}
