//! The time at which a probe ran, passed from the thread that ran it to the reader.

use std::sync::atomic::{AtomicU64, Ordering};

use crate::base::Moment;

/// A moment or none, in one word: nanoseconds plus one, or 0.
#[derive(Debug, Default)]
pub(super) struct RunTime(AtomicU64);

impl RunTime {
    /// Clears the time before the probe is sent.
    pub(super) fn clear(&self) {
        self.0.store(0, Ordering::Relaxed);
    }

    /// Sets the time. A reader that reads it also reads what this thread stored before.
    pub(super) fn set(&self, at: Moment) {
        self.0.store(at.as_nanos().saturating_add(1), Ordering::Release);
    }

    /// Returns the time, or `None` if the probe has not run.
    pub(super) fn get(&self) -> Option<Moment> {
        self.0.load(Ordering::Acquire).checked_sub(1).map(Moment::from_nanos)
    }
}
