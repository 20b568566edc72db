//! A value that is replaced while it is read, with slots that show which readers may still use an
//! old one.
//!
//! ```text
//! read      turn: even -> odd, by one reader of the slot    load the value
//!           turn: odd -> even
//! replace   swap the value    touch every turn              free the old value once each turn
//!                                                           that was odd has changed
//! ```
//!
//! Neither side waits. Every change of a turn is a read-modify-write, including the replacer's
//! touch (an addition of 0). All changes of one turn are therefore totally ordered, and each
//! synchronizes with its predecessors. A reader that claims a slot after the touch reads the new
//! value. A claim before the touch is visible to the replacer. `tests/loom/signal_handlers.rs`
//! checks all orders.

use std::ptr;

use crate::base::sync::Ordering::{AcqRel, Acquire, Relaxed};
use crate::base::sync::{AtomicPtr, AtomicU32};

/// A shared value with `N` reader slots.
pub(crate) struct SlotPool<T, const N: usize> {
    value: AtomicPtr<T>,
    sequences: [AtomicU32; N],
}

/// Turns of all slots, read at a replacement.
pub(crate) type SlotSequences<const N: usize> = [u32; N];

impl<T, const N: usize> SlotPool<T, N> {
    /// Creates a pool without a value, with all slots free.
    pub(crate) const fn new() -> Self {
        Self { value: AtomicPtr::new(ptr::null_mut()), sequences: [const { AtomicU32::new(0) }; N] }
    }

    /// Returns `true` if no value has been set.
    pub(crate) fn is_empty(&self) -> bool {
        self.value.load(Acquire).is_null()
    }

    /// Returns the value. For the replacer only, which can rely on it not being freed.
    pub(crate) fn value(&self) -> *mut T {
        self.value.load(Acquire)
    }

    /// Claims a free slot, or returns `None` if there is none. Async-signal-safe.
    pub(crate) fn claim(&self) -> Option<SlotClaim<'_, T, N>> {
        self.sequences.iter().enumerate().find_map(|(slot, sequence)| {
            let free = sequence.load(Relaxed);
            let is_claimed = free.is_multiple_of(2)
                && sequence.compare_exchange(free, free.wrapping_add(1), AcqRel, Relaxed).is_ok();
            // Created only after a successful exchange: dropping a claim frees its slot.
            is_claimed.then(|| SlotClaim { pool: self, slot })
        })
    }

    /// Replaces the value with `fresh`. Returns the old one, which may be freed once it is not [in
    /// use](Self::is_in_use) at the returned turns.
    pub(crate) fn replace(&self, fresh: *mut T) -> (*mut T, SlotSequences<N>) {
        let old = self.value.swap(fresh, AcqRel);
        (old, std::array::from_fn(|slot| self.sequence(slot).fetch_add(0, AcqRel)))
    }

    /// Returns `true` if a slot that was claimed at `turns` has not been released since.
    pub(crate) fn is_in_use(&self, sequences: &SlotSequences<N>) -> bool {
        let mut slots = self.sequences.iter().zip(sequences);
        slots.any(|(slot, &sequence)| sequence % 2 == 1 && slot.load(Acquire) == sequence)
    }

    fn sequence(&self, slot: usize) -> &AtomicU32 {
        // All callers pass a `slot` below `N`.
        self.sequences.get(slot).unwrap_or(&self.sequences[0])
    }
}

/// A claimed slot: the right to read the value and to use the slot's data.
pub(crate) struct SlotClaim<'a, T, const N: usize> {
    pool: &'a SlotPool<T, N>,
    slot: usize,
}

impl<T, const N: usize> SlotClaim<'_, T, N> {
    /// Returns the index of the slot, which no other claim has.
    pub(crate) fn slot(&self) -> usize {
        self.slot
    }

    /// Returns the value, which is not freed before the claim is dropped.
    pub(crate) fn value(&self) -> *mut T {
        self.pool.value.load(Acquire)
    }
}

impl<T, const N: usize> Drop for SlotClaim<'_, T, N> {
    fn drop(&mut self) {
        self.pool.sequence(self.slot).fetch_add(1, AcqRel);
    }
}
