//! Hold times of conditions: `for`, with a tolerance for single ticks.

use std::time::Duration;

use crate::base::Moment;

/// Share of `for` in which a condition may be false without a restart. A CPU load that is measured
/// at 89 % in one of forty ticks has not ended.
const MAX_FALSE_FRACTION: f64 = 0.2;

/// The time for which a condition has held, with interruptions of at most a fifth of its `for`.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct HeldTime(Option<Period>);

#[derive(Clone, Copy, Debug)]
struct Period {
    start: Moment,
    /// Time of the last recorded tick.
    last_tick: Moment,
    /// Time since `start` in which the condition was false.
    false_time: Duration,
}

impl HeldTime {
    /// Records a tick at which the condition is true. Returns the start of its hold time, which
    /// includes tolerated interruptions.
    pub(super) fn record_true(&mut self, now: Moment, hold_time: Duration) -> Moment {
        let period =
            self.0.get_or_insert(Period { start: now, last_tick: now, false_time: Duration::ZERO });
        period.last_tick = now;
        // If it has held for longer, only the last `hold_time` counts, and missed time is scaled
        // with it.
        let held_time = now.since(period.start);
        if held_time > hold_time {
            period.false_time =
                period.false_time.mul_f64(hold_time.as_secs_f64() / held_time.as_secs_f64());
            period.start = period.start + (held_time - hold_time);
        }
        period.start
    }

    /// Records a tick at which the condition is false. Resets if it was false for more than a fifth
    /// of `hold_time`.
    pub(super) fn record_false(&mut self, now: Moment, hold_time: Duration) {
        let Some(period) = &mut self.0 else { return };
        period.false_time += now.since(period.last_tick);
        period.last_tick = now;
        if period.false_time > hold_time.mul_f64(MAX_FALSE_FRACTION) || hold_time.is_zero() {
            self.0 = None;
        }
    }

    /// Moves the period by `time`, in which nothing was measured.
    pub(super) fn shift(&mut self, time: Duration) {
        if let Some(period) = &mut self.0 {
            period.start = period.start + time;
            period.last_tick = period.last_tick + time;
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const HOLD_TIME: Duration = Duration::from_secs(10);

    /// Returns the tick, four a second, at which a condition with this history has held for
    /// `hold_time`.
    fn first_held_tick(hold_time: Duration, mut is_true: impl FnMut(u64) -> bool) -> Option<u64> {
        let mut held = HeldTime::default();
        (0..4000).find(|&tick| {
            let now = Moment::from_nanos(1 + tick * 250_000_000);
            if !is_true(tick) {
                held.record_false(now, hold_time);
                return false;
            }
            now.since(held.record_true(now, hold_time)) >= hold_time
        })
    }

    #[test]
    fn short_interruptions_do_not_restart_hold_time() {
        assert_eq!(first_held_tick(HOLD_TIME, |_| true), Some(40));
        assert_eq!(first_held_tick(HOLD_TIME, |tick| tick % 10 != 9), Some(40));
        assert_eq!(
            first_held_tick(HOLD_TIME, |tick| !(10..18).contains(&tick)),
            Some(40),
            "two seconds"
        );
        assert_eq!(
            first_held_tick(HOLD_TIME, |tick| !(10..19).contains(&tick)),
            Some(59),
            "more than two"
        );
    }

    #[test]
    fn condition_false_too_often_never_holds() {
        assert_eq!(first_held_tick(HOLD_TIME, |tick| tick % 2 == 0), None);
        assert_eq!(first_held_tick(HOLD_TIME, |tick| tick % 3 != 0), None);
        // 5 s of every minute.
        assert_eq!(first_held_tick(HOLD_TIME, |tick| tick % 240 < 20), None);
    }

    #[test]
    fn short_hold_times_tolerate_no_false_tick() {
        let second = Duration::from_secs(1);
        assert_eq!(first_held_tick(second, |tick| tick % 4 != 3), None);
        assert_eq!(first_held_tick(second, |_| true), Some(4));
        assert_eq!(first_held_tick(Duration::ZERO, |tick| tick == 7), Some(7));
    }

    #[test]
    fn tolerance_is_unchanged_after_hours() {
        let mut held = HeldTime::default();
        for tick in 0..40_000_u64 {
            let now = Moment::from_nanos(1 + tick * 250_000_000);
            if tick % 10 == 9 {
                held.record_false(now, HOLD_TIME);
            } else if tick > 40 {
                assert!(now.since(held.record_true(now, HOLD_TIME)) >= HOLD_TIME, "{tick}");
            } else {
                held.record_true(now, HOLD_TIME);
            }
        }
    }
}
