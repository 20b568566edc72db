//! A value that is replaced under its readers, and the slots that say who may still be reading an old one.
//!
//! ```text
//! read      turn: even -> odd, by one reader of the slot     load the value
//!           turn: odd -> even
//! replace   swap the value      touch every turn             free the old one once each turn that was odd
//!                                                            has moved on
//! ```
//!
//! Neither waits. Every change of a turn is a read-modify-write, the replacer's touch (an addition of 0) too, so they
//! are in one order in which each sees all that went before: a reader that claims a slot after the touch
//! sees the swap that went before it, and one that claimed it before is seen by the touch. `tests/os_loom.rs` tries the orders.

use std::ptr;

use crate::base::sync::Ordering::{AcqRel, Acquire, Relaxed};
use crate::base::sync::{AtomicPtr, AtomicU32};

/// A value and `N` slots.
pub(crate) struct Pool<T, const N: usize> {
    value: AtomicPtr<T>,
    turns: [AtomicU32; N],
}

/// The turns of all slots at one moment.
pub(crate) type Turns<const N: usize> = [u32; N];

impl<T, const N: usize> Pool<T, N> {
    /// No value, and all slots free.
    pub(crate) const fn new() -> Self {
        Self { value: AtomicPtr::new(ptr::null_mut()), turns: [const { AtomicU32::new(0) }; N] }
    }

    /// Whether there is no value yet.
    pub(crate) fn is_empty(&self) -> bool {
        self.value.load(Acquire).is_null()
    }

    /// The value, for who replaces it and so knows that it is not freed.
    pub(crate) fn value(&self) -> *mut T {
        self.value.load(Acquire)
    }

    /// Claims a free slot, or returns `None` if there is none. Async-signal-safe.
    pub(crate) fn claim(&self) -> Option<Claim<'_, T, N>> {
        self.turns.iter().enumerate().find_map(|(slot, turn)| {
            let free = turn.load(Relaxed);
            let won = free.is_multiple_of(2)
                && turn.compare_exchange(free, free.wrapping_add(1), AcqRel, Relaxed).is_ok();
            // Made only when won: dropping one gives the slot away.
            won.then(|| Claim { pool: self, slot })
        })
    }

    /// Puts `fresh` in the place of the value. Returns the old one, to be freed once it is not
    /// [in use](Self::is_in_use) at these turns.
    pub(crate) fn replace(&self, fresh: *mut T) -> (*mut T, Turns<N>) {
        let old = self.value.swap(fresh, AcqRel);
        (old, std::array::from_fn(|slot| self.turn(slot).fetch_add(0, AcqRel)))
    }

    /// Whether a slot that was claimed at `turns` is not given back yet.
    pub(crate) fn is_in_use(&self, turns: &Turns<N>) -> bool {
        let mut slots = self.turns.iter().zip(turns);
        slots.any(|(slot, &turn)| turn % 2 == 1 && slot.load(Acquire) == turn)
    }

    fn turn(&self, slot: usize) -> &AtomicU32 {
        // `slot` is below `N` wherever this is called.
        self.turns.get(slot).unwrap_or(&self.turns[0])
    }
}

/// The right to read the value and to use what belongs to a slot.
pub(crate) struct Claim<'a, T, const N: usize> {
    pool: &'a Pool<T, N>,
    slot: usize,
}

impl<T, const N: usize> Claim<'_, T, N> {
    /// The number of the slot, which is this claim's alone.
    pub(crate) fn slot(&self) -> usize {
        self.slot
    }

    /// The value, which is not freed before the claim is dropped.
    pub(crate) fn value(&self) -> *mut T {
        self.pool.value.load(Acquire)
    }
}

impl<T, const N: usize> Drop for Claim<'_, T, N> {
    fn drop(&mut self) {
        self.pool.turn(self.slot).fetch_add(1, AcqRel);
    }
}
