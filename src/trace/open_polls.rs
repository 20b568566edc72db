//! Access to the polls in progress, for stall detection: which thread is in which poll since when,
//! which polls ended since the last look, and a wake-up for the next poll that starts.

pub(crate) use super::epoch::{
    POLL_STARTED, arm_wakeup, disarm_wakeup, is_recording as are_recorded, is_wakeup_armed,
};
pub(crate) use super::flight::calibration;
pub(crate) use super::registry::all_rings as threads;
pub(crate) use super::sites::describe as task_name;
pub(crate) use super::thread_rings::{RingOwner, ThreadRings};
use crate::model::{OpenSlice, RawKind};

pub(crate) const fn is_poll(kind: RawKind) -> bool {
    matches!(kind, RawKind::HookedPoll | RawKind::WrappedPoll)
}

/// Returns the outermost open poll of a thread.
pub(crate) fn outermost_poll(rings: &ThreadRings) -> Option<OpenSlice> {
    rings.open_slices().into_iter().find(|open| is_poll(open.kind))
}

/// Returns the threads that are in a recorded poll. Their stalls are measured exactly, so inference
/// skips them.
pub(crate) fn threads_in_recorded_polls() -> Vec<u32> {
    let threads = threads().into_iter();
    let polls =
        threads.filter(|(rings, own)| own.ended_at.is_none() && outermost_poll(rings).is_some());
    polls.map(|(_, own)| own.tid).collect()
}
