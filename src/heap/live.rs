//! The recorded blocks that are alive: address -> {site, size, weight}, without locks.
//!
//! Segments ([`super::segment`]) of twice as many keys each. An address belongs in one of two lines of a
//! segment; when both are full in every segment there is, the next is mapped. Memory follows the most
//! records there ever were, up to [`SEGMENTS`].
//!
//! One linear table with tombstones would be simpler and degrades with every free; a map behind a lock
//! stops the program when a signal handler allocates under it.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

use super::segment::{RECORD_WORDS, Record, Segment};
use crate::os::memory::Chunk;

/// Keys of the first segment: 160 KiB with the records, enough for 2 GiB of heap at 512 KiB.
const FIRST: usize = 4096;

/// Each doubles the one before. All eight hold a million records in 40 MiB: half a terabyte of heap at
/// 512 KiB. As it fills up, [`coarsened`] lets fewer in. What finds no key is dropped and counted.
const SEGMENTS: usize = 8;

/// A table whose first segment has `KEYS` keys.
pub(crate) struct Live<const KEYS: usize = FIRST> {
    segments: [Chunk; SEGMENTS],
    records: Records,
}

/// A number of records, away from what only readers share.
#[repr(align(128))]
struct Records(AtomicU64);

/// Keys of all segments together.
pub(crate) const CAP: u64 = (FIRST * ((1 << SEGMENTS) - 1)) as u64;

impl<const KEYS: usize> Live<KEYS> {
    pub(crate) const fn new() -> Self {
        let mut segments = [const { Chunk::new(KEYS * (1 + RECORD_WORDS)) }; SEGMENTS];
        let mut i = 1;
        while i < SEGMENTS {
            // A chunk that was never mapped has nothing to drop.
            std::mem::forget(std::mem::replace(
                &mut segments[i],
                Chunk::new((KEYS << i) * (1 + RECORD_WORDS)),
            ));
            i += 1;
        }
        Self { segments, records: Records(AtomicU64::new(0)) }
    }

    /// Puts a block in; false when there is no room.
    pub(crate) fn insert(&self, address: usize, record: Record) -> bool {
        let is_in = self.segments.iter().map_while(Chunk::get_or_map).any(|words| {
            let segment = Segment::of(words);
            segment.places(address).any(|at| segment.try_insert(at, address as u64, record))
        });
        if is_in {
            self.records.0.fetch_add(1, Relaxed);
        }
        is_in
    }

    /// How many records there are, short of those that come or go at this moment.
    pub(crate) fn len(&self) -> u64 {
        // A block may be counted as gone before another thread has counted it as put in.
        u64::try_from(self.records.0.load(Relaxed) as i64).unwrap_or(0)
    }

    /// Takes a block out; none when it was not in.
    pub(crate) fn take(&self, address: usize) -> Option<Record> {
        let record = self.segments.iter().map_while(Chunk::get).find_map(|words| {
            let segment = Segment::of(words);
            segment
                .lines(address)
                .into_iter()
                .flatten()
                .find_map(|at| segment.try_take(at, address as u64))
        })?;
        self.records.0.fetch_sub(1, Relaxed);
        Some(record)
    }

    /// Shows every record once that is in the table throughout the call, and perhaps some of those that
    /// come or go meanwhile.
    pub(crate) fn for_each(&self, mut see: impl FnMut(Record)) {
        for words in self.segments.iter().map_while(Chunk::get) {
            let segment = Segment::of(words);
            (0..segment.len()).filter_map(|at| segment.read(at)).for_each(&mut see);
        }
    }
}

/// The mean number of bytes between two samples while there are so many records: `rate` below five eighths of the
/// table, from there on at least 16 KiB, from three quarters on at least 1 MiB. Lines begin to refuse records at 87 per cent.
///
/// A full table would keep the oldest blocks and none of those that a leak adds. A coarser rate keeps estimates unbiased,
/// since a sample's weight is that of its own rate, and what is left is good for another 128 GiB.
pub(crate) fn coarsened(rate: u64, records: u64) -> u64 {
    let least = match records {
        _ if records >= CAP / 4 * 3 => 1 << 20,
        _ if records >= CAP / 8 * 5 => 16 << 10,
        _ => 0,
    };
    if rate == 0 { 0 } else { rate.max(least) }
}

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;
