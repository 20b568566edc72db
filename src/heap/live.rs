//! The live recorded blocks: a lock-free table, address -> {site, size, weight}.
//!
//! The table consists of segments ([`super::segment`]), each with twice as many keys as the one
//! before. An address may be in two lines of a segment; if both are full in every segment, the next
//! segment is mapped. Memory follows the maximum number of records, up to [`SEGMENTS`].
//!
//! One linear table with tombstones would be simpler, but degrades with every free. A map behind a
//! lock deadlocks the program if a signal handler allocates under it.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::segment::{BlockRecord, RECORD_WORDS, TableSegment};
use crate::os::mapped_memory::MappedWords;

/// Keys of the first segment: 160 KiB with the records, enough for 2 GiB of heap at 512 KiB.
const FIRST_SEGMENT_KEYS: usize = 4096;

/// Number of segments. Each doubles the previous: all eight hold a million records in 40 MiB, for
/// half a terabyte of heap at 512 KiB. [`coarsened_rate`] reduces samples as the table fills up.
/// Records without a free key are dropped and counted.
const SEGMENTS: usize = 8;

/// A table whose first segment has `KEYS` keys.
pub(crate) struct LiveBlocks<const KEYS: usize = FIRST_SEGMENT_KEYS> {
    segments: [MappedWords; SEGMENTS],
    record_count: RecordCount,
}

/// Number of records, on cache lines separate from read-only data.
#[repr(align(128))]
struct RecordCount(AtomicU64);

/// Number of keys in all segments.
pub(crate) const TOTAL_KEYS: u64 = (FIRST_SEGMENT_KEYS * ((1 << SEGMENTS) - 1)) as u64;

impl<const KEYS: usize> LiveBlocks<KEYS> {
    pub(crate) const fn new() -> Self {
        let mut segments = [const { MappedWords::new(KEYS * (1 + RECORD_WORDS)) }; SEGMENTS];
        let mut i = 1;
        while i < SEGMENTS {
            // A chunk that was never mapped needs no drop.
            std::mem::forget(std::mem::replace(
                &mut segments[i],
                MappedWords::new((KEYS << i) * (1 + RECORD_WORDS)),
            ));
            i += 1;
        }
        Self { segments, record_count: RecordCount(AtomicU64::new(0)) }
    }

    /// Inserts a block. Returns `false` if there is no free key.
    pub(crate) fn insert(&self, address: usize, record: BlockRecord) -> bool {
        let is_inserted = self.segments.iter().map_while(MappedWords::get_or_map).any(|words| {
            let segment = TableSegment::from_words(words);
            segment
                .candidate_positions(address)
                .any(|at| segment.try_insert(at, address as u64, record))
        });
        if is_inserted {
            self.record_count.0.fetch_add(1, Relaxed);
        }
        is_inserted
    }

    /// Returns the number of records, except those being inserted or removed at this moment.
    pub(crate) fn len(&self) -> u64 {
        // One thread may count a removal before another counts the insertion of the same block.
        u64::try_from(self.record_count.0.load(Relaxed) as i64).unwrap_or(0)
    }

    /// Removes a block. Returns `None` if it is not in the table.
    pub(crate) fn remove(&self, address: usize) -> Option<BlockRecord> {
        let record = self.segments.iter().map_while(MappedWords::get).find_map(|words| {
            let segment = TableSegment::from_words(words);
            segment
                .candidate_lines(address)
                .into_iter()
                .flatten()
                .find_map(|at| segment.try_take(at, address as u64))
        })?;
        self.record_count.0.fetch_sub(1, Relaxed);
        Some(record)
    }

    /// Passes every record that is in the table during the whole call to `visit` exactly once, and
    /// possibly some that are inserted or removed meanwhile.
    pub(crate) fn for_each(&self, mut visit: impl FnMut(BlockRecord)) {
        for words in self.segments.iter().map_while(MappedWords::get) {
            let segment = TableSegment::from_words(words);
            (0..segment.len()).filter_map(|at| segment.read(at)).for_each(&mut visit);
        }
    }
}

/// Returns the mean number of bytes between two samples for this number of records.
///
/// ```text
/// records / CAP   < 5/8     5/8 to 3/4            >= 3/4
/// result          rate      max(rate, 16 KiB)     max(rate, 1 MiB)
/// ```
///
/// Lines start to reject records at 87 % of the table. A full table would keep the oldest blocks
/// and none of a leak's. A coarser rate keeps estimates unbiased, because a sample's weight uses
/// the rate at which it was drawn. The remaining keys cover another 128 GiB.
pub(crate) fn coarsened_rate(rate: u64, records: u64) -> u64 {
    let min_rate = match records {
        _ if records >= TOTAL_KEYS / 4 * 3 => 1 << 20,
        _ if records >= TOTAL_KEYS / 8 * 5 => 16 << 10,
        _ => 0,
    };
    if rate == 0 { 0 } else { rate.max(min_rate) }
}

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;
