//! What one thread writes while others may read: the ring of its records, and the slices it is in.
//!
//! One thread writes; it never waits, locks or allocates. Any thread reads at any time, and learns which of
//! what it has read may have been written over meanwhile.
//!
//! ```text
//! writer   fence(Release)   words of n (Relaxed)   head = n + 1 (Release)
//! reader   head (Acquire)   words (Relaxed)        fence(Acquire)   head again
//! ```
//!
//! The writer's fence stands between the head of its last record and the words of the next. So a reader
//! that has seen one word of record `n` sees at its second look a head of at least `n`, and then gives up
//! the record whose place `n` takes; a ring of `N` records yields the last `N - 1`. The fence costs nothing
//! on x86-64 and a barrier on aarch64. A sequence number in each record would cost a third of the ring.
//!
//! [`Open`] is one slice that goes on. Its start is taken away before anything of it changes, and put back
//! last, so that a reader who finds the same start twice has read what belongs to it.
//!
//! Nothing here knows what the words mean. `tests/trace_loom.rs` compiles this file with loom's atomics.

use crate::base::sync::{AtomicU64, Ordering, fence};

/// A record.
pub(super) type Words = [u64; 2];

/// The last records of one thread, in memory that is given.
#[derive(Debug)]
pub(super) struct Ring<M> {
    memory: M,
    /// How many records there are room for; a power of two.
    records: u64,
    /// How many have been written.
    head: AtomicU64,
}

/// What is in a ring.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Copied {
    /// The records, oldest first.
    pub(super) records: Vec<Words>,
    /// The number of the record after the last.
    pub(super) next: u64,
    /// How many had been asked for and were gone.
    pub(super) gone: u64,
}

impl<M: AsRef<[AtomicU64]>> Ring<M> {
    /// An empty ring in `memory`; of its words a power of two is used.
    pub(super) fn new(memory: M) -> Self {
        let fitting = (memory.as_ref().len() / 2) as u64;
        let records = if fitting == 0 { 0 } else { 1 << fitting.ilog2() };
        Self { memory, records, head: AtomicU64::new(0) }
    }

    /// Writes a record. Only the one thread that owns the ring may.
    #[inline]
    pub(super) fn push(&self, words: Words) {
        let head = self.head.load(Ordering::Relaxed);
        if let Some([first, second]) = self.place(head) {
            fence(Ordering::Release);
            first.store(words[0], Ordering::Relaxed);
            second.store(words[1], Ordering::Relaxed);
            self.head.store(head + 1, Ordering::Release);
        }
    }

    /// The number of the next record.
    pub(super) fn next(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    /// Copies what there is from record `first` on, as far as `wanted` says, asked from the last record
    /// backwards. `gone` is right when everything was wanted.
    pub(super) fn copy(&self, first: u64, wanted: impl Fn(Words) -> bool) -> Copied {
        let mut records = Vec::new();
        let (next, gone) = self.copy_onto(&mut records, first, wanted);
        Copied { records, next, gone }
    }

    /// As [`Self::copy`], to behind what is in `records`; the number of the record after the last, and how
    /// many were gone. Allocates once at most.
    pub(super) fn copy_onto(
        &self,
        records: &mut Vec<Words>,
        first: u64,
        wanted: impl Fn(Words) -> bool,
    ) -> (u64, u64) {
        let next = self.next();
        let oldest = next.saturating_sub(self.records);
        let before = records.len();
        let most = next.saturating_sub(first.max(oldest));
        if records.try_reserve_exact(most as usize).is_err() {
            return (next, next.saturating_sub(first));
        }
        for number in (first.max(oldest)..next).rev() {
            let Some([a, b]) = self.place(number) else { break };
            let words = [a.load(Ordering::Relaxed), b.load(Ordering::Relaxed)];
            if !wanted(words) {
                break;
            }
            records.push(words);
        }
        fence(Ordering::Acquire);
        // Record `head` may be half written by now, in the place of the one `records` before it.
        let safe = (self.head.load(Ordering::Relaxed) + 1).saturating_sub(self.records);
        records.truncate(before + next.saturating_sub(safe) as usize);
        if let Some(copied) = records.get_mut(before..) {
            copied.reverse();
        }
        (next, safe.min(next).saturating_sub(first))
    }

    #[inline]
    fn place(&self, number: u64) -> Option<&[AtomicU64; 2]> {
        let at = 2 * (number & self.records.wrapping_sub(1)) as usize;
        self.memory.as_ref().get(at..at + 2)?.try_into().ok()
    }
}

/// A slice that goes on.
#[derive(Debug)]
pub(super) struct Open {
    /// 0 for none.
    start: AtomicU64,
    what: AtomicU64,
}

impl Open {
    /// None.
    pub(super) fn new() -> Self {
        Self { start: AtomicU64::new(0), what: AtomicU64::new(0) }
    }

    /// It begins. Only the one thread that owns it may.
    #[inline]
    pub(super) fn begin(&self, start: u64, what: u64) {
        self.start.store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        self.what.store(what, Ordering::Relaxed);
        self.start.store(start, Ordering::Release);
    }

    /// It ends; its start and what it was. Only the one thread that owns it may.
    #[inline]
    pub(super) fn end(&self) -> (u64, u64) {
        let was = (self.start.load(Ordering::Relaxed), self.what.load(Ordering::Relaxed));
        self.forget();
        was
    }

    /// It ends, for one who knows what it was. Only the one thread that owns it may.
    #[inline]
    pub(super) fn forget(&self) {
        self.start.store(0, Ordering::Relaxed);
    }

    /// Its start and what it is, if it goes on and is not just changing.
    pub(super) fn read(&self) -> Option<(u64, u64)> {
        let start = self.start.load(Ordering::Acquire);
        let what = self.what.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        (start != 0 && self.start.load(Ordering::Relaxed) == start).then_some((start, what))
    }
}
