//! The word of an epoch, and what may be done to it; `tests/trace_loom.rs` tries the orders.
//!
//! ```text
//! detector   looks, sees no poll      rest: sets RESTS       … woken: sees RESTS gone, looks
//! thread     loads the word, has RESTS: opens its slice      stir: takes RESTS away, wakes if it was there
//! ```
//!
//! A change releases what went before it and acquires what others released, so that the detector that sees the bit
//! gone sees the slice that it was taken away for.

use crate::base::sync::AtomicU64;
use crate::base::sync::Ordering::{AcqRel, Acquire, Relaxed};

/// In the word: the next poll that begins wakes the stall detector.
pub(super) const RESTS: u64 = 1;

/// The number of the recording that runs, times two, and [`RESTS`]; 0 while none does.
pub(crate) struct Epoch(AtomicU64);

impl Epoch {
    /// Keeps it in `word`, which is 0 at first.
    pub(super) const fn of(word: AtomicU64) -> Self {
        Self(word)
    }

    /// The word. One load, all that a poll costs while nothing is recorded.
    #[inline]
    pub(crate) fn load(&self, order: crate::base::sync::Ordering) -> u64 {
        self.0.load(order)
    }

    /// Sets which recording runs, `None` for no number. Takes [`RESTS`] away.
    pub(super) fn record(&self, number: Option<u64>) {
        self.0.swap(number.map_or(0, |number| number << 1), AcqRel);
    }

    /// Sets [`RESTS`], unless nothing is recorded.
    pub(super) fn rest(&self) {
        let resting = |epoch| (epoch != 0).then_some(epoch | RESTS);
        let _ = self.0.fetch_update(AcqRel, Relaxed, resting);
    }

    /// Whether [`RESTS`] is set, or nothing is recorded.
    pub(super) fn rests(&self) -> bool {
        let epoch = self.0.load(Acquire);
        epoch == 0 || epoch & RESTS != 0
    }

    /// Takes [`RESTS`] away; returns whether it was there.
    pub(super) fn stir(&self) -> bool {
        self.0.fetch_and(!RESTS, AcqRel) & RESTS != 0
    }
}
