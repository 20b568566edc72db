//! The timer of the agent loop.

use std::time::Duration;

use tokio::time::Instant;

use crate::os::clock::timerfd::TimerFd;

/// A periodic timer whose first tick is due at once. Missed ticks are skipped; later ticks keep
/// their phase.
///
/// tokio's `Interval` is not used: it wakes an idle process twice per tick (`os::clock::timerfd`).
/// Resetting an `Interval` also writes to its runtime's `eventfd`, so that the runtime polls for
/// I/O once more.
pub(super) struct TickTimer {
    timer: TimerFd,
    period: Duration,
    due: Instant,
}

impl TickTimer {
    /// Creates a timer. Must be called on the agent's runtime.
    pub(super) fn new(period: Duration) -> Self {
        Self { timer: TimerFd::on_current_runtime(), period, due: Instant::now() }
    }

    /// Restarts the timer if `period` differs from the current one. The next tick is then due at
    /// once.
    pub(super) fn set_period(&mut self, period: Duration) {
        if period != self.period {
            self.period = period;
            self.due = Instant::now();
        }
    }

    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// Waits for the next tick. Cancel safe.
    pub(super) async fn tick(&mut self) {
        self.timer.sleep_until(self.due).await;
        self.due = next_tick(self.due, self.period, Instant::now());
    }
}

/// Returns the first tick after `now`, given that ticks are `period` apart and `due` has passed.
fn next_tick(due: Instant, period: Duration, now: Instant) -> Instant {
    let delay = now.saturating_duration_since(due);
    let since_last = delay.as_nanos().checked_rem(period.as_nanos()).unwrap_or(0);
    now + period - Duration::from_nanos(since_last as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn missed_ticks_are_skipped_and_phase_is_kept() {
        let due = Instant::now();
        let period = Duration::from_nanos(250);
        for (late, expected) in
            [(0, 250), (1, 250), (249, 250), (250, 500), (251, 500), (1_000_001, 1_000_250)]
        {
            let found = next_tick(due, period, due + Duration::from_nanos(late));
            assert_eq!(found - due, Duration::from_nanos(expected), "{late} ns late");
        }
    }

    /// Returns `true` if a tick is due.
    async fn is_tick_due(ticker: &mut TickTimer) -> bool {
        tokio::time::timeout(Duration::ZERO, ticker.tick()).await.is_ok()
    }

    #[test]
    fn first_tick_is_due_at_once_also_after_period_change() {
        let hour = Duration::from_secs(3600);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut ticker = TickTimer::new(hour);
            assert!(is_tick_due(&mut ticker).await && !is_tick_due(&mut ticker).await);
            ticker.set_period(hour);
            assert!(!is_tick_due(&mut ticker).await, "it is the same period");
            ticker.set_period(hour / 2);
            assert!(is_tick_due(&mut ticker).await && !is_tick_due(&mut ticker).await);
        });
    }
}
