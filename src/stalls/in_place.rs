//! Recorded polls inside `tokio::task::block_in_place`. They are long but block no task, since the
//! queue of their worker was handed to another thread. The recorder cannot distinguish them from
//! other polls; their stacks can.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::base::{Clock, Moment, SystemClock};

/// Maximum number of such polls kept. Further concurrent ones are reported as stalls.
const MAX_POLLS: usize = 16;

/// Maximum difference between two start times of the same poll: ticks of the coarse clock.
const TOLERANCE: Duration = Duration::from_millis(20);

/// Start times of polls inside `block_in_place`, in nanoseconds; 0 if the slot is empty.
static POLL_STARTS: [AtomicU64; MAX_POLLS] = [const { AtomicU64::new(0) }; MAX_POLLS];
static NEXT_SLOT: AtomicUsize = AtomicUsize::new(0);

/// Records a poll inside `block_in_place` that started at `start`.
pub(crate) fn record_start(start: Moment) {
    let at = NEXT_SLOT.fetch_add(1, Ordering::Relaxed) % MAX_POLLS;
    if let Some(slot) = POLL_STARTS.get(at) {
        slot.store(start.as_nanos(), Ordering::Relaxed);
    }
}

/// Returns `longest`, or zero if that poll is inside `block_in_place`.
pub(crate) fn zero_if_in_place(longest: Option<Duration>) -> Option<Duration> {
    let longest = longest?;
    let start = SystemClock.now().as_nanos().saturating_sub(longest.as_nanos() as u64);
    let is_same_poll = |slot: &AtomicU64| {
        let recorded = slot.load(Ordering::Relaxed);
        recorded > 0 && Duration::from_nanos(recorded.abs_diff(start)) <= TOLERANCE
    };
    Some(if POLL_STARTS.iter().any(is_same_poll) { Duration::ZERO } else { longest })
}
