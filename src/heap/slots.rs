//! Numbered slots of one size in mapped memory, with reference counts.
//!
//! The storage of the tables of stacks, frames and sites. Slots come from a cursor first and from a
//! list of returned slots afterwards, so a full table has free slots again after entries are
//! dropped.
//!
//! ```text
//! slot   {state, link, payload…}
//! state  generation:31 | recent:1 | references:32     0 references: not in use
//! link   the next free slot, while it is free
//! ```
//!
//! - **Claim**: `claim_free` and `claim_fresh` return a slot that belongs to the caller alone. The
//!   caller writes the payload and calls `publish`.
//! - **Hold**: a thread that finds a slot through an index or by its number adds a reference first.
//!   While a slot is held, its payload does not change.
//! - **Release**: the caller that drops the last reference disposes of the payload and calls
//!   `put_back`. The generation has changed by then, so a number that was kept without a reference
//!   can be validated.
//!
//! Nothing waits. A thread that never continues after a step (fork copies only one thread to the
//! child) costs one slot. `tests/loom_heap` tests the interleavings.

use crate::base::sync::AtomicU64;
use crate::base::sync::Ordering::{AcqRel, Acquire, Relaxed, Release};
use crate::os::mapped_memory::MappedWords;

/// Words of a slot before its payload.
const HEADER_WORDS: usize = 2;

const REFERENCES_MASK: u64 = u32::MAX as u64;
const RECENT_BIT: u64 = 1 << 32;
const GENERATION_STEP: u64 = 1 << 33;

const NUMBER_MASK: u64 = u32::MAX as u64;
/// Increment of the change counter above the first free number. Prevents ABA: a list that was
/// changed twice compares as different.
const CHANGE_STEP: u64 = 1 << 32;

/// Slots with `PAYLOAD_WORDS` words each, `SLOTS_PER_CHUNK` per mapping, in at most `MAX_CHUNKS`
/// mappings.
pub(crate) struct BlockSlots<
    const PAYLOAD_WORDS: usize,
    const SLOTS_PER_CHUNK: usize,
    const MAX_CHUNKS: usize,
> {
    chunks: [MappedWords; MAX_CHUNKS],
    /// Lowest number that was never claimed. Number 0 is not used.
    next_fresh: AtomicU64,
    /// Number of the first free slot, or 0, in the low half; a counter of changes in the high half.
    free_list: AtomicU64,
}

/// Result of an attempt to evict an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Eviction {
    /// The slot belongs to the caller.
    Evicted,
    /// The slot has one reference and was used since the last attempt.
    Recent,
    /// The slot is held or not in use.
    InUse,
}

impl<const PAYLOAD_WORDS: usize, const SLOTS_PER_CHUNK: usize, const MAX_CHUNKS: usize>
    BlockSlots<PAYLOAD_WORDS, SLOTS_PER_CHUNK, MAX_CHUNKS>
{
    pub(crate) const fn new() -> Self {
        Self {
            chunks: [const { MappedWords::new(SLOTS_PER_CHUNK * (HEADER_WORDS + PAYLOAD_WORDS)) };
                MAX_CHUNKS],
            next_fresh: AtomicU64::new(1),
            free_list: AtomicU64::new(0),
        }
    }

    /// Returns the highest claimed number + 1.
    pub(crate) fn end(&self) -> u32 {
        self.next_fresh.load(Relaxed) as u32
    }

    /// Claims a slot that was put back.
    pub(crate) fn claim_free(&self) -> Option<u32> {
        let mut first = self.free_list.load(Acquire);
        loop {
            let number = (first & NUMBER_MASK) as u32;
            // If another thread claims the slot at this moment, the link is meaningless and the
            // exchange fails.
            let link = self.words(number)?.get(1)?.load(Relaxed);
            let next = (first & !NUMBER_MASK).wrapping_add(CHANGE_STEP) | link & NUMBER_MASK;
            match self.free_list.compare_exchange(first, next, AcqRel, Acquire) {
                Ok(_) => return Some(number),
                Err(changed) => first = changed,
            }
        }
    }

    /// Claims a slot that was never claimed, below `limit`. If the kernel refuses a mapping, no
    /// number is consumed.
    pub(crate) fn claim_fresh(&self, limit: u64) -> Option<u32> {
        let limit = limit.min((MAX_CHUNKS * SLOTS_PER_CHUNK) as u64);
        let step = |next: u64| {
            self.chunks.get(next as usize / SLOTS_PER_CHUNK)?.get_or_map()?;
            (next < limit).then_some(next + 1)
        };
        let number = self.next_fresh.fetch_update(Relaxed, Relaxed, step).ok()?;
        u32::try_from(number).ok()
    }

    /// Returns a slot without references. Its payload stays unchanged until the slot is claimed
    /// again.
    pub(crate) fn put_back(&self, number: u32) {
        let Some(link) = self.words(number).and_then(|words| words.get(1)) else { return };
        let mut first = self.free_list.load(Acquire);
        loop {
            link.store(first & NUMBER_MASK, Relaxed);
            let next = (first & !NUMBER_MASK).wrapping_add(CHANGE_STEP) | u64::from(number);
            match self.free_list.compare_exchange(first, next, AcqRel, Acquire) {
                Ok(_) => return,
                Err(changed) => first = changed,
            }
        }
    }

    /// Returns the payload of a slot. Valid only while the slot is held or its generation is
    /// validated.
    pub(crate) fn payload(&self, number: u32) -> Option<&[AtomicU64; PAYLOAD_WORDS]> {
        self.words(number)?.get(HEADER_WORDS..)?.first_chunk()
    }

    /// Makes a claimed slot visible with this number of references.
    pub(crate) fn publish(&self, number: u32, references: u32) {
        let Some(state) = self.state(number) else { return };
        let previous = state.load(Relaxed) & !(REFERENCES_MASK | RECENT_BIT);
        state.store(previous | u64::from(references), Release);
    }

    /// Adds a reference to a slot in use. Returns its generation.
    pub(crate) fn hold(&self, number: u32) -> Option<u32> {
        let step = |state: u64| (state & REFERENCES_MASK != 0).then_some(state + 1);
        self.state(number)?.fetch_update(Acquire, Relaxed, step).ok().map(generation)
    }

    /// Returns the generation of a held slot.
    pub(crate) fn generation(&self, number: u32) -> u32 {
        self.state(number).map_or(0, |state| generation(state.load(Relaxed)))
    }

    /// Marks a held slot as used.
    pub(crate) fn mark_recent(&self, number: u32) {
        if let Some(state) = self.state(number) {
            let step = |state: u64| (state & RECENT_BIT == 0).then_some(state | RECENT_BIT);
            // Fails if the slot is already marked.
            let _ = state.fetch_update(Relaxed, Relaxed, step);
        }
    }

    /// Drops this number of references. Returns `true` if they were the last: the slot belongs to
    /// the caller.
    #[must_use = "a slot without references must be returned to the free list"]
    pub(crate) fn release(&self, number: u32, references: u32) -> bool {
        let references = u64::from(references);
        let step = |state: u64| match (state & REFERENCES_MASK).checked_sub(references)? {
            0 => Some(next_generation(state)),
            _ => Some(state - references),
        };
        let previous = self.state(number).map(|state| state.fetch_update(AcqRel, Relaxed, step));
        previous
            .is_some_and(|before| before.is_ok_and(|state| state & REFERENCES_MASK == references))
    }

    /// Drops the last reference of a slot that is not held and was not used since the last attempt.
    pub(crate) fn evict(&self, number: u32) -> Eviction {
        let Some(state) = self.state(number) else { return Eviction::InUse };
        let step = |state: u64| match state & (REFERENCES_MASK | RECENT_BIT) {
            1 => Some(next_generation(state)),
            used if used == RECENT_BIT | 1 => Some(state & !RECENT_BIT),
            _ => None,
        };
        match state.fetch_update(AcqRel, Relaxed, step) {
            Ok(before) if before & RECENT_BIT != 0 => Eviction::Recent,
            Ok(_) => Eviction::Evicted,
            Err(_) => Eviction::InUse,
        }
    }

    fn state(&self, number: u32) -> Option<&AtomicU64> {
        self.words(number)?.first()
    }

    fn words(&self, number: u32) -> Option<&[AtomicU64]> {
        if number == 0 {
            return None;
        }
        let chunk = self.chunks.get(number as usize / SLOTS_PER_CHUNK)?.get()?;
        let size = HEADER_WORDS + PAYLOAD_WORDS;
        let start = number as usize % SLOTS_PER_CHUNK * size;
        chunk.get(start..start + size)
    }
}

const fn next_generation(state: u64) -> u64 {
    (state & !(REFERENCES_MASK | RECENT_BIT)).wrapping_add(GENERATION_STEP)
}

const fn generation(state: u64) -> u32 {
    (state >> GENERATION_STEP.trailing_zeros()) as u32
}
