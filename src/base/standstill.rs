//! Times in which the whole process stood still: stopped by a signal, frozen, or on a machine that was suspended.
//!
//! `CLOCK_MONOTONIC` goes on while a process is stopped, so that every duration that spans such a time is too long. The
//! agent records them as it wakes up; whatever measures a duration of the service subtracts [`within`].

use crate::base::sync::Mutex;
use std::collections::VecDeque;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Moment;

/// Standstills that are kept: those of half a minute in a process that is stopped twice a second.
const KEPT: usize = 64;

/// Length of all standstills so far, in nanoseconds.
static TOTAL: AtomicU64 = AtomicU64::new(0);
static RECENT: Mutex<VecDeque<Standstill>> = Mutex::new(VecDeque::new());

/// A time in which the process stood still.
#[derive(Clone, Copy, Debug)]
struct Standstill {
    from: Moment,
    until: Moment,
}

/// Records that the process stood still between `from` and `until`.
pub(crate) fn record(from: Moment, until: Moment) {
    let mut recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    if recent.len() == KEPT {
        recent.pop_front();
    }
    recent.push_back(Standstill { from, until });
    let nanos = u64::try_from(until.since(from).as_nanos()).unwrap_or(u64::MAX);
    TOTAL.fetch_add(nanos, Ordering::Release);
}

/// Returns the length of all standstills so far.
pub(crate) fn total() -> Duration {
    Duration::from_nanos(TOTAL.load(Ordering::Acquire))
}

/// Returns the part of the time from `from` to `until` in which the process stood still. One load if it never did.
pub(crate) fn within(from: Moment, until: Moment) -> Duration {
    if total().is_zero() {
        return Duration::ZERO;
    }
    let recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    recent.iter().map(|still| until.min(still.until).since(from.max(still.from))).sum()
}

/// Returns the time from `from` to `until` without that in which the process stood still.
pub(crate) fn running_time(from: Moment, until: Moment) -> Duration {
    until.since(from).saturating_sub(within(from, until))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_the_part_that_overlaps_counts() {
        // Later than any moment that another test of this process measures.
        const START: u64 = u64::MAX / 2;
        let at = |second: u64| Moment::from_nanos(START + second * 1_000_000_000);
        record(at(10), at(16));
        record(at(20), at(21));
        for (from, until, seconds) in
            [(0, 10, 0), (0, 12, 2), (11, 15, 4), (9, 30, 7), (16, 20, 0), (15, 21, 2), (22, 30, 0)]
        {
            assert_eq!(within(at(from), at(until)).as_secs(), seconds, "{from} to {until}");
        }
    }
}
