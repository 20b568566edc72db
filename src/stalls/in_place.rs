//! Recorded polls inside `tokio::task::block_in_place`. They are long but block no task, since the
//! queue of their worker was handed to another thread. The recorder cannot distinguish them from
//! other polls; their stacks can.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::base::{Clock, Moment, SystemClock};

/// Maximum number of such polls kept. Further concurrent ones are reported as stalls.
const MAX: usize = 16;

/// Maximum difference between two start times of the same poll: ticks of the coarse clock.
const TOLERANCE: Duration = Duration::from_millis(20);

/// Start times of polls inside `block_in_place`, in nanoseconds; 0 if the slot is empty.
static BEGUN: [AtomicU64; MAX] = [const { AtomicU64::new(0) }; MAX];
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Records a poll inside `block_in_place` that started at `start`.
pub(crate) fn remember(start: Moment) {
    let at = NEXT.fetch_add(1, Ordering::Relaxed) % MAX;
    if let Some(slot) = BEGUN.get(at) {
        slot.store(start.as_nanos(), Ordering::Relaxed);
    }
}

/// Returns `longest`, or zero if that poll is inside `block_in_place`.
pub(crate) fn without(longest: Option<Duration>) -> Option<Duration> {
    let longest = longest?;
    let start = SystemClock.now().as_nanos().saturating_sub(longest.as_nanos() as u64);
    let is_it = |slot: &AtomicU64| {
        let begun = slot.load(Ordering::Relaxed);
        begun > 0 && Duration::from_nanos(begun.abs_diff(start)) <= TOLERANCE
    };
    Some(if BEGUN.iter().any(is_it) { Duration::ZERO } else { longest })
}
