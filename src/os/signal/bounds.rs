//! Bounds of threads' stacks, written by the capture side and read by signal handlers.
//!
//! ```text
//! write   end = 0      start      end      each publishes the one before
//! read    end          start
//! ```
//!
//! If a thread has lost its entry, its handler may read the start of one stack and the end of
//! another. The end determines the length of the read; the start is only used to check that the
//! thread is on that stack. So it is sufficient that a reader of the new end also reads the new
//! start. `tests/loom/signal_handlers.rs` checks the orderings.

use std::ops::Range;

use crate::base::sync::AtomicU64;
use crate::base::sync::Ordering::{Acquire, Release};
use crate::os::mapped_memory::MappedWords;

/// Words of an entry: the stack's start and end, the thread ID, and padding to a power of two.
const ENTRY_WORDS: usize = 4;

/// A table of stack bounds, indexed by entry.
pub(crate) struct Bounds(MappedWords);

impl Bounds {
    /// Maps a table of `entries` entries. Returns `None` if the kernel refuses the memory.
    pub(crate) fn map(entries: usize) -> Option<Self> {
        let chunk = MappedWords::new(entries.checked_mul(ENTRY_WORDS)?);
        chunk.get_or_map()?;
        Some(Self(chunk))
    }

    /// Sets the stack bounds of the thread at `entry`; an empty range means unknown.
    pub(crate) fn set_stack(&self, entry: usize, stack: Range<u64>) {
        if let Some([start, end, ..]) = self.entry(entry) {
            // A handler between the two stores reads an empty stack, or one that the thread is not
            // on.
            end.store(0, Release);
            start.store(stack.start, Release);
            end.store(stack.end, Release);
        }
    }

    /// Sets the ID of the thread at `entry`; 0 means unknown.
    pub(crate) fn set_thread(&self, entry: usize, tid: u32) {
        if let Some([.., id, _]) = self.entry(entry) {
            id.store(tid.into(), Release);
        }
    }

    /// Returns the stack of the thread at `entry`. Its end is correct for every thread that is on
    /// it. Async-signal-safe.
    pub(crate) fn stack(&self, entry: usize) -> Option<Range<u64>> {
        let [start, end, ..] = self.entry(entry)?;
        let end = end.load(Acquire);
        Some(start.load(Acquire)..end)
    }

    /// Returns the ID of the thread at `entry`; 0 means unknown. Async-signal-safe.
    pub(crate) fn thread(&self, entry: usize) -> u32 {
        self.entry(entry).map_or(0, |[.., id, _]| id.load(Acquire) as u32)
    }

    fn entry(&self, entry: usize) -> Option<&[AtomicU64; ENTRY_WORDS]> {
        let at = entry.checked_mul(ENTRY_WORDS)?;
        self.0.get()?.get(at..at.checked_add(ENTRY_WORDS)?)?.try_into().ok()
    }
}
