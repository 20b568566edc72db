//! The recorded blocks that are alive: address -> {site, size, weight}, without locks.
//!
//! Segments ([`super::segment`]) of twice as many keys each. An address belongs in one of two lines of a
//! segment; when both are full in every segment there is, the next is mapped. Memory follows the most
//! records there ever were, up to [`SEGMENTS`].
//!
//! One linear table with tombstones would be simpler and degrades with every free; a map behind a lock
//! stops the program when a signal handler allocates under it.

use super::segment::{RECORD_WORDS, Record, Segment};
use crate::os::memory::Chunk;

/// Keys of the first segment: 160 KiB with the records, enough for 2 GiB of heap at 512 KiB.
const FIRST: usize = 4096;

/// Each doubles the one before. All eight hold a million records in 40 MiB: half a terabyte of heap at
/// 512 KiB. What comes after is dropped and counted.
const SEGMENTS: usize = 8;

/// A table whose first segment has `KEYS` keys.
pub(crate) struct Live<const KEYS: usize = FIRST> {
    segments: [Chunk; SEGMENTS],
}

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
        Self { segments }
    }

    /// Puts a block in; false when there is no room.
    pub(crate) fn insert(&self, address: usize, record: Record) -> bool {
        self.segments.iter().map_while(Chunk::get_or_map).any(|words| {
            let segment = Segment::of(words);
            segment.places(address).any(|at| segment.try_insert(at, address as u64, record))
        })
    }

    /// Takes a block out; none when it was not in.
    pub(crate) fn take(&self, address: usize) -> Option<Record> {
        self.segments.iter().map_while(Chunk::get).find_map(|words| {
            let segment = Segment::of(words);
            segment
                .lines(address)
                .into_iter()
                .flatten()
                .find_map(|at| segment.try_take(at, address as u64))
        })
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

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;
