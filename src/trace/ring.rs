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
//! [`OpenSliceCell`] is one open slice. Its start is cleared before any other word changes and
//! stored last. So a reader that reads the same start twice has read matching words.
//!
//! This file does not interpret the words. `tests/loom/trace_rings.rs` compiles it with loom's
//! atomics.

use crate::base::sync::{AtomicU64, Ordering, fence};

/// The words of one record.
pub(crate) type Words = [u64; 2];

/// The last records of one thread, in memory provided by the caller.
#[derive(Debug)]
pub(crate) struct EventRing<M> {
    memory: M,
    /// Capacity in records; a power of two.
    capacity: u64,
    /// Number of records written so far.
    head: AtomicU64,
}

/// Records copied out of a ring.
#[derive(Debug, Default, PartialEq, Eq)]
pub(crate) struct CopiedRecords {
    /// The records, oldest first.
    pub(crate) records: Vec<Words>,
    /// The number of the record after the last.
    pub(crate) next: u64,
    /// Number of requested records that were overwritten already.
    pub(crate) overwritten: u64,
}

impl<M: AsRef<[AtomicU64]>> EventRing<M> {
    /// Creates an empty ring in `memory`; the largest power of two of records that fits is used.
    pub(crate) fn new(memory: M) -> Self {
        let fitting = (memory.as_ref().len() / 2) as u64;
        let records = if fitting == 0 { 0 } else { 1 << fitting.ilog2() };
        Self { memory, capacity: records, head: AtomicU64::new(0) }
    }

    /// Writes a record. Must be called only by the thread that owns the ring.
    #[inline]
    pub(crate) fn push(&self, words: Words) {
        let head = self.head.load(Ordering::Relaxed);
        if let Some([first, second]) = self.slot(head) {
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

    /// Copies the records from `first` on, newest first, until `wanted` returns `false`.
    /// `overwritten` is exact only if everything was wanted.
    pub(crate) fn copy(&self, first: u64, wanted: impl Fn(Words) -> bool) -> CopiedRecords {
        let mut records = Vec::new();
        let (next, overwritten) = self.copy_into(&mut records, first, wanted);
        CopiedRecords { records, next, overwritten }
    }

    /// Appends like [`Self::copy`] to `records`. Returns the number of the record after the last,
    /// and the number of records overwritten. Allocates at most once.
    pub(crate) fn copy_into(
        &self,
        records: &mut Vec<Words>,
        first: u64,
        wanted: impl Fn(Words) -> bool,
    ) -> (u64, u64) {
        let next = self.next();
        let oldest = next.saturating_sub(self.capacity);
        let old_len = records.len();
        let max_records = next.saturating_sub(first.max(oldest));
        if records.try_reserve_exact(max_records as usize).is_err() {
            return (next, next.saturating_sub(first));
        }
        for number in (first.max(oldest)..next).rev() {
            let Some([a, b]) = self.slot(number) else { break };
            let words = [a.load(Ordering::Relaxed), b.load(Ordering::Relaxed)];
            if !wanted(words) {
                break;
            }
            records.push(words);
        }
        fence(Ordering::Acquire);
        // The writer may be writing record `head` now, in the place of record `head - records`.
        let first_safe = (self.head.load(Ordering::Relaxed) + 1).saturating_sub(self.capacity);
        records.truncate(old_len + next.saturating_sub(first_safe) as usize);
        if let Some(copied) = records.get_mut(old_len..) {
            copied.reverse();
        }
        (next, first_safe.min(next).saturating_sub(first))
    }

    #[inline]
    fn slot(&self, number: u64) -> Option<&[AtomicU64; 2]> {
        let index = 2 * (number & self.capacity.wrapping_sub(1)) as usize;
        self.memory.as_ref().get(index..index + 2)?.try_into().ok()
    }
}

/// An open slice.
#[derive(Debug)]
pub(crate) struct OpenSliceCell {
    /// 0 if no slice is open.
    start: AtomicU64,
    tag: AtomicU64,
}

impl OpenSliceCell {
    pub(crate) fn new() -> Self {
        Self { start: AtomicU64::new(0), tag: AtomicU64::new(0) }
    }

    /// Opens the slice. Must be called only by the thread that owns it.
    #[inline]
    pub(crate) fn begin(&self, start: u64, tag: u64) {
        self.start.store(0, Ordering::Relaxed);
        fence(Ordering::Release);
        self.tag.store(tag, Ordering::Relaxed);
        self.start.store(start, Ordering::Release);
    }

    /// Closes the slice and returns its start and content. Must be called only by the thread that
    /// owns it.
    #[inline]
    pub(crate) fn end(&self) -> (u64, u64) {
        let closed = (self.start.load(Ordering::Relaxed), self.tag.load(Ordering::Relaxed));
        self.clear();
        closed
    }

    /// Closes the slice without reading it. Must be called only by the thread that owns it.
    #[inline]
    pub(crate) fn clear(&self) {
        self.start.store(0, Ordering::Relaxed);
    }

    /// Returns start and content. `None` if no slice is open or it is being changed.
    pub(crate) fn read(&self) -> Option<(u64, u64)> {
        let start = self.start.load(Ordering::Acquire);
        let tag = self.tag.load(Ordering::Relaxed);
        fence(Ordering::Acquire);
        (start != 0 && self.start.load(Ordering::Relaxed) == start).then_some((start, tag))
    }
}
