//! Growth rate of a metric.

use std::time::Duration;

use crate::base::{Moment, least_squares};

/// Number of values: half a minute is long enough to average out allocation bursts, and short
/// enough to show a leak in time.
const MAX_POINTS: usize = 30;
/// Minimum interval between values.
const MIN_INTERVAL: Duration = Duration::from_millis(950);
/// Minimum number of values for a slope.
const MIN_POINTS: usize = 10;

/// Least-squares slope of the last half minute.
#[derive(Debug, Default)]
pub(super) struct GrowthTrend {
    points: [(Moment, f64); MAX_POINTS],
    next: usize,
    len: usize,
    /// Slope at the last value added.
    slope: Option<f64>,
}

impl GrowthTrend {
    /// Adds a value unless the last one was added just before. Returns the growth in units per
    /// second.
    pub(super) fn push(&mut self, now: Moment, value: Option<f64>) -> Option<f64> {
        let last = self.points.get((self.next + MAX_POINTS - 1) % MAX_POINTS).map(|point| point.0);
        let is_due = self.len == 0 || last.is_none_or(|last| now.since(last) >= MIN_INTERVAL);
        if let (true, Some(value)) = (is_due, value) {
            if let Some(slot) = self.points.get_mut(self.next) {
                *slot = (now, value);
            }
            self.next = (self.next + 1) % MAX_POINTS;
            self.len = (self.len + 1).min(MAX_POINTS);
            self.slope = self.slope();
        }
        self.slope
    }

    fn slope(&self) -> Option<f64> {
        if self.len < MIN_POINTS {
            return None;
        }
        let start = self.points.iter().take(self.len).map(|point| point.0).min()?;
        let points = self.points.iter().take(self.len);
        least_squares::slope(points.map(|(at, value)| (at.since(start).as_secs_f64(), *value)))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn growth_is_slope_of_last_30_seconds() {
        let mut trend = GrowthTrend::default();
        let mut at = 0;
        let mut push = |value: f64| {
            at += 250_000_000;
            trend.push(Moment::from_nanos(at), Some(value))
        };
        for tick in 0..36 {
            assert_eq!(push(f64::from(tick)), None, "{tick}");
        }
        let grown = (36..200).map(|tick| push(f64::from(tick))).last().flatten().unwrap();
        assert!((grown - 4.0).abs() < 1e-9, "{grown}");
        let flat = (0..130).map(|_| push(199.0)).last().flatten().unwrap();
        assert!(flat.abs() < 1e-9, "{flat}");
        let fall = (0..130).map(|tick| push(-f64::from(tick))).last().flatten().unwrap();
        assert!((fall + 4.0).abs() < 1e-9, "{fall}");
    }
}
