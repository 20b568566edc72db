//! Recorded polls inside of `tokio::task::block_in_place`: they last, and hold up no task, as their worker's queue was
//! handed to another thread. The recorder cannot tell them from others; their stacks can.

use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::time::Duration;

use crate::base::{Clock, Moment, SystemClock};

/// Polls that are remembered. More of them at once are not told from stalls.
const MAX: usize = 16;

/// How far off the begin of the longest poll may be: ticks of the coarse clock.
const TOLERANCE: Duration = Duration::from_millis(20);

/// When polls inside of `block_in_place` began, in nanoseconds; 0 is none.
static BEGUN: [AtomicU64; MAX] = [const { AtomicU64::new(0) }; MAX];
static NEXT: AtomicUsize = AtomicUsize::new(0);

/// Remembers a poll that began at `start`.
pub(super) fn remember(start: Moment) {
    let at = NEXT.fetch_add(1, Ordering::Relaxed) % MAX;
    if let Some(slot) = BEGUN.get(at) {
        slot.store(start.as_nanos(), Ordering::Relaxed);
    }
}

/// Returns how long the longest poll has lasted, zero if it is one of those.
pub(super) fn without(longest: Option<Duration>) -> Option<Duration> {
    let longest = longest?;
    let start = SystemClock.now().as_nanos().saturating_sub(longest.as_nanos() as u64);
    let is_it = |slot: &AtomicU64| {
        let begun = slot.load(Ordering::Relaxed);
        begun > 0 && Duration::from_nanos(begun.abs_diff(start)) <= TOLERANCE
    };
    Some(if BEGUN.iter().any(is_it) { Duration::ZERO } else { longest })
}
