//! When the loop ticks.

use std::time::Duration;

use tokio::time::Instant;

use crate::os::alarm::Alarm;

/// Comes every period, the first time at once. Ticks that were missed are left out, and those after them come as
/// if none had been.
///
/// Not tokio's `Interval`: that wakes an idle process twice for each tick (`os::alarm`), and sends its own runtime
/// once more through the poller by the `write` that says it is set again.
pub(super) struct Ticker {
    alarm: Alarm,
    period: Duration,
    due: Instant,
}

impl Ticker {
    /// To be called on the agent's runtime.
    pub(super) fn new(period: Duration) -> Self {
        Self { alarm: Alarm::here(), period, due: Instant::now() }
    }

    /// Begins anew, if this is another period.
    pub(super) fn set_period(&mut self, period: Duration) {
        if period != self.period {
            self.period = period;
            self.due = Instant::now();
        }
    }

    /// Returns when the next tick is due.
    pub(super) fn due(&self) -> Instant {
        self.due
    }

    /// The next tick. Nothing is lost when the future is dropped.
    pub(super) async fn tick(&mut self) {
        self.alarm.sleep_until(self.due).await;
        self.due = next(self.due, self.period, Instant::now());
    }
}

/// The first tick after `now`, of those a period apart of which `due` is one that is over.
fn next(due: Instant, period: Duration, now: Instant) -> Instant {
    let late = now.saturating_duration_since(due);
    let since_last = late.as_nanos().checked_rem(period.as_nanos()).unwrap_or(0);
    now + period - Duration::from_nanos(since_last as u64)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_keep_to_their_beat_and_those_that_were_missed_are_left_out() {
        let due = Instant::now();
        let period = Duration::from_nanos(250);
        for (late, expected) in
            [(0, 250), (1, 250), (249, 250), (250, 500), (251, 500), (1_000_001, 1_000_250)]
        {
            let found = next(due, period, due + Duration::from_nanos(late));
            assert_eq!(found - due, Duration::from_nanos(expected), "{late} ns late");
        }
    }

    /// Whether a tick is due.
    async fn ticks(ticker: &mut Ticker) -> bool {
        tokio::time::timeout(Duration::ZERO, ticker.tick()).await.is_ok()
    }

    #[test]
    fn the_first_tick_comes_at_once_and_so_does_the_first_of_another_period() {
        let hour = Duration::from_secs(3600);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async {
            let mut ticker = Ticker::new(hour);
            assert!(ticks(&mut ticker).await && !ticks(&mut ticker).await);
            ticker.set_period(hour);
            assert!(!ticks(&mut ticker).await, "it is the same period");
            ticker.set_period(hour / 2);
            assert!(ticks(&mut ticker).await && !ticks(&mut ticker).await);
        });
    }
}
