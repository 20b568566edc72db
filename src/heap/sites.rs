//! Where blocks of one size come from, and how many ever did: {stack, size} -> cumulative counts.
//!
//! Go counts by stack *and* block size, and so do we: that is what the label `bytes` of a sample says.
//! Sums are whole numbers, so that adding is one atomic instruction and sums of the same blocks agree to
//! the last digit in whatever order they were made: objects in 256ths, bytes rounded once a block.
//! `tests/heap_loom.rs` tries the orders in which rows and counts may be seen.

use std::ops::Range;

use super::index::Index;
use super::sampler::mix;
use super::segment::Record;
use crate::base::sync::AtomicU64;
use crate::base::sync::Ordering::{Acquire, Relaxed, Release};
use crate::os::memory::Chunk;

/// Sites in a chunk of 512 KiB.
const CHUNK: usize = 1 << 14;
const CHUNKS: usize = 6;
pub(super) const CAP: u64 = (CHUNK * CHUNKS) as u64;

/// A third more than there are sites.
const PLACES: usize = 1 << 17;

/// From here on a stack's sizes share a site: a program that allocates every size from one place must
/// not use up the places of the others.
const SHARED_FROM: u64 = CAP / 4 * 3;

const WORDS: usize = 4;

/// The size of a site that blocks of all sizes share.
pub(crate) const ANY_SIZE: u64 = 0;

/// The stack of a site whose blocks have none.
pub(crate) const NO_STACK: u32 = 0;

/// A number of objects and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    objects_256ths: u64,
    bytes: u64,
}

impl Amount {
    /// More than anything is.
    pub(crate) const UNLIKELY: Self = Self { objects_256ths: u64::MAX, bytes: u64::MAX };

    /// What a record stands for.
    pub(crate) fn of(record: &Record) -> Self {
        Self {
            objects_256ths: (record.weight * 256.0).round() as u64,
            bytes: (record.weight * record.size as f64).round() as u64,
        }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.objects_256ths = self.objects_256ths.saturating_add(other.objects_256ths);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    pub(crate) fn objects(self) -> i64 {
        ((self.objects_256ths + 128) / 256) as i64
    }

    pub(crate) fn bytes(self) -> i64 {
        i64::try_from(self.bytes).unwrap_or(i64::MAX)
    }
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Site {
    /// [`NO_STACK`] or an id of [`super::stacks::Stacks`].
    pub(crate) stack: u32,
    /// [`ANY_SIZE`] or that of all its blocks.
    pub(crate) size: u64,
    /// Everything that was ever allocated there.
    pub(crate) allocated: Amount,
}

pub(crate) struct Sites {
    index: Index,
    chunks: [Chunk; CHUNKS],
    /// Id 0 is nobody's.
    next: AtomicU64,
}

impl Sites {
    pub(crate) const fn new() -> Self {
        Self {
            index: Index::new(PLACES),
            chunks: [const { Chunk::new(CHUNK * WORDS) }; CHUNKS],
            next: AtomicU64::new(1),
        }
    }

    /// The id of the site of `size`-byte blocks at `stack`, or of all blocks there when the table is
    /// filling up; none when it is full.
    pub(crate) fn intern(&self, stack: u32, size: u64) -> Option<u32> {
        self.intern_exactly(stack, size, SHARED_FROM)
            .or_else(|| self.intern_exactly(stack, ANY_SIZE, CAP))
    }

    /// Counts a block for good.
    pub(crate) fn count(&self, site: u32, amount: Amount) {
        if let Some([_, _, objects, bytes]) = self.row(site) {
            // Release, for `iter`: who counts here has made the row or found it whole.
            objects.fetch_add(amount.objects_256ths, Release);
            bytes.fetch_add(amount.bytes, Relaxed);
        }
    }

    /// One past the last id.
    pub(crate) fn end(&self) -> u32 {
        self.next.load(Relaxed).min(CAP) as u32
    }

    /// The sites of these ids that a block was counted at; one whose first block is being counted may be
    /// missing, or lack that block's bytes.
    pub(crate) fn iter(&self, ids: Range<u32>) -> impl Iterator<Item = (u32, Site)> + '_ {
        ids.filter_map(|id| {
            let [stack, size, objects, bytes] = self.row(id)?;
            // First: with a count comes the row it belongs to, which may be half written before.
            let objects_256ths = objects.load(Acquire);
            if objects_256ths == 0 {
                return None;
            }
            let allocated = Amount { objects_256ths, bytes: bytes.load(Relaxed) };
            let (stack, size) = (stack.load(Relaxed) as u32, size.load(Relaxed));
            Some((id, Site { stack, size, allocated }))
        })
    }

    fn intern_exactly(&self, stack: u32, size: u64, cap: u64) -> Option<u32> {
        let same = |id| {
            self.row(id).is_some_and(|[its_stack, its_size, ..]| {
                its_stack.load(Relaxed) == u64::from(stack) && its_size.load(Relaxed) == size
            })
        };
        // The index publishes the id with release, after these plain stores.
        self.index.intern(mix(mix(u64::from(stack)) ^ size), same, || {
            let step = |next: u64| (next < cap).then_some(next + 1);
            let id = self.next.fetch_update(Relaxed, Relaxed, step).ok()?;
            let id = u32::try_from(id).ok()?;
            self.chunks.get(id as usize / CHUNK)?.get_or_map()?;
            let [its_stack, its_size, ..] = self.row(id)?;
            its_stack.store(u64::from(stack), Relaxed);
            its_size.store(size, Relaxed);
            Some(id)
        })
    }

    fn row(&self, id: u32) -> Option<&[AtomicU64; WORDS]> {
        let chunk = self.chunks.get(id as usize / CHUNK)?.get()?;
        chunk.get(id as usize % CHUNK * WORDS..)?.first_chunk()
    }
}
