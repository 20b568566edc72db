//! The epoch of the recording, and the wake-up of the stall detector: one word. While off, loading
//! it is the whole cost of a poll.
//!
//! The stall detector sleeps while no task is being polled. The lowest bit of [`EPOCH`]
//! ([`WAKE_DETECTOR_BIT`]) is set while it sleeps. A thread whose rings hold the epoch without that
//! bit takes the slow path of a new recording, which exists anyway. It wakes the detector once its
//! slice is open. So a poll costs nothing extra, except the first one after a sleep, which makes
//! one `write` to an `eventfd`.

use std::sync::atomic::{AtomicU64, Ordering};

use super::epoch_word::RecordingEpoch;
use crate::os::eventfd::WakeFd;

pub(crate) use super::epoch_word::WAKE_DETECTOR_BIT;

/// Epoch of the recording.
pub(crate) static EPOCH: RecordingEpoch = RecordingEpoch::new(AtomicU64::new(0));

/// Wakes the stall detector: a poll started while it slept, or recording started or stopped.
pub(crate) static POLL_STARTED: WakeFd = WakeFd::new();

/// Tick at which the recording started.
pub(crate) static RECORDING_START: AtomicU64 = AtomicU64::new(0);

/// Starts the recording `number`, or stops recording if `None`.
pub(crate) fn set_recording(number: Option<u64>) {
    EPOCH.set_recording(number);
    // The change cleared the wake-up bit.
    POLL_STARTED.wake();
}

/// Returns `true` while polls are recorded.
#[inline]
pub(crate) fn is_recording() -> bool {
    EPOCH.load(Ordering::Relaxed) != 0
}

/// Arms the wake-up: the next poll that starts, or the next recording if none runs, wakes
/// [`POLL_STARTED`]. A poll that starts on another core at the same time may not see it.
pub(crate) fn arm_wakeup() {
    EPOCH.arm_wakeup();
}

/// Returns `true` if the wake-up is still armed, so no poll has started since.
pub(crate) fn is_wakeup_armed() -> bool {
    EPOCH.is_wakeup_armed()
}

/// Disarms the wake-up. Returns `true` if it was armed.
pub(crate) fn disarm_wakeup() -> bool {
    EPOCH.disarm_wakeup()
}
