//! Times of samples: thread, time and stack of each, for traces and labels.
//!
//! ```text
//! thread 32 | stack 19, name 12, cut 1 | time - log.zero in ns 48, weight 16
//! ```
//!
//! Each sample takes 16 bytes, and a log holds as many as its table has nodes:
//!
//! ```text
//! session         64 Ki samples   1 MiB      = 5 min of 2 busy cores at 99 Hz, or 10 s of 66
//! window bucket    8 Ki samples   128 KiB    = 5 s of 86 cores at 19 Hz; 7 buckets = 896 KiB
//! ```
//!
//! Further samples are counted in the profile but have no time. Memory grows with use.
//!
//! The kernel dates perf events on `CLOCK_MONOTONIC`. The timer's handler reads a tick; the drain
//! dates it by the (tick, moment) pairs taken at its own start and at two earlier drains. The time
//! of the drain alone would be up to 200 ms late, and a poll lasts microseconds.

use std::collections::HashMap;

use crate::base::Moment;
use crate::cpu::sampling::sample_table::{SampleKey, SampleTable};
use crate::model::{Profile, TimedSample};

/// Key of a sample in one of several consecutive tallies: (index of the tally, key).
pub(super) type SampleOrigin = (usize, SampleKey);

const NAME_BITS: u32 = 12;
const STACK_BITS: u32 = 19;
const WEIGHT_BITS: u32 = 16;

/// Margin before the first entry: rings are drained one after the other, so the first entry may not
/// be the oldest.
const BEFORE_THE_FIRST: u64 = 60_000_000_000;

#[derive(Clone, Copy, Debug)]
struct LoggedSample {
    tid: u32,
    place: u32,
    time_and_weight: u64,
}

/// Times of samples.
#[derive(Debug)]
pub(super) struct SampleLog {
    zero: u64,
    entries: Vec<LoggedSample>,
    limit: usize,
    /// Samples without a time: the log is full, or the time is out of range.
    dropped: u64,
}

impl SampleLog {
    /// Creates a log of at most `limit` times.
    pub(super) fn new(limit: usize) -> Self {
        Self { zero: 0, entries: Vec::new(), limit, dropped: 0 }
    }

    /// Records the time of a sample of `tid`.
    pub(super) fn push(&mut self, tid: u32, at: Moment, place: SampleKey, weight: u32) {
        let at = at.as_nanos();
        if self.entries.is_empty() {
            self.zero = at.saturating_sub(BEFORE_THE_FIRST);
        }
        let time = at.saturating_sub(self.zero);
        match pack(place) {
            Some(place) if self.entries.len() < self.limit && time >> 48 == 0 => {
                let weight = u64::from(weight.min((1 << WEIGHT_BITS) - 1));
                let time_and_weight = time << WEIGHT_BITS | weight;
                self.entries.push(LoggedSample { tid, place, time_and_weight });
            }
            _ => self.dropped += 1,
        }
    }

    fn iter(&self) -> impl Iterator<Item = (u32, Moment, SampleKey, u32)> + '_ {
        self.entries.iter().map(|entry| {
            let weight = entry.time_and_weight & ((1 << WEIGHT_BITS) - 1);
            let at = Moment::from_nanos(self.zero + (entry.time_and_weight >> WEIGHT_BITS));
            (entry.tid, at, unpack(entry.place), weight as u32)
        })
    }
}

fn pack(place: SampleKey) -> Option<u32> {
    let fits = place.stack >> STACK_BITS == 0 && place.name >> NAME_BITS == 0;
    let packed = (place.stack << NAME_BITS | place.name) << 1 | u32::from(place.is_cut);
    fits.then_some(packed)
}

fn unpack(packed: u32) -> SampleKey {
    SampleKey {
        name: packed >> 1 & ((1 << NAME_BITS) - 1),
        stack: packed >> (1 + NAME_BITS),
        is_cut: packed & 1 == 1,
    }
}

/// Index of the profile's sample for each key.
#[derive(Debug, Default)]
pub(super) struct SampleIndex(HashMap<SampleOrigin, u32>);

impl SampleIndex {
    /// Maps these keys to the profile's sample at `index`.
    pub(super) fn sample(&mut self, index: usize, homes: &[SampleOrigin]) {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        self.0.extend(homes.iter().map(|&home| (home, index)));
    }

    /// Adds the times in the logs of `tallies` to `profile`.
    pub(super) fn tell(self, profile: &mut Profile, tallies: &[&SampleTable]) {
        let entries = tallies.iter().map(|tally| tally.log.entries.len()).sum();
        profile.timed.reserve_exact(entries);
        for (part, tally) in tallies.iter().enumerate() {
            profile.timed.extend(tally.log.iter().filter_map(|(tid, at, place, weight)| {
                let sample = *self.0.get(&(part, place))?;
                Some(TimedSample { tid, at, sample, weight })
            }));
        }
        profile.timed.sort_by_key(|sample| sample.at);
        let dropped = tallies.iter().map(|tally| tally.log.dropped).sum();
        profile.losses.add(
            "CPU samples without their time, so not in the trace and without labels: the log is full",
            dropped,
        );
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::model::ValueType;

    #[test]
    fn an_entry_is_sixteen_bytes() {
        assert_eq!(size_of::<LoggedSample>(), 16);
    }

    #[test]
    fn a_place_survives_packing() {
        for (name, stack, is_cut) in
            [(0, 0, false), (4095, (1 << 19) - 1, true), (1, 65_535, false)]
        {
            let place = SampleKey { name, stack, is_cut };
            assert_eq!(pack(place).map(unpack), Some(place));
        }
        assert_eq!(pack(SampleKey { name: 4096, stack: 0, is_cut: false }), None);
        assert_eq!(pack(SampleKey { name: 0, stack: 1 << 19, is_cut: false }), None);
    }

    #[test]
    fn times_are_kept_in_order_and_what_finds_no_room_is_counted() {
        const CPU: ValueType = ValueType { name: "cpu", unit: "nanoseconds" };
        let (mut first, mut second) = (SampleTable::new(3), SampleTable::new(3));
        let push = |tally: &mut SampleTable, tid, at, weight| {
            let place = tally.add(1, &[7], weight, false);
            tally.log.push(tid, Moment::from_nanos(at), place, weight);
            place
        };
        let hour = 3_600_000_000_000;
        let place = push(&mut first, 11, 100 * hour, 1);
        push(&mut first, 12, 100 * hour - 5, u32::MAX);
        push(&mut first, 13, 100 * hour + 9, 2);
        push(&mut first, 14, 100 * hour + 9, 2);
        push(&mut second, 15, 101 * hour, 1);
        push(&mut second, 16, 200 * hour, 1);
        let mut profile = Profile::new(&[CPU], CPU, 1, Timestamp::UNIX_EPOCH);
        let mut timed = SampleIndex::default();
        timed.sample(5, &[(0, place)]);
        timed.sample(6, &[(1, place)]);
        timed.tell(&mut profile, &[&first, &second]);
        let seen: Vec<_> = profile
            .timed
            .iter()
            .map(|timed| (timed.tid, timed.at.as_nanos(), timed.sample, timed.weight))
            .collect();
        let expected = [
            (12, 100 * hour - 5, 5, 65_535),
            (11, 100 * hour, 5, 1),
            (13, 100 * hour + 9, 5, 2),
            (15, 101 * hour, 6, 1),
        ];
        assert_eq!(seen, expected);
        let lost: u64 = profile.losses.iter().map(|loss| loss.count).sum();
        assert_eq!(lost, 2, "one beyond the limit, one beyond three days");
    }
}
