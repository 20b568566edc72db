//! Detection of numbers that rise without end: tasks, threads and descriptors that leak or pile up.
//!
//! A count of things that all end at some time falls now and then; a count of things that never end
//! does not. Only the count is available, so the minima of ten consecutive periods are compared,
//! for periods of 1 s, 10 s and 30 s. The count has risen if one of these conditions holds:
//!
//! - each minimum is above the one before it, the last is at least twice the first, and all steps
//!   but one are at least a quarter of the mean step. The last part excludes noise before and at
//!   the height of a burst;
//! - no minimum is below the one before it, and the third and all later ones are at least ten times
//!   the first and at least [`LARGE_STEP`] above it: a backlog that arrived at once and stays.
//!
//! The factor of two excludes daily growth. A daily sine from 50 to 2,000 grows by less than that
//! in any five minutes, except at its foot, where the growth is a handful. The first seconds are
//! ignored, because start-up is a rise that ends. The rule decides which number is too large.

use std::time::Duration;

use crate::base::Moment;

const PERIODS: usize = 10;

/// Number of steps between consecutive periods.
const STEPS: usize = PERIODS - 1;

const PERIOD_LENGTHS: [Duration; 3] =
    [Duration::from_secs(1), Duration::from_secs(10), Duration::from_secs(30)];

/// Initial time that is ignored.
const IGNORED_STARTUP: Duration = Duration::from_secs(7);

/// Minimum rise of a backlog that arrives at once.
const LARGE_STEP: u64 = 20_000;

/// A count that is checked for a rise without end.
#[derive(Debug, Default)]
pub(super) struct RiseDetector {
    started: Option<Moment>,
    scales: [RiseScale; PERIOD_LENGTHS.len()],
}

/// The last periods of one length.
#[derive(Debug, Default)]
struct RiseScale {
    /// Minima of complete periods, oldest first.
    minima: [u64; PERIODS],
    complete_periods: usize,
    /// Start and minimum of the current period.
    current: Option<(Moment, u64)>,
}

impl RiseDetector {
    /// Adds a value. Returns the rise, 0 if there is none, or `None` without a value.
    pub(super) fn push(&mut self, now: Moment, value: Option<u64>) -> Option<u64> {
        let Some(value) = value else {
            *self = Self::default();
            return None;
        };
        if now.since(*self.started.get_or_insert(now)) < IGNORED_STARTUP {
            return Some(0);
        }
        for (scale, length) in self.scales.iter_mut().zip(PERIOD_LENGTHS) {
            scale.push(now, length, value);
        }
        self.scales.iter().map(RiseScale::rise).max()
    }
}

impl RiseScale {
    fn push(&mut self, now: Moment, length: Duration, value: u64) {
        let Some((start, minimum)) = &mut self.current else {
            self.current = Some((now, value));
            return;
        };
        // A tick that comes slightly early also ends a period.
        if now.since(*start) < length * 19 / 20 {
            *minimum = value.min(*minimum);
            return;
        }
        self.minima.rotate_left(1);
        if let Some(last) = self.minima.last_mut() {
            *last = *minimum;
        }
        self.complete_periods = (self.complete_periods + 1).min(PERIODS);
        self.current = Some((now, value));
    }

    fn rise(&self) -> u64 {
        let [first, _, third, .., last] = self.minima;
        let total_rise = last.saturating_sub(first);
        let pairs = || self.minima.iter().zip(self.minima.iter().skip(1));
        let is_large = |(before, after): &(&u64, &u64)| {
            after.saturating_sub(**before).saturating_mul(4 * STEPS as u64) >= total_rise
        };
        let rises = last >= first.saturating_mul(2)
            && pairs().all(|(before, after)| after > before)
            && pairs().filter(is_large).count() >= STEPS - 1;
        let jumped = third.saturating_sub(first) >= LARGE_STEP
            && third >= first.saturating_mul(10)
            && pairs().all(|(before, after)| after >= before);
        if self.complete_periods == PERIODS && (rises || jumped) { total_rise } else { 0 }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Returns the largest rise, and the second of the first one, over `seconds` of a count given
    /// by `value`.
    fn rises(seconds: u32, value: impl Fn(f64) -> f64) -> (u64, Option<u32>) {
        let mut rise = RiseDetector::default();
        let mut largest = 0;
        let mut first = None;
        for tick in 0..seconds * 4 {
            let second = f64::from(tick) / 4.0;
            let now = Moment::from_nanos((second * 1e9) as u64 + 1);
            let rise_now = rise.push(now, Some(value(second) as u64)).unwrap();
            largest = largest.max(rise_now);
            if rise_now > 0 {
                first.get_or_insert(tick / 4);
            }
        }
        (largest, first)
    }

    /// Returns a reproducible number between -1 and 1.
    fn noise(second: f64) -> f64 {
        let hash = ((second * 4.0) as u64).wrapping_mul(0x9E37_79B9_7F4A_7C15) >> 40;
        hash as f64 / f64::from(1_u32 << 23) - 1.0
    }

    #[test]
    fn leak_is_detected_at_each_period_length() {
        let leak = |rate: f64| move |second: f64| 20.0 + rate * (second - 60.0).max(0.0);
        let (by, first) = rises(75, leak(50.0));
        assert!(by >= 400 && first.is_some_and(|first| first <= 71), "{by} {first:?}");
        let (by, first) = rises(300, |s| leak(5.0)(s) + 4.0 * noise(s));
        assert!(by >= 400 && first.is_some_and(|first| first <= 170), "{by} {first:?}");
        let (by, first) = rises(600, |s| leak(1.0)(s) + 10.0 * noise(s) + 10.0);
        assert!(by >= 200 && first.is_some_and(|first| first <= 400), "{by} {first:?}");
    }

    #[test]
    fn lasting_backlog_is_detected() {
        let (by, first) = rises(80, |s| if s < 60.0 { 30.0 } else { 150_000.0 });
        assert!(
            by >= 149_000 && first.is_some_and(|first| (67..72).contains(&first)),
            "{by} {first:?}"
        );
        let small = rises(80, |s| if s < 60.0 { 30.0 } else { 15_000.0 });
        assert_eq!(small, (0, None), "a step may be a burst of requests");
        let short = rises(80, |s| if (60.0..62.0).contains(&s) { 150_000.0 } else { 30.0 });
        assert_eq!(short, (0, None));
    }

    #[test]
    fn startup_peaks_and_bursts_are_not_detected() {
        let start = rises(120, |s| (s * 400.0).min(2000.0) + 50.0 * noise(s));
        assert_eq!(start.0, 0, "2,000 connections in 5 s");
        let slow = rises(120, |s| (s * 150.0).min(2000.0) + 5.0 * noise(s));
        assert_eq!(slow.0, 0, "2,000 connections in 13 s");
        let day = |low: f64, high: f64| {
            move |s: f64| {
                let wave = (1.0 - (s / 86_400.0 * std::f64::consts::TAU).cos()) / 2.0;
                low + (high - low) * wave + 0.05 * low * noise(s)
            }
        };
        assert!(rises(86_400, day(50.0, 2000.0)).0 < 100);
        let burst = rises(600, |s| if s % 60.0 < 20.0 { 900.0 + 90.0 * noise(s) } else { 10.0 });
        assert_eq!(burst.0, 0);
        // A rise within 5 or 7 s. The noise before and after rises three times in a row now and
        // then.
        for ramp in [5.0, 7.0] {
            let wave = |s: f64| ((s % (ramp * 10.0)) / ramp - 2.0).clamp(0.0, 1.0);
            let burst = rises(12_000, |s| 10.0 + wave(s) * 900.0 + 9.0 * noise(s));
            assert_eq!(burst.0, 0, "within {ramp} s");
        }
        let steady = rises(600, |_| 5000.0);
        assert_eq!(steady.0, 0);
    }
}
