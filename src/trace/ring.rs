//! The data that one thread writes while others read: the ring of its records, and its open slices.
//!
//! One thread writes and never waits, locks or allocates. Any thread can read at any time, and
//! detects which of the records it read may have been overwritten meanwhile.
//!
//! ```text
//! writer   fence(Release)   words of n (Relaxed)   head = n + 1 (Release)
//! reader   head (Acquire)   words (Relaxed)        fence(Acquire)   head again
//! ```
//!
//! The writer's fence is between the head store of its last record and the words of the next. So a
//! reader that loaded a word of record `n` then loads a head of at least `n`. It then discards the
//! record whose place `n` takes. A ring of `N` records yields the last `N - 1`. The fence is free
//! on x86-64 and a barrier on aarch64. A sequence number in each record would cost a third of the
//! ring.
//!
//! [`Open`] is one open slice. Its start is cleared before any other word changes and stored last.
//! So a reader that reads the same start twice has read matching words.
//!
//! This file does not interpret the words. `tests/trace_loom.rs` compiles it with loom's atomics.

use crate::base::sync::{AtomicU64, Ordering, fence};

/// The words of one record.
pub(crate) type Words = [u64; 2];

/// The last records of one thread, in memory provided by the caller.
#[derive(Debug)]
pub(crate) struct EventRing<M> {
    memory: M,
    /// Capacity in records; a power of two.
    records: u64,
    /// Number of records written so far.
    head: AtomicU64,
}

/// Records copied out of a ring.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct Copied {
    /// The records, oldest first.
    pub(crate) records: Vec<Words>,
    /// The number of the record after the last.
    pub(crate) next: u64,
    /// Number of requested records that were overwritten already.
    pub(crate) gone: u64,
}

impl<M: AsRef<[AtomicU64]>> EventRing<M> {
    /// Creates an empty ring in `memory`; the largest power of two of records that fits is used.
    pub(crate) fn new(memory: M) -> Self {
        let fitting = (memory.as_ref().len() / 2) as u64;
        let records = if fitting == 0 { 0 } else { 1 << fitting.ilog2() };
        Self { memory, records, head: AtomicU64::new(0) }
    }

    /// Writes a record. Must be called only by the thread that owns the ring.
    #[inline]
    pub(crate) fn push(&self, words: Words) {
        let head = self.head.load(Ordering::Relaxed);
        if let Some([first, second]) = self.place(head) {
            fence(Ordering::Release);
            first.store(words[0], Ordering::Relaxed);
            second.store(words[1], Ordering::Relaxed);
            self.head.store(head + 1, Ordering::Release);
        }
    }

    /// Returns the number of the next record.
    pub(crate) fn next(&self) -> u64 {
        self.head.load(Ordering::Acquire)
    }

    /// Copies the records from `first` on, newest first, until `wanted` returns `false`. `gone` is
    /// exact only if everything was wanted.
    pub(crate) fn copy(&self, first: u64, wanted: impl Fn(Words) -> bool) -> Copied {
        let mut records = Vec::new();
        let (next, gone) = self.copy_onto(&mut records, first, wanted);
        Copied { records, next, gone }
    }

    /// Appends like [`Self::copy`] to `records`. Returns the number of the record after the last,
    /// and the number of records overwritten. Allocates at most once.
    pub(crate) fn copy_onto(
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
        // The writer may be writing record `head` now, in the place of record `head - records`.
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

/// An open slice.
#[derive(Debug)]
pub(crate) struct Open {
    /// 0 if no slice is open.
    start: AtomicU64,
    what: AtomicU64,
}

impl Open {
    pub(crate) fn new() -> Self {
        Self { start: AtomicU64::new(0), what: AtomicU64::new(0) }
    }

    /// Opens the slice. Must be called only by the thread that owns it.
    #[inline]
    pub(crate) fn begin(&self, start: u64, what: u64) {
        self.start.store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        self.what.store(what, Ordering::Relaxed);
        self.start.store(start, Ordering::Release);
    }

    /// Closes the slice and returns its start and content. Must be called only by the thread that
    /// owns it.
    #[inline]
    pub(crate) fn end(&self) -> (u64, u64) {
        let was = (self.start.load(Ordering::Relaxed), self.what.load(Ordering::Relaxed));
        self.forget();
        was
    }

    /// Closes the slice without reading it. Must be called only by the thread that owns it.
    #[inline]
    pub(crate) fn forget(&self) {
        self.start.store(0, Ordering::Relaxed);
    }

    /// Returns start and content. `None` if no slice is open or it is being changed.
    pub(crate) fn read(&self) -> Option<(u64, u64)> {
        let start = self.start.load(Ordering::Acquire);
        let what = self.what.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        (start != 0 && self.start.load(Ordering::Relaxed) == start).then_some((start, what))
    }
}
