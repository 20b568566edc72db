//! Periods in which the whole process stood still: stopped by a signal, frozen, or on a suspended
//! machine.
//!
//! `CLOCK_MONOTONIC` keeps running while a process is stopped, so a duration spanning such a period
//! is too long. The agent records them when it wakes up. Code that measures durations of the
//! service subtracts [`overlap`].

use crate::base::sync::Mutex;
use std::collections::VecDeque;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Moment;

/// Number of recent standstills kept: half a minute of a process stopped twice a second.
const MAX_STANDSTILLS: usize = 64;

/// Total length of all standstills, in nanoseconds.
static TOTAL: AtomicU64 = AtomicU64::new(0);
static RECENT: Mutex<VecDeque<Standstill>> = Mutex::new(VecDeque::new());

#[derive(Clone, Copy, Debug)]
struct Standstill {
    start: Moment,
    end: Moment,
}

/// Records a standstill from `from` until `until`.
pub(crate) fn record(from: Moment, until: Moment) {
    let mut recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    if recent.len() == MAX_STANDSTILLS {
        recent.pop_front();
    }
    recent.push_back(Standstill { start: from, end: until });
    let nanos = u64::try_from(until.since(from).as_nanos()).unwrap_or(u64::MAX);
    TOTAL.fetch_add(nanos, Ordering::Release);
}

/// Returns the total length of all standstills.
pub(crate) fn total() -> Duration {
    Duration::from_nanos(TOTAL.load(Ordering::Acquire))
}

/// Returns the time between `from` and `until` in which the process stood still. Costs one load if
/// it never did.
pub(crate) fn overlap(from: Moment, until: Moment) -> Duration {
    if total().is_zero() {
        return Duration::ZERO;
    }
    let recent = RECENT.lock().unwrap_or_else(PoisonError::into_inner);
    recent
        .iter()
        .map(|standstill| until.min(standstill.end).since(from.max(standstill.start)))
        .sum()
}

/// Returns the time between `from` and `until`, excluding standstills.
pub(crate) fn running_time(from: Moment, until: Moment) -> Duration {
    until.since(from).saturating_sub(overlap(from, until))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn overlap_counts_only_the_intersection() {
        // Later than any moment measured by another test of this process.
        const START: u64 = u64::MAX / 2;
        let at = |second: u64| Moment::from_nanos(START + second * 1_000_000_000);
        record(at(10), at(16));
        record(at(20), at(21));
        for (from, until, seconds) in
            [(0, 10, 0), (0, 12, 2), (11, 15, 4), (9, 30, 7), (16, 20, 0), (15, 21, 2), (22, 30, 0)]
        {
            assert_eq!(overlap(at(from), at(until)).as_secs(), seconds, "{from} to {until}");
        }
    }
}
