//! The word of an epoch and its operations. `tests/loom/trace_rings.rs` checks the orderings.
//!
//! ```text
//! detector   checks and finds no poll; arm_wakeup sets the bit; sleeps; woken, checks again
//! thread     loads the word with the bit; opens its slice; disarm_wakeup clears the bit; if it
//!            was set, wakes the detector
//! ```
//!
//! Each change is a release and an acquire. So a detector that reads the bit as cleared also reads
//! the slice for which it was cleared.

use crate::base::sync::AtomicU64;
use crate::base::sync::Ordering::{AcqRel, Acquire, Relaxed};

/// Bit in the word: the next poll that starts wakes the stall detector.
pub(crate) const WAKE_DETECTOR_BIT: u64 = 1;

/// Number of the recording times two, plus [`WAKE_DETECTOR_BIT`]; 0 while nothing is recorded.
pub(crate) struct RecordingEpoch(AtomicU64);

impl RecordingEpoch {
    /// Creates an epoch in `word`, which must be 0.
    pub(crate) const fn new(word: AtomicU64) -> Self {
        Self(word)
    }

    /// Returns the word. This one load is the whole cost of a poll while nothing is recorded.
    #[inline]
    pub(crate) fn load(&self, order: crate::base::sync::Ordering) -> u64 {
        self.0.load(order)
    }

    /// Starts the recording `number`, or stops recording if `None`. Clears [`WAKE_DETECTOR_BIT`].
    pub(crate) fn set_recording(&self, number: Option<u64>) {
        self.0.swap(number.map_or(0, |number| number << 1), AcqRel);
    }

    /// Sets [`WAKE_DETECTOR_BIT`], unless nothing is recorded.
    pub(crate) fn arm_wakeup(&self) {
        let with_bit = |epoch| (epoch != 0).then_some(epoch | WAKE_DETECTOR_BIT);
        let _ = self.0.fetch_update(AcqRel, Relaxed, with_bit);
    }

    /// Returns `true` if [`WAKE_DETECTOR_BIT`] is set, or nothing is recorded.
    pub(crate) fn is_wakeup_armed(&self) -> bool {
        let epoch = self.0.load(Acquire);
        epoch == 0 || epoch & WAKE_DETECTOR_BIT != 0
    }

    /// Clears [`WAKE_DETECTOR_BIT`]. Returns `true` if it was set.
    pub(crate) fn disarm_wakeup(&self) -> bool {
        self.0.fetch_and(!WAKE_DETECTOR_BIT, AcqRel) & WAKE_DETECTOR_BIT != 0
    }
}
