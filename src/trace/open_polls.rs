//! Access to the polls in progress, for stall detection: which thread is in which poll since when,
//! which polls ended since the last look, and a wake-up for the next poll that starts.

use std::sync::atomic::Ordering;

pub(crate) use super::flight::calibration;
pub(crate) use super::registry::{RingOwner, all_rings as threads};
pub(crate) use super::sites::describe as task_name;
use super::thread::EPOCH;
pub(crate) use super::thread::{
    POLL_STARTED, ThreadRings, arm_wakeup, disarm_wakeup, is_wakeup_armed,
};
use crate::model::{OpenSlice, RawKind};

/// Returns `true` if polls are recorded.
pub(crate) fn are_recorded() -> bool {
    EPOCH.load(Ordering::Relaxed) != 0
}

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
