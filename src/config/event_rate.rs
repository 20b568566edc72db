//! Limit for the rate of file system events.
//!
//! Each event wakes the thread of `notify`, and other programs decide how many there are. A service
//! that keeps its access log next to its settings causes thousands of events per second. Above the
//! limit, polling the watched files is cheaper.

use std::time::{Duration, Instant};

use crate::base::token_bucket::TokenBucket;

/// Sustained rate in events per second. One event costs 20 to 80 us of CPU on two threads, so this
/// is at most 0.04 % of a core.
const EVENTS_PER_SECOND: f64 = 5.0;

/// Events in a burst. An editor causes 5 to 12 for a save, a ConfigMap about 20 for a swap.
const MAX_BURST: f64 = 100.0;

/// Minimum and maximum pause after too many events.
const MIN_PAUSE: Duration = Duration::from_secs(10);
const MAX_PAUSE: Duration = Duration::from_secs(320);

/// A rate limit for events.
#[derive(Debug)]
pub(super) struct EventBudget {
    bucket: TokenBucket,
    last_refill: Instant,
}

impl EventBudget {
    pub(super) fn new(now: Instant) -> Self {
        Self { bucket: TokenBucket::full(MAX_BURST, EVENTS_PER_SECOND), last_refill: now }
    }

    /// Counts an event. Returns `false` if there were too many.
    pub(super) fn try_consume(&mut self, now: Instant) -> bool {
        self.bucket.refill(now.saturating_duration_since(self.last_refill));
        self.last_refill = now;
        self.bucket.try_take()
    }
}

/// Backoff of pauses without events. It doubles while bursts follow each other, because each
/// attempt costs a burst.
#[derive(Debug)]
pub(super) struct EventPauses {
    next_pause: Duration,
}

impl EventPauses {
    pub(super) fn new() -> Self {
        Self { next_pause: MIN_PAUSE }
    }

    /// Returns the next pause. Events had been received for `active_time` before there were too
    /// many; zero if they could not be enabled.
    pub(super) fn next_pause(&mut self, active_time: Duration) -> Duration {
        if active_time >= self.next_pause {
            self.next_pause = MIN_PAUSE;
        }
        let pause = self.next_pause;
        self.next_pause = (pause * 2).min(MAX_PAUSE);
        pause
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the time in ms at which the limit is exceeded by one event every `interval_ms` ms.
    fn exceeded_at(interval_ms: u64) -> Option<u64> {
        let start = Instant::now();
        let mut budget = EventBudget::new(start);
        (0..600_000)
            .step_by(interval_ms as usize)
            .find(|&at| !budget.try_consume(start + Duration::from_millis(at)))
    }

    #[test]
    fn allows_burst_and_rejects_sustained_excess() {
        assert_eq!(exceeded_at(200), None, "5 a second");
        assert_eq!(exceeded_at(1), Some(100));
        assert!(exceeded_at(100).is_some_and(|at| (15_000..25_000).contains(&at)));
        let start = Instant::now();
        let mut budget = EventBudget::new(start);
        assert_eq!((0..500).filter(|_| budget.try_consume(start)).count(), MAX_BURST as usize);
        assert!(budget.try_consume(start + Duration::from_millis(200)), "it refills");
    }

    #[test]
    fn pauses_double_while_bursts_follow_each_other() {
        let mut pauses = EventPauses::new();
        let mut pause_after = |seconds| pauses.next_pause(Duration::from_secs(seconds)).as_secs();
        let lengths: Vec<u64> = (0..7).map(|_| pause_after(0)).collect();
        assert_eq!(lengths, [10, 20, 40, 80, 160, 320, 320]);
        assert_eq!(pause_after(320), 10, "it was quiet for as long as the pause");
        assert_eq!(pause_after(1), 20);
    }
}
