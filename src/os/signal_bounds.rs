//! The bounds of threads' stacks, written by the capture side and read by signal handlers.
//!
//! ```text
//! write   end = 0      start      end      each publishes what went before
//! read    end          start
//! ```
//!
//! A handler of a thread that lost its entry meanwhile may read the start of one stack and the end of another. The
//! end decides how far is read, and the start only whether the thread is on that stack, so it is enough that
//! who sees the new end sees the new start. `tests/os_loom.rs` tries the orders.

use std::ops::Range;

use super::memory::Chunk;
use crate::base::sync::AtomicU64;
use crate::base::sync::Ordering::{Acquire, Release};

/// Words of an entry: the stack's start and end, the thread's ID, and one that fills a power of two.
const ENTRY: usize = 4;

/// A table of bounds, by entry.
pub(super) struct Bounds(Chunk);

impl Bounds {
    /// Maps a table of so many entries, or returns `None` if the kernel refuses the memory.
    pub(super) fn map(entries: usize) -> Option<Self> {
        let chunk = Chunk::new(entries.checked_mul(ENTRY)?);
        chunk.get_or_map()?;
        Some(Self(chunk))
    }

    /// Sets where the stack of the thread at `entry` lies; an empty range: not known.
    pub(super) fn set_stack(&self, entry: usize, stack: Range<u64>) {
        if let Some([start, end, ..]) = self.entry(entry) {
            // A handler between the two sees no stack, or one that the thread is not on.
            end.store(0, Release);
            start.store(stack.start, Release);
            end.store(stack.end, Release);
        }
    }

    /// Sets which thread is at `entry`; 0: not known.
    pub(super) fn set_thread(&self, entry: usize, tid: u32) {
        if let Some([.., id, _]) = self.entry(entry) {
            id.store(tid.into(), Release);
        }
    }

    /// The stack of the thread at `entry`; its end is right for each thread that is on it. Async-signal-safe.
    pub(super) fn stack(&self, entry: usize) -> Option<Range<u64>> {
        let [start, end, ..] = self.entry(entry)?;
        let end = end.load(Acquire);
        Some(start.load(Acquire)..end)
    }

    /// The thread at `entry`; 0: not known. Async-signal-safe.
    pub(super) fn thread(&self, entry: usize) -> u32 {
        self.entry(entry).map_or(0, |[.., id, _]| id.load(Acquire) as u32)
    }

    fn entry(&self, entry: usize) -> Option<&[AtomicU64; ENTRY]> {
        let at = entry.checked_mul(ENTRY)?;
        self.0.get()?.get(at..at.checked_add(ENTRY)?)?.try_into().ok()
    }
}
