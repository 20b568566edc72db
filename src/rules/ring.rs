//! The recent values of one metric.

use std::ops::Range;

use crate::base::{Moment, least_squares};

/// Number of values in an average, and the minimum before the first decision; 10 as in holmes.
pub const WINDOW: usize = 10;

/// Half of the [`WINDOW`]: a rise must show in both halves.
const HALF_WINDOW: usize = WINDOW / 2;

/// A ring buffer of the last [`WINDOW`] values.
#[derive(Clone, Debug, Default)]
pub(super) struct ValueRing {
    values: [f64; WINDOW],
    times: [Moment; WINDOW],
    next: usize,
    len: usize,
}

impl ValueRing {
    /// Adds a value. Overwrites the oldest if the ring is full.
    pub(super) fn push(&mut self, now: Moment, value: f64) {
        if let (Some(slot), Some(time)) =
            (self.values.get_mut(self.next), self.times.get_mut(self.next))
        {
            *slot = value;
            *time = now;
        }
        self.next = (self.next + 1) % WINDOW;
        self.len = (self.len + 1).min(WINDOW);
    }

    /// Returns the number of values.
    pub(super) fn len(&self) -> usize {
        self.len
    }

    pub(super) fn is_full(&self) -> bool {
        self.len == WINDOW
    }

    /// Returns the sum of the values.
    pub(super) fn sum(&self) -> f64 {
        self.values.iter().take(self.len).sum()
    }

    /// Returns the average of the values, or 0 if there are none.
    pub(super) fn average(&self) -> f64 {
        self.sum() / self.len.max(1) as f64
    }

    /// Returns `true` if the average is below `value`. Sums differences, so that it is exactly
    /// `false` if all values equal `value`; a rounded average would not guarantee that.
    pub(super) fn is_average_below(&self, value: f64) -> bool {
        self.values.iter().take(self.len).map(|old| value - old).sum::<f64>() > 0.0
    }

    /// Returns the rate of rise per second: the smaller of the slopes of the older and the newer
    /// half. A step shows in at most one half, so it is not a rise; noise would have to rise in
    /// both. Returns 0 if the ring is not full or the value does not rise.
    pub(super) fn rise_rate(&self) -> f64 {
        if !self.is_full() {
            return 0.0;
        }
        let start = self.times.get(self.next).copied().unwrap_or_default();
        let point = |age: usize| {
            let at = (self.next + age) % WINDOW;
            let time = self.times.get(at).map_or(0.0, |time| time.since(start).as_secs_f64());
            (time, self.values.get(at).copied().unwrap_or_default())
        };
        // `None` if all values have the same time.
        let slope = |ages: Range<usize>| least_squares::slope(ages.map(point)).unwrap_or(0.0);
        slope(0..HALF_WINDOW).min(slope(HALF_WINDOW..WINDOW)).max(0.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(millis: u64) -> Moment {
        Moment::from_nanos(millis * 1_000_000)
    }

    /// Returns a ring with `values`, four a second.
    fn ring_of(values: impl IntoIterator<Item = f64>) -> ValueRing {
        let mut ring = ValueRing::default();
        for (n, value) in values.into_iter().enumerate() {
            ring.push(at(n as u64 * 250), value);
        }
        ring
    }

    #[test]
    fn push_overwrites_oldest_value_when_full() {
        let mut ring = ValueRing::default();
        assert_eq!((ring.len(), ring.average()), (0, 0.0));
        for n in 1..WINDOW {
            ring.push(at(n as u64), n as f64);
        }
        assert_eq!((ring.len(), ring.is_full(), ring.average()), (9, false, 5.0));
        ring.push(at(10), 10.0);
        assert_eq!((ring.len(), ring.is_full(), ring.average()), (10, true, 5.5));
        ring.push(at(11), 21.0);
        assert_eq!((ring.len(), ring.is_full(), ring.average()), (10, true, 7.5));
    }

    #[test]
    fn constant_value_is_not_above_its_average() {
        for value in [0.1, 0.0, -0.1, 1e300, 1.0 / 3.0] {
            let ring = ring_of([value; WINDOW]);
            assert!(!ring.is_average_below(value), "{value}");
        }
    }

    #[test]
    fn rise_requires_positive_slope_in_both_halves() {
        assert_eq!(ring_of((0..9).map(f64::from)).rise_rate(), 0.0, "not full");
        assert_eq!(ring_of((0..10).map(f64::from)).rise_rate(), 4.0);
        assert_eq!(ring_of((0..33).map(f64::from)).rise_rate(), 4.0, "wherever the ring begins");
        assert_eq!(ring_of((0..10).rev().map(f64::from)).rise_rate(), 0.0, "a fall");
        for step in 0..=WINDOW {
            let values = (0..WINDOW).map(|n| if n < step { 40.0 } else { 78.0 });
            assert_eq!(ring_of(values).rise_rate(), 0.0, "a step at {step}");
        }
        let mut same_time = ValueRing::default();
        (0..10).for_each(|n| same_time.push(at(5), f64::from(n)));
        assert_eq!(same_time.rise_rate(), 0.0, "no time has passed");
    }
}
