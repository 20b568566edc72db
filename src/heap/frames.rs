//! Every address of every stack once: address -> number, append-only, without locks.
//!
//! Numbers begin at 1 and are dense, so they serve as the ids of a profile's locations just as they
//! are: a dump neither sorts nor hashes what stacks are made of, and a stack takes half the room.

use super::index::Index;
use super::sampler::mix;
use crate::base::sync::AtomicU64;
use crate::base::sync::Ordering::Relaxed;
use crate::os::memory::Chunk;

/// 128 KiB.
const CHUNK: usize = 1 << 14;

/// 131,072 addresses: ten times what a service of half a million lines was seen to allocate under.
const CHUNKS: usize = 8;
pub(super) const CAP: u64 = (CHUNK * CHUNKS) as u64;

const PLACES: usize = 1 << 18;

pub(crate) struct Frames {
    index: Index,
    chunks: [Chunk; CHUNKS],
    next: AtomicU64,
}

impl Frames {
    pub(crate) const fn new() -> Self {
        Self {
            index: Index::new(PLACES),
            chunks: [const { Chunk::new(CHUNK) }; CHUNKS],
            next: AtomicU64::new(1),
        }
    }

    /// The number of `address`; none when the table is full.
    pub(crate) fn intern(&self, address: u64) -> Option<u32> {
        // The index publishes the number with release, after this plain store.
        self.index.intern(
            mix(address),
            |number| self.get(number) == Some(address),
            || {
                let step = |next: u64| (next < CAP).then_some(next + 1);
                let number = self.next.fetch_update(Relaxed, Relaxed, step).ok()? as usize;
                let chunk = self.chunks.get(number / CHUNK)?.get_or_map()?;
                chunk.get(number % CHUNK)?.store(address, Relaxed);
                u32::try_from(number).ok()
            },
        )
    }

    /// The address of a number of this table.
    pub(crate) fn get(&self, number: u32) -> Option<u64> {
        let chunk = self.chunks.get(number as usize / CHUNK)?.get()?;
        Some(chunk.get(number as usize % CHUNK)?.load(Relaxed))
    }

    /// All numbers with their addresses. An address two threads brought at once may have two; one that
    /// is being put in is 0.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        let end = self.next.load(Relaxed).min(CAP) as u32;
        (1..end).filter_map(|number| Some((number, self.get(number)?)))
    }
}
