//! Values the service records many of, such as how long each request took.
//!
//! A histogram is an array of counters, one for each range of values, and recording is one atomic
//! addition: no lock, no allocation, whatever the value. 32 ranges to each doubling:
//!
//! ```text
//!  0 ... 2^-20 ........ 1 ............... 2 ............... 4 ........ 2^40 ... more
//!  │  0  │  32 each  ...│ 1.03 1.06 ...   │ 2.06 2.13 ...   │  ...       │  1921
//! ```
//!
//! A range is (low, high], and a value is told as the middle of its range: a percentile and the maximum
//! are off by 1.6 % at the most (half of 1/32). What is at or below 2^-20 (0.95 millionths) is told as 0,
//! what is above 2^40 (1.1 * 10^12) as that; in seconds that is a microsecond to 35,000 years, in bytes a
//! terabyte. The range is the upper bits of the float itself, so finding it takes a shift.
//!
//! 15 KiB each and as much in the reader, which remembers what the counters stood at a second ago: the
//! difference is what was recorded since. It looks only at the doublings that were ever used.
//!
//! hdrhistogram has this error too, but its counters are not atomic: recording from many threads goes
//! through a channel and a thread that merges, or a lock. A sketch (t-digest, DDSketch) merges well, which
//! nobody does here, and moves its ranges while it records.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use serde::Serialize;

use super::Error;
use super::named::Named;
use crate::model::HistogramReading;

/// How many histograms there may be: 2 MiB with what the reader remembers.
const MAX_HISTOGRAMS: usize = 64;

/// The lowest and the highest exponent of two told apart.
const LOWEST: i32 = -20;
const HIGHEST: i32 = 40;
const DOUBLINGS: usize = (HIGHEST - LOWEST) as usize;
/// Ranges to a doubling.
const RANGES: usize = 32;
/// Bits of a float below those that tell the range: 52 of fraction less five.
const SHIFT: u32 = 52 - 5;
/// What a value just above 2^`LOWEST` has above them.
const BASE: u64 = (((1023 + LOWEST) as u64) << 52) >> SHIFT;
/// The counters: two more, for what is smaller and what is larger.
const SLOTS: usize = DOUBLINGS * RANGES + 2;

/// The histograms of one agent.
#[derive(Clone, Debug, Default)]
pub struct Histograms(Named<Histogram>);

impl Histograms {
    /// No histograms.
    pub fn new() -> Self {
        Self::default()
    }

    /// The histogram called `name`, made empty if there is none. Takes a lock: keep the histogram.
    ///
    /// # Errors
    ///
    /// [`Error::Name`] unless `name` is 1 to 64 lower-case letters, digits, `_` and `.`;
    /// [`Error::TooMany`] for a new one when there are 64.
    pub fn histogram(&self, name: &str) -> Result<Histogram, Error> {
        self.0.get(name, "histogram", MAX_HISTOGRAMS)
    }

    /// All that each has recorded, in the order they were made.
    pub fn distributions(&self) -> Vec<Distribution> {
        let all = self.0.lock();
        all.iter().map(|(name, histogram)| histogram.distribution(name)).collect()
    }
}

/// Values of the service's own. Clones are the same histogram.
#[derive(Clone, Debug, Default)]
pub struct Histogram(Arc<Slots>);

struct Slots {
    counts: [AtomicU64; SLOTS],
    /// The doublings that were ever used, a bit each.
    used: AtomicU64,
    refused: AtomicU64,
}

impl Default for Slots {
    fn default() -> Self {
        let counts = [const { AtomicU64::new(0) }; SLOTS];
        Self { counts, used: AtomicU64::new(0), refused: AtomicU64::new(0) }
    }
}

impl fmt::Debug for Slots {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Slots").field("used", &self.used).finish_non_exhaustive()
    }
}

impl Histogram {
    /// Records `value`, in a unit of the service's choice: seconds, bytes, rows. One below zero or not
    /// finite is counted as refused.
    pub fn record(&self, value: f64) {
        let Slots { counts, used, refused } = &*self.0;
        let place = slot(value);
        let Some(count) = place.and_then(|place| counts.get(place)) else {
            refused.fetch_add(1, Ordering::Relaxed);
            return;
        };
        count.fetch_add(1, Ordering::Relaxed);
        let bit = place.map_or(0, |place| 1 << doubling(place));
        if used.load(Ordering::Relaxed) & bit == 0 {
            used.fetch_or(bit, Ordering::Relaxed);
        }
    }

    /// The slots that may not be empty, and what they stand at.
    fn counts(&self) -> impl Iterator<Item = (usize, u64)> {
        let used = self.0.used.load(Ordering::Relaxed);
        let slots = (0..=DOUBLINGS + 1).filter(move |bit| used >> bit & 1 == 1).flat_map(slots_of);
        slots.filter_map(|slot| Some((slot, self.0.counts.get(slot)?.load(Ordering::Relaxed))))
    }

    fn distribution(&self, name: &Arc<str>) -> Distribution {
        let mut told = Distribution {
            name: name.to_string(),
            count: 0,
            sum: 0.0,
            refused: self.0.refused.load(Ordering::Relaxed),
            buckets: Vec::new(),
        };
        for (place, count) in self.counts() {
            told.count += count;
            told.sum += middle(place) * count as f64;
            let below = f64::powi(2.0, LOWEST + doubling(place) as i32);
            match told.buckets.last_mut() {
                Some(last) if last.below >= below => last.count = told.count,
                _ if doubling(place) > DOUBLINGS => {}
                _ => told.buckets.push(Bucket { below, count: told.count }),
            }
        }
        told
    }
}

/// All that a histogram has recorded.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct Distribution {
    /// The histogram's name.
    pub name: String,
    /// How many values.
    pub count: u64,
    /// Their sum, off by 1.6 % at the most.
    pub sum: f64,
    /// How many values were no numbers, or below zero; they are not in `count`.
    pub refused: u64,
    /// How many were at or below each power of two, as far as values were seen, the lowest first.
    pub buckets: Vec<Bucket>,
}

/// A bound and how many values were at or below it.
#[derive(Clone, Copy, Debug, PartialEq, Serialize)]
pub struct Bucket {
    /// The bound.
    #[serde(rename = "le")]
    pub below: f64,
    /// How many.
    pub count: u64,
}

/// The histograms as the reader follows them.
#[derive(Debug, Default)]
pub(super) struct Followed {
    /// What each counter of each stood at.
    before: Vec<Box<[u64]>>,
    /// What was added to those of one, in the order of the slots.
    added: Vec<(usize, u64)>,
    pub(super) readings: Vec<(Arc<str>, HistogramReading)>,
}

impl Followed {
    /// Brings the readings up to date: what was recorded since the last call. Allocates for what is there
    /// for the first time only.
    pub(super) fn follow(&mut self, histograms: &Histograms) {
        let histograms = histograms.0.lock();
        let known = self.readings.len();
        for (name, _) in histograms.iter().skip(known) {
            self.before.push(vec![0; SLOTS].into_boxed_slice());
            self.readings.push((name.clone(), HistogramReading::default()));
            self.added.reserve(SLOTS);
        }
        let followed = self.before.iter_mut().zip(&mut self.readings);
        for ((_, histogram), (before, (_, reading))) in histograms.iter().zip(followed) {
            self.added.clear();
            for (place, count) in histogram.counts() {
                let Some(before) = before.get_mut(place) else { continue };
                let added = count.wrapping_sub(std::mem::replace(before, count));
                if added > 0 {
                    self.added.push((place, added));
                }
            }
            *reading = read(&self.added);
        }
    }
}

/// What the values in `added` say, which are in the order of the slots.
fn read(added: &[(usize, u64)]) -> HistogramReading {
    let count = added.iter().map(|(_, count)| count).sum::<u64>();
    let at = |hundredths: u64| {
        let rank = (u128::from(count) * u128::from(hundredths)).div_ceil(100) as u64;
        let mut seen = 0;
        let reaches = |(_, count): &&(usize, u64)| {
            seen += count;
            seen >= rank
        };
        added.iter().find(reaches).map_or(0.0, |(place, _)| middle(*place))
    };
    HistogramReading { count, p50: at(50), p99: at(99), max: at(100) }
}

/// The slot of `value`; none for what is no amount.
fn slot(value: f64) -> Option<usize> {
    if !(value.is_finite() && value >= 0.0) {
        return None;
    }
    // One less, so that a range's upper end is in it.
    let range = (value.abs().to_bits().saturating_sub(1) >> SHIFT).checked_sub(BASE);
    Some(range.map_or(0, |range| usize::try_from(range + 1).map_or(SLOTS, |it| it.min(SLOTS - 1))))
}

/// The middle of a slot's range.
fn middle(slot: usize) -> f64 {
    let end = |slot: usize| f64::from_bits((BASE + slot as u64) << SHIFT);
    match slot.checked_sub(1) {
        None => 0.0,
        Some(low) if slot == SLOTS - 1 => end(low),
        Some(low) => f64::midpoint(end(low), end(slot)),
    }
}

/// The doubling of a slot: 0 for the smallest values, `DOUBLINGS` + 1 for the largest.
const fn doubling(slot: usize) -> usize {
    slot.div_ceil(RANGES)
}

/// The slots of a doubling.
fn slots_of(doubling: usize) -> std::ops::Range<usize> {
    let end = (doubling * RANGES + 1).min(SLOTS);
    end.saturating_sub(if doubling > DOUBLINGS { 1 } else { RANGES.min(end) })..end
}

#[cfg(test)]
mod tests {
    use super::*;

    fn told(values: impl IntoIterator<Item = f64>) -> (HistogramReading, Distribution) {
        let histograms = Histograms::new();
        let histogram = histograms.histogram("h").unwrap();
        values.into_iter().for_each(|value| histogram.record(value));
        let mut followed = Followed::default();
        followed.follow(&histograms);
        (followed.readings[0].1, histograms.distributions().remove(0))
    }

    #[test]
    fn every_value_has_its_slot_and_is_told_within_a_64th() {
        let (least, most) = (f64::powi(2.0, LOWEST), f64::powi(2.0, HIGHEST));
        let mut last = 0;
        let mut value = least * 1.000_001;
        while value < most {
            let place = slot(value).unwrap();
            assert!((1..SLOTS - 1).contains(&place) && place >= last, "{value}");
            assert!((middle(place) / value - 1.0).abs() <= 1.0 / 64.0, "{value}");
            assert!(slots_of(doubling(place)).contains(&place), "{value}");
            last = place;
            value *= 1.003;
        }
        for (value, place) in [
            (0.0, Some(0)),
            (-0.0, Some(0)),
            (f64::MIN_POSITIVE, Some(0)),
            (least, Some(0)),
            (least.next_up(), Some(1)),
            (most, Some(SLOTS - 2)),
            (most.next_up(), Some(SLOTS - 1)),
            (f64::MAX, Some(SLOTS - 1)),
            (-1.0, None),
            (f64::NAN, None),
            (f64::INFINITY, None),
        ] {
            assert_eq!(slot(value), place, "{value}");
        }
        assert_eq!((middle(0), middle(SLOTS - 1)), (0.0, most));
        let all = (0..=DOUBLINGS + 1).flat_map(slots_of);
        assert!(all.eq(0..SLOTS), "each slot is of one doubling");
    }

    #[test]
    fn percentiles_are_those_of_the_values() {
        let near = |told: f64, value: f64| (told / value - 1.0).abs() <= 1.0 / 64.0;
        let (reading, _) = told((1..=1000).rev().map(f64::from));
        assert_eq!(reading.count, 1000);
        assert!(near(reading.p50, 500.0) && near(reading.p99, 990.0), "{reading:?}");
        assert!(near(reading.max, 1000.0), "{reading:?}");
        let (reading, _) = told((0..99).map(|_| 0.001).chain([5.0]));
        assert!(near(reading.p99, 0.001) && near(reading.max, 5.0), "{reading:?}");
        let (reading, _) = told((0..98).map(|_| 0.001).chain([5.0, 5.0]));
        assert!(near(reading.p50, 0.001) && near(reading.p99, 5.0), "{reading:?}");
        let (reading, _) = told([7.0]);
        assert!(near(reading.p50, 7.0) && near(reading.max, 7.0), "{reading:?}");
        assert_eq!(told([]).0, HistogramReading::default());
    }

    #[test]
    fn a_reading_is_of_what_came_since_the_last() {
        let histograms = Histograms::new();
        let first = histograms.histogram("first").unwrap();
        let mut followed = Followed::default();
        let mut follow = || {
            followed.follow(&histograms);
            followed.readings.iter().map(|(_, reading)| reading.count).collect::<Vec<_>>()
        };
        first.record(1.0);
        assert_eq!(follow(), [1]);
        assert_eq!(follow(), [0]);
        let second = histograms.histogram("second").unwrap();
        second.record(1.0);
        (0..5).for_each(|n| first.record(f64::from(n)));
        assert_eq!(follow(), [5, 1]);
        assert_eq!(follow(), [0, 0]);
    }

    #[test]
    fn a_bound_counts_all_at_or_below_it() {
        let (_, all) = told([0.0, 0.5, 1.0, 1.1, 2.0, 3.0, 1e300, f64::NAN, -1.0]);
        let buckets: Vec<(f64, u64)> = all.buckets.iter().map(|it| (it.below, it.count)).collect();
        let least = f64::powi(2.0, LOWEST);
        assert_eq!((all.count, all.refused), (7, 2));
        // 0.5 is the upper end of its own doubling, and so is 1.
        assert_eq!(buckets, [(least, 1), (0.5, 2), (1.0, 3), (2.0, 5), (4.0, 6)]);
        let (_, all) = told((1..=100).map(f64::from));
        assert!((all.sum / 5050.0 - 1.0).abs() <= 1.0 / 64.0, "{}", all.sum);
    }

    #[test]
    fn recording_from_many_threads_loses_nothing() {
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
