//! Hold times of conditions: `for`, with a tolerance for single ticks.

use std::time::Duration;

use crate::base::Moment;

/// Share of `for` in which a condition may be false without a restart. A CPU load that is measured
/// at 89 % in one of forty ticks has not ended.
const TOLERATED: f64 = 0.2;

/// The time for which a condition has held, with interruptions of at most a fifth of its `for`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HeldTime(Option<Period>);

#[derive(Clone, Copy, Debug)]
struct Period {
    begun: Moment,
    /// Time of the last recorded tick.
    last: Moment,
    /// Time since `begun` in which the condition was false.
    missed: Duration,
}

impl HeldTime {
    /// Records a tick at which the condition is true. Returns the start of its hold time, which
    /// includes tolerated interruptions.
    pub(super) fn record_true(&mut self, now: Moment, need: Duration) -> Moment {
        let period = self.0.get_or_insert(Period { begun: now, last: now, missed: Duration::ZERO });
        period.last = now;
        // If it has held for longer, only the last `need` counts, and missed time is scaled with
        // it.
        let held = now.since(period.begun);
        if held > need {
            period.missed = period.missed.mul_f64(need.as_secs_f64() / held.as_secs_f64());
            period.begun = period.begun + (held - need);
        }
        period.begun
    }

    /// Records a tick at which the condition is false. Resets if it was false for more than a fifth
    /// of `need`.
    pub(super) fn record_false(&mut self, now: Moment, need: Duration) {
        let Some(period) = &mut self.0 else { return };
        period.missed += now.since(period.last);
        period.last = now;
        if period.missed > need.mul_f64(TOLERATED) || need.is_zero() {
            self.0 = None;
        }
    }

    /// Moves the period by `time`, in which nothing was measured.
    pub(super) fn postpone(&mut self, time: Duration) {
        if let Some(period) = &mut self.0 {
            period.begun = period.begun + time;
            period.last = period.last + time;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NEED: Duration = Duration::from_secs(10);

    /// Returns the tick, four a second, at which a condition with this history has held for `need`.
    fn holds_at(need: Duration, mut is_true: impl FnMut(u64) -> bool) -> Option<u64> {
        let mut held = HeldTime::default();
        (0..4000).find(|&tick| {
            let now = Moment::from_nanos(1 + tick * 250_000_000);
            if !is_true(tick) {
                held.record_false(now, need);
                return false;
            }
            now.since(held.record_true(now, need)) >= need
        })
    }

    #[test]
    fn one_tick_in_ten_does_not_restart_the_time() {
        assert_eq!(holds_at(NEED, |_| true), Some(40));
        assert_eq!(holds_at(NEED, |tick| tick % 10 != 9), Some(40));
        assert_eq!(holds_at(NEED, |tick| !(10..18).contains(&tick)), Some(40), "two seconds");
        assert_eq!(holds_at(NEED, |tick| !(10..19).contains(&tick)), Some(59), "more than two");
    }

    #[test]
    fn half_of_the_time_is_not_enough() {
        assert_eq!(holds_at(NEED, |tick| tick % 2 == 0), None);
        assert_eq!(holds_at(NEED, |tick| tick % 3 != 0), None);
        // 5 s of every minute.
        assert_eq!(holds_at(NEED, |tick| tick % 240 < 20), None);
    }

    #[test]
    fn short_times_tolerate_nothing() {
        let second = Duration::from_secs(1);
        assert_eq!(holds_at(second, |tick| tick % 4 != 3), None);
        assert_eq!(holds_at(second, |_| true), Some(4));
        assert_eq!(holds_at(Duration::ZERO, |tick| tick == 7), Some(7));
    }

    #[test]
    fn a_condition_that_has_held_for_hours_keeps_its_tolerance() {
        let mut held = HeldTime::default();
        for tick in 0..40_000_u64 {
            let now = Moment::from_nanos(1 + tick * 250_000_000);
            if tick % 10 == 9 {
                held.record_false(now, NEED);
            } else if tick > 40 {
                assert!(now.since(held.record_true(now, NEED)) >= NEED, "{tick}");
            } else {
                held.record_true(now, NEED);
            }
        }
    }
}
