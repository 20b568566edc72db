//! Histograms of values that the service records often, such as request durations.
//!
//! A histogram is an array of counters, one per range of values. Recording is one atomic addition,
//! without lock or allocation, for any value. There are 32 ranges per doubling:
//!
//! ```text
//!  0 ... 2^-20 ........ 1 ............... 2 ............... 4 ........ 2^40 ... more
//!  │  0  │  32 each  ...│ 1.03 1.06 ...   │ 2.06 2.13 ...   │  ...       │  1921
//! ```
//!
//! A range is (low, high], and a value is reported as the middle of its range. Percentiles and the
//! maximum are therefore off by 1.6 % at most (half of 1/32). Values up to 2^-20 (0.95 millionths)
//! are reported as 0, and values above 2^40 (1.1 * 10^12) as 2^40. In seconds that is a microsecond
//! to 35,000 years, in bytes a terabyte. A range is the upper bits of the float itself, so finding
//! it takes a shift.
//!
//! Each takes 15 KiB, and as much again in the reader, which stores the counters of a second ago.
//! The difference is the values recorded since. Only doublings that were ever used are read.
//!
//! hdrhistogram has the same error, but its counters are not atomic: recording from many threads
//! requires a lock, or a channel and a thread that merges. A sketch (t-digest, DDSketch) merges
//! well, which is not needed here, and moves its ranges while it records.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use crate::metrics::Error;
use crate::metrics::registry::MetricRegistry;
use crate::model::HistogramReading;

/// Maximum number of histograms: 2 MiB including the reader's copies.
const MAX_HISTOGRAMS: usize = 64;

/// Lowest and highest distinct exponents of two.
const MIN_EXPONENT: i32 = -20;
const MAX_EXPONENT: i32 = 40;
const DOUBLINGS: usize = (MAX_EXPONENT - MIN_EXPONENT) as usize;
/// Ranges per doubling.
const RANGES_PER_DOUBLING: usize = 32;
/// Bits of a float below those that select the range: 52 bits of fraction minus five.
const RANGE_SHIFT: u32 = 52 - 5;
/// Bits above `RANGE_SHIFT` of a value just above 2^`MIN_EXPONENT`.
const FIRST_RANGE_BITS: u64 = (((1023 + MIN_EXPONENT) as u64) << 52) >> RANGE_SHIFT;
/// Number of counters: two more than ranges, for smaller and larger values.
const SLOT_COUNT: usize = DOUBLINGS * RANGES_PER_DOUBLING + 2;

/// Histograms of one agent.
#[derive(Clone, Debug, Default)]
pub struct Histograms(MetricRegistry<Histogram>);

impl Histograms {
    /// Creates an empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the histogram `name`, and creates it empty if it does not exist. Takes a lock: keep
    /// the histogram.
    ///
    /// # Errors
    ///
    /// [`Error::Name`] unless `name` is 1 to 64 lower-case letters, digits, `_` and `.`;
    /// [`Error::TooMany`] if it would be more than 64.
    pub fn histogram(&self, name: &str) -> Result<Histogram, Error> {
        self.0.get(name, "histogram", MAX_HISTOGRAMS)
    }

    /// Returns all values recorded by each histogram, in order of creation.
    pub fn distributions(&self) -> Vec<Distribution> {
        let all = self.0.lock();
        all.iter().map(|(name, histogram)| histogram.distribution(name)).collect()
    }
}

/// A histogram of the service. Clones refer to the same histogram.
#[derive(Clone, Debug, Default)]
pub struct Histogram(Arc<HistogramCounts>);

struct HistogramCounts {
    counts: [AtomicU64; SLOT_COUNT],
    /// Bitmap of the doublings that were ever used.
    used_doublings: AtomicU64,
    refused: AtomicU64,
}

impl Default for HistogramCounts {
    fn default() -> Self {
        let counts = [const { AtomicU64::new(0) }; SLOT_COUNT];
        Self { counts, used_doublings: AtomicU64::new(0), refused: AtomicU64::new(0) }
    }
}

impl fmt::Debug for HistogramCounts {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slots").field("used", &self.used_doublings).finish_non_exhaustive()
    }
}

impl Histogram {
    /// Records `value`, in a unit of the service's choice: seconds, bytes, rows. A value below zero
    /// or not finite is counted as refused.
    pub fn record(&self, value: f64) {
        let HistogramCounts { counts, used_doublings: used, refused } = &*self.0;
        let index = slot_index(value);
        let Some(count) = index.and_then(|place| counts.get(place)) else {
            refused.fetch_add(1, Ordering::Relaxed);
            return;
        };
        count.fetch_add(1, Ordering::Relaxed);
        let bit = index.map_or(0, |place| 1 << slot_doubling(place));
        if used.load(Ordering::Relaxed) & bit == 0 {
            used.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// Returns the slots that may not be empty, with their counts.
    fn counts(&self) -> impl Iterator<Item = (usize, u64)> {
        let used = self.0.used_doublings.load(Ordering::Relaxed);
        let slots =
            (0..=DOUBLINGS + 1).filter(move |bit| used >> bit & 1 == 1).flat_map(doubling_slots);
        slots.filter_map(|slot| Some((slot, self.0.counts.get(slot)?.load(Ordering::Relaxed))))
    }

    fn distribution(&self, name: &Arc<str>) -> Distribution {
        let mut distribution = Distribution {
            name: name.to_string(),
            count: 0,
            sum: 0.0,
            refused: self.0.refused.load(Ordering::Relaxed),
            buckets: Vec::new(),
        };
        for (index, count) in self.counts() {
            distribution.count += count;
            distribution.sum += slot_midpoint(index) * count as f64;
            let upper_bound = f64::powi(2.0, MIN_EXPONENT + slot_doubling(index) as i32);
            match distribution.buckets.last_mut() {
                Some(last) if last.upper_bound >= upper_bound => last.count = distribution.count,
                _ if slot_doubling(index) > DOUBLINGS => {}
                _ => distribution.buckets.push(Bucket { upper_bound, count: distribution.count }),
            }
        }
        distribution
    }
}

/// All values recorded by a histogram.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Distribution {
    /// Name of the histogram.
    pub name: String,
    /// Number of values.
    pub count: u64,
    /// Sum of the values, off by 1.6 % at most.
    pub sum: f64,
    /// Number of values that were not finite or below zero. They are not in `count`.
    pub refused: u64,
    /// Cumulative counts by power of two, lowest first, within the range of recorded values.
    pub buckets: Vec<Bucket>,
}

/// A bound and the number of values at or below it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bucket {
    /// Upper bound, inclusive.
    #[serde(rename = "le")]
    pub upper_bound: f64,
    /// Number of values at or below the bound.
    pub count: u64,
}

/// The reader's state of the histograms.
#[derive(Debug, Default)]
pub(crate) struct HistogramDelta {
    /// Counts of each histogram at the last call.
    previous: Vec<Box<[u64]>>,
    /// Increments of one histogram's counters, in the order of the slots.
    increments: Vec<(usize, u64)>,
    pub(crate) readings: Vec<(Arc<str>, HistogramReading)>,
}

impl HistogramDelta {
    /// Updates the readings to the values recorded since the last call. Allocates only for new
    /// histograms.
    pub(crate) fn update(&mut self, histograms: &Histograms) {
        let histograms = histograms.0.lock();
        let known = self.readings.len();
        for (name, _) in histograms.iter().skip(known) {
            self.previous.push(vec![0; SLOT_COUNT].into_boxed_slice());
            self.readings.push((name.clone(), HistogramReading::default()));
            self.increments.reserve(SLOT_COUNT);
        }
        let followed = self.previous.iter_mut().zip(&mut self.readings);
        for ((_, histogram), (before, (_, reading))) in histograms.iter().zip(followed) {
            self.increments.clear();
            for (index, count) in histogram.counts() {
                let Some(previous) = before.get_mut(index) else { continue };
                let increment = count.wrapping_sub(std::mem::replace(previous, count));
                if increment > 0 {
                    self.increments.push((index, increment));
                }
            }
            *reading = compute_reading(&self.increments);
        }
    }
}

/// Returns the reading for the values in `increments`, which are in the order of the slots.
fn compute_reading(increments: &[(usize, u64)]) -> HistogramReading {
    let count = increments.iter().map(|(_, count)| count).sum::<u64>();
    let percentile = |hundredths: u64| {
        let rank = (u128::from(count) * u128::from(hundredths)).div_ceil(100) as u64;
        let mut seen = 0;
        let reaches = |(_, count): &&(usize, u64)| {
            seen += count;
            seen >= rank
        };
        increments.iter().find(reaches).map_or(0.0, |(place, _)| slot_midpoint(*place))
    };
    HistogramReading { count, p50: percentile(50), p99: percentile(99), max: percentile(100) }
}

/// Returns the slot of `value`, or `None` if it is negative or not finite.
fn slot_index(value: f64) -> Option<usize> {
    if !(value.is_finite() && value >= 0.0) {
        return None;
    }
    // One less, because a range includes its upper end.
    let range =
        (value.abs().to_bits().saturating_sub(1) >> RANGE_SHIFT).checked_sub(FIRST_RANGE_BITS);
    Some(range.map_or(0, |range| {
        usize::try_from(range + 1).map_or(SLOT_COUNT, |it| it.min(SLOT_COUNT - 1))
    }))
}

/// Returns the middle of a slot's range.
fn slot_midpoint(slot: usize) -> f64 {
    let end = |slot: usize| f64::from_bits((FIRST_RANGE_BITS + slot as u64) << RANGE_SHIFT);
    match slot.checked_sub(1) {
        None => 0.0,
        Some(low) if slot == SLOT_COUNT - 1 => end(low),
        Some(low) => f64::midpoint(end(low), end(slot)),
    }
}

/// Returns the doubling of a slot: 0 for the smallest values, `DOUBLINGS` + 1 for the largest.
const fn slot_doubling(slot: usize) -> usize {
    slot.div_ceil(RANGES_PER_DOUBLING)
}

/// Returns the slots of a doubling.
fn doubling_slots(doubling: usize) -> std::ops::Range<usize> {
    let end = (doubling * RANGES_PER_DOUBLING + 1).min(SLOT_COUNT);
    end.saturating_sub(if doubling > DOUBLINGS { 1 } else { RANGES_PER_DOUBLING.min(end) })..end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record_all(values: impl IntoIterator<Item = f64>) -> (HistogramReading, Distribution) {
        let histograms = Histograms::new();
        let histogram = histograms.histogram("h").unwrap();
        values.into_iter().for_each(|value| histogram.record(value));
        let mut delta = HistogramDelta::default();
        delta.update(&histograms);
        (delta.readings[0].1, histograms.distributions().remove(0))
    }

    #[test]
    fn slot_midpoint_is_within_1_64th_of_value() {
        let lowest = f64::powi(2.0, MIN_EXPONENT);
        let highest = f64::powi(2.0, MAX_EXPONENT);
        let mut last = 0;
        let mut value = lowest * 1.000_001;
        while value < highest {
            let index = slot_index(value).unwrap();
            assert!((1..SLOT_COUNT - 1).contains(&index) && index >= last, "{value}");
            assert!((slot_midpoint(index) / value - 1.0).abs() <= 1.0 / 64.0, "{value}");
            assert!(doubling_slots(slot_doubling(index)).contains(&index), "{value}");
            last = index;
            value *= 1.003;
        }
        for (value, place) in [
            (0.0, Some(0)),
            (-0.0, Some(0)),
            (f64::MIN_POSITIVE, Some(0)),
            (lowest, Some(0)),
            (lowest.next_up(), Some(1)),
            (highest, Some(SLOT_COUNT - 2)),
            (highest.next_up(), Some(SLOT_COUNT - 1)),
            (f64::MAX, Some(SLOT_COUNT - 1)),
            (-1.0, None),
            (f64::NAN, None),
            (f64::INFINITY, None),
        ] {
            assert_eq!(slot_index(value), place, "{value}");
        }
        assert_eq!((slot_midpoint(0), slot_midpoint(SLOT_COUNT - 1)), (0.0, highest));
        let all = (0..=DOUBLINGS + 1).flat_map(doubling_slots);
        assert!(all.eq(0..SLOT_COUNT), "each slot is of one doubling");
    }

    #[test]
    fn percentiles_match_recorded_values() {
        let near = |reported: f64, value: f64| (reported / value - 1.0).abs() <= 1.0 / 64.0;
        let (reading, _) = record_all((1..=1000).rev().map(f64::from));
        assert_eq!(reading.count, 1000);
        assert!(near(reading.p50, 500.0) && near(reading.p99, 990.0), "{reading:?}");
        assert!(near(reading.max, 1000.0), "{reading:?}");
        let (reading, _) = record_all((0..99).map(|_| 0.001).chain([5.0]));
        assert!(near(reading.p99, 0.001) && near(reading.max, 5.0), "{reading:?}");
        let (reading, _) = record_all((0..98).map(|_| 0.001).chain([5.0, 5.0]));
        assert!(near(reading.p50, 0.001) && near(reading.p99, 5.0), "{reading:?}");
        let (reading, _) = record_all([7.0]);
        assert!(near(reading.p50, 7.0) && near(reading.max, 7.0), "{reading:?}");
        assert_eq!(record_all([]).0, HistogramReading::default());
    }

    #[test]
    fn reading_covers_values_since_last_update() {
        let histograms = Histograms::new();
        let first = histograms.histogram("first").unwrap();
        let mut delta = HistogramDelta::default();
        let mut update = || {
            delta.update(&histograms);
            delta.readings.iter().map(|(_, reading)| reading.count).collect::<Vec<_>>()
        };
        first.record(1.0);
        assert_eq!(update(), [1]);
        assert_eq!(update(), [0]);
        let second = histograms.histogram("second").unwrap();
        second.record(1.0);
        (0..5).for_each(|n| first.record(f64::from(n)));
        assert_eq!(update(), [5, 1]);
        assert_eq!(update(), [0, 0]);
    }

    #[test]
    fn bucket_counts_values_at_or_below_its_bound() {
        let (_, all) = record_all([0.0, 0.5, 1.0, 1.1, 2.0, 3.0, 1e300, f64::NAN, -1.0]);
        let buckets: Vec<(f64, u64)> =
            all.buckets.iter().map(|it| (it.upper_bound, it.count)).collect();
        let lowest = f64::powi(2.0, MIN_EXPONENT);
        assert_eq!((all.count, all.refused), (7, 2));
        // 0.5 is the upper end of its doubling, and so is 1.
        assert_eq!(buckets, [(lowest, 1), (0.5, 2), (1.0, 3), (2.0, 5), (4.0, 6)]);
        let (_, all) = record_all((1..=100).map(f64::from));
        assert!((all.sum / 5050.0 - 1.0).abs() <= 1.0 / 64.0, "{}", all.sum);
    }

    #[test]
    fn concurrent_records_are_not_lost() {
        let histograms = Histograms::new();
        std::thread::scope(|scope| {
            for thread in 0..4 {
                let histogram = histograms.histogram("h").unwrap();
                let record = move |n: u32| histogram.record(f64::from(n % 100 + thread));
                scope.spawn(move || (0..10_000).for_each(record));
            }
        });
        assert_eq!(histograms.distributions()[0].count, 40_000);
    }
}
