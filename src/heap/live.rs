//! The recorded blocks that are alive: address -> {site, size, weight}, without locks.
//!
//! ```text
//! segment i:  keys    [k0..k7] [k8..k15] …     FIRST << i keys, eight to a cache line; 0 is free
//!             records {turn, site, size, weight} …   one behind each key
//! ```
//!
//! An address belongs in one of two lines of a segment; when both are full in every segment there is,
//! the next segment is mapped. Memory follows the most records there ever were, up to [`SEGMENTS`].
//!
//! **Who writes.** A block is put in after the inner allocator has returned it and before the program
//! has it; it is taken out by its free before the inner allocator gets it back. So an address is in
//! the table at most once, and only one thread at a time has business with it; threads compete only for
//! free keys. A key goes 0 -> CLAIMED -> address -> 0.
//!
//! **Who reads beside them.** A dump. The turn of a record is odd while it is being written, so a dump
//! that finds the same even turn and the same key before and after has read one record, even if the
//! block was freed and its address came back in between. What it cannot read it leaves out: that block
//! is being allocated or freed at this moment.
//!
//! A thread that stops for ever in the middle (killed by fork in the child) costs one key. A signal
//! handler may run in the middle and use the table. Nothing waits for anything.
//!
//! One linear table with tombstones would be simpler and degrades with every free; a map behind a lock
//! stops the program when a signal handler allocates under it.

use std::ops::Range;
use std::sync::atomic::{AtomicU64, Ordering, fence};

use super::sampler::mix;
use crate::os::memory::Chunk;

/// Keys of the first segment: 160 KiB with the records, enough for 2 GiB of heap at 512 KiB.
const FIRST: usize = 4096;

/// Each doubles the one before. All eight hold a million records in 40 MiB: half a terabyte of heap at
/// 512 KiB. What comes after is dropped and counted.
const SEGMENTS: usize = 8;

const LINE: usize = 8;
const FREE: u64 = 0;
const CLAIMED: u64 = 1;
const RECORD_WORDS: usize = 4;

/// What is known of a recorded block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Record {
    pub(crate) site: u32,
    pub(crate) size: u64,
    pub(crate) weight: f64,
}

pub(crate) struct Live {
    segments: [Chunk; SEGMENTS],
}

impl Live {
    pub(crate) const fn new() -> Self {
        let mut segments = [const { Chunk::new(FIRST * (1 + RECORD_WORDS)) }; SEGMENTS];
        let mut i = 1;
        while i < SEGMENTS {
            // A chunk that was never mapped has nothing to drop.
            std::mem::forget(std::mem::replace(
                &mut segments[i],
                Chunk::new((FIRST << i) * (1 + RECORD_WORDS)),
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
            (0..segment.keys.len()).filter_map(|at| segment.read(at)).for_each(&mut see);
        }
    }
}

struct Segment<'a> {
    keys: &'a [AtomicU64],
    records: &'a [AtomicU64],
}

impl<'a> Segment<'a> {
    fn of(words: &'a [AtomicU64]) -> Self {
        let (keys, records) = words.split_at(words.len() / (1 + RECORD_WORDS));
        Self { keys, records }
    }

    /// The two lines where `address` may be.
    fn lines(&self, address: usize) -> [Range<usize>; 2] {
        let lines = self.keys.len() / LINE;
        // Hashed anew in each segment: what crowds one must not crowd the next.
        let hash = mix((address + lines) as u64) as usize;
        [hash % lines, (hash >> 32) % lines].map(|line| line * LINE..(line + 1) * LINE)
    }

    /// The places where `address` may be, those of the emptier line first: filling the emptier of two
    /// keeps lines from running over until nearly all are full (Azar et al. 1994).
    fn places(&self, address: usize) -> impl Iterator<Item = usize> + use<> {
        let is_free = |at: &usize| self.keys[*at].load(Ordering::Relaxed) == FREE;
        let [one, other] = self.lines(address);
        let [free, other_free] = [&one, &other].map(|line| line.clone().filter(is_free).count());
        if free >= other_free { one.chain(other) } else { other.chain(one) }
    }

    fn record(&self, at: usize) -> &'a [AtomicU64; RECORD_WORDS] {
        // `at` is below `keys.len()`, and there is a record for each key.
        self.records[at * RECORD_WORDS..].first_chunk().unwrap_or(&NOWHERE)
    }

    fn try_insert(&self, at: usize, address: u64, record: Record) -> bool {
        let key = &self.keys[at];
        if key.load(Ordering::Relaxed) != FREE
            || key.compare_exchange(FREE, CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_err()
        {
            return false;
        }
        let [turn, site, size, weight] = self.record(at);
        let before = turn.load(Ordering::Relaxed);
        turn.store(before.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        site.store(u64::from(record.site), Ordering::Relaxed);
        size.store(record.size, Ordering::Relaxed);
        weight.store(record.weight.to_bits(), Ordering::Relaxed);
        turn.store(before.wrapping_add(2), Ordering::Release);
        key.store(address, Ordering::Release);
        true
    }

    fn try_take(&self, at: usize, address: u64) -> Option<Record> {
        let key = &self.keys[at];
        if key.load(Ordering::Acquire) != address {
            return None;
        }
        let [_, site, size, weight] = self.record(at);
        let record = Record {
            site: site.load(Ordering::Relaxed) as u32,
            size: size.load(Ordering::Relaxed),
            weight: f64::from_bits(weight.load(Ordering::Relaxed)),
        };
        // Fails only if the program frees one block twice at once: then the record is another's.
        key.compare_exchange(address, FREE, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        Some(record)
    }

    fn read(&self, at: usize) -> Option<Record> {
        let key = &self.keys[at];
        let address = key.load(Ordering::Acquire);
        if address == FREE || address == CLAIMED {
            return None;
        }
        let [turn, site, size, weight] = self.record(at);
        let before = turn.load(Ordering::Acquire);
        let record = Record {
            site: site.load(Ordering::Relaxed) as u32,
            size: size.load(Ordering::Relaxed),
            weight: f64::from_bits(weight.load(Ordering::Relaxed)),
        };
        fence(Ordering::Acquire);
        let same = turn.load(Ordering::Relaxed) == before && key.load(Ordering::Relaxed) == address;
        (same && before.is_multiple_of(2)).then_some(record)
    }
}

static NOWHERE: [AtomicU64; RECORD_WORDS] = [const { AtomicU64::new(0) }; RECORD_WORDS];

#[cfg(test)]
#[path = "live_tests.rs"]
mod tests;
