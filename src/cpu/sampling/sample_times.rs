//! Times of samples: thread, time and stack of each, for traces and labels.
//!
//! ```text
//! thread 32 | stack 19, name 12, truncated 1 | time - base in ns 48, weight 16
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
use crate::cpu::sampling::sample_key::SampleKey;
use crate::model::{Profile, TimedSample};

/// Key of a sample in one of several consecutive tables: (index of the table, key).
pub(super) type SampleOrigin = (usize, SampleKey);

const WEIGHT_BITS: u32 = 16;

/// Margin before the first entry: rings are drained one after the other, so the first entry may not
/// be the oldest.
const FIRST_ENTRY_MARGIN_NANOS: u64 = 60_000_000_000;

#[derive(Clone, Copy, Debug)]
struct LoggedSample {
    tid: u32,
    packed_key: u32,
    time_and_weight: u64,
}

/// Times of samples.
#[derive(Debug)]
pub(super) struct SampleLog {
    base_nanos: u64,
    entries: Vec<LoggedSample>,
    max_entries: usize,
    /// Samples without a time: the log is full, or the time is out of range.
    dropped: u64,
}

impl SampleLog {
    /// Creates a log of at most `max_entries` times.
    pub(super) fn new(max_entries: usize) -> Self {
        Self { base_nanos: 0, entries: Vec::new(), max_entries, dropped: 0 }
    }

    /// Records the time of a sample of `tid`.
    pub(super) fn push(&mut self, tid: u32, time: Moment, key: SampleKey, weight: u32) {
        let nanos = time.as_nanos();
        if self.entries.is_empty() {
            self.base_nanos = nanos.saturating_sub(FIRST_ENTRY_MARGIN_NANOS);
        }
        let offset = nanos.saturating_sub(self.base_nanos);
        match key.pack() {
            Some(packed_key) if self.entries.len() < self.max_entries && offset >> 48 == 0 => {
                let weight = u64::from(weight.min((1 << WEIGHT_BITS) - 1));
                let time_and_weight = offset << WEIGHT_BITS | weight;
                self.entries.push(LoggedSample { tid, packed_key, time_and_weight });
            }
            _ => self.dropped += 1,
        }
    }

    fn iter(&self) -> impl Iterator<Item = (u32, Moment, SampleKey, u32)> + '_ {
        self.entries.iter().map(|entry| {
            let weight = entry.time_and_weight & ((1 << WEIGHT_BITS) - 1);
            let at = Moment::from_nanos(self.base_nanos + (entry.time_and_weight >> WEIGHT_BITS));
            (entry.tid, at, SampleKey::unpack(entry.packed_key), weight as u32)
        })
    }
}

/// Index of the profile's sample for each key.
#[derive(Debug, Default)]
pub(super) struct SampleIndex(HashMap<SampleOrigin, u32>);

impl SampleIndex {
    /// Maps these keys to the profile's sample at `index`.
    pub(super) fn insert(&mut self, index: usize, origins: &[SampleOrigin]) {
        let index = u32::try_from(index).unwrap_or(u32::MAX);
        self.0.extend(origins.iter().map(|&origin| (origin, index)));
    }

    /// Adds the times in the logs of consecutive tables to `profile`.
    pub(super) fn append_times(self, profile: &mut Profile, logs: &[&SampleLog]) {
        let entries = logs.iter().map(|log| log.entries.len()).sum();
        profile.timed_samples.reserve_exact(entries);
        for (table_index, log) in logs.iter().enumerate() {
            profile.timed_samples.extend(log.iter().filter_map(|(tid, at, key, weight)| {
                let sample = *self.0.get(&(table_index, key))?;
                Some(TimedSample { tid, at, sample, weight })
            }));
        }
        profile.timed_samples.sort_by_key(|sample| sample.at);
        let dropped = logs.iter().map(|log| log.dropped).sum();
        profile.losses.add(
            "CPU samples without a timestamp, so not in the trace and without labels: sample log \
             full",
            dropped,
        );
    }
}

#[cfg(test)]
mod tests {
    use jiff::Timestamp;

    use super::*;
    use crate::cpu::sampling::sample_table::SampleTable;
    use crate::model::ValueType;

    #[test]
    fn logged_sample_is_sixteen_bytes() {
        assert_eq!(size_of::<LoggedSample>(), 16);
    }

    #[test]
    fn times_are_sorted_and_overflow_is_counted() {
        const CPU: ValueType = ValueType { name: "cpu", unit: "nanoseconds" };
        let mut first = SampleTable::new(3);
        let mut second = SampleTable::new(3);
        let push = |table: &mut SampleTable, tid, at, weight| {
            let key = table.add(1, &[7], weight, false);
            table.log.push(tid, Moment::from_nanos(at), key, weight);
            key
        };
        let hour = 3_600_000_000_000;
        let key = push(&mut first, 11, 100 * hour, 1);
        push(&mut first, 12, 100 * hour - 5, u32::MAX);
        push(&mut first, 13, 100 * hour + 9, 2);
        push(&mut first, 14, 100 * hour + 9, 2);
        push(&mut second, 15, 101 * hour, 1);
        push(&mut second, 16, 200 * hour, 1);
        let mut profile = Profile::new(&[CPU], CPU, 1, Timestamp::UNIX_EPOCH);
        let mut timed = SampleIndex::default();
        timed.insert(5, &[(0, key)]);
        timed.insert(6, &[(1, key)]);
        timed.append_times(&mut profile, &[&first.log, &second.log]);
        let seen: Vec<_> = profile
            .timed_samples
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
