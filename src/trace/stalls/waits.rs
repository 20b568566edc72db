//! Time that threads waited for a core while they polled.
//!
//! The kernel counts it for each thread (`schedstat`). A look reads the counters of a few threads that poll, so that there
//! is a reading from before most polls that become too long, and reads again once one has. What lies between the two
//! readings was no work of the poll: neighbours had the core. The kernel counts a wait when it is over, so the wait of a
//! thread that is runnable and does not run is added.

use std::collections::HashMap;
use std::time::Duration;

use crate::base::{Clock, Moment, SystemClock, standstill};
use crate::os::glance::Eyes;
use crate::os::timer;

/// Threads that a look reads, the ones first that have polled for longest. A reading costs about 4 us.
const MAX_READ: usize = 8;

/// Time between two such looks, so that they cost no more than 0.07 % of a core.
const READ_EVERY: Duration = Duration::from_millis(50);

/// Long polls a second whose threads are read, and how many at once. Each takes some 15 us, so all of them take 0.3 % of a
/// core at most. Of the others the wait is estimated from those.
const MEASURED_PER_SECOND: u64 = 200;
const MEASURED_AT_ONCE: u64 = 50;

/// Readings kept for a thread.
const KEPT: usize = 8;

/// A reading that is older than this at the begin of a poll says nothing about it.
const STALE: Duration = Duration::from_millis(500);

/// A reading that is not older than this belongs to the present look.
const FRESH: Duration = Duration::from_millis(2);

/// The parts of a poll's duration that are not its own.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(super) struct Excluded {
    /// The thread waited for a core.
    pub(super) waited: Duration,
    /// The whole process stood still.
    pub(super) still: Duration,
}

/// The counter of a thread at a moment.
#[derive(Clone, Copy, Debug)]
struct Reading {
    at: Moment,
    waited: Duration,
    cpu: Duration,
}

/// The readings of all threads.
pub(super) struct Waits {
    /// `None` where the kernel does not report them.
    eyes: Option<Eyes>,
    threads: HashMap<u64, Vec<Reading>>,
    next: Option<Moment>,
    estimate: Estimate,
}

/// The share of time that threads in long polls waited for a core, by those that were read.
#[derive(Debug, Default)]
struct Estimate {
    share: f64,
    /// From this moment on all that may be read at once may be.
    full_at: Moment,
}

impl Estimate {
    /// Returns whether one more thread may be read at `now`.
    fn may_measure(&mut self, now: Moment) -> bool {
        let cost = Duration::from_secs(1) / MEASURED_PER_SECOND as u32;
        let full_at = self.full_at.max(now) + cost;
        let may = full_at.since(now) <= cost * MEASURED_AT_ONCE as u32;
        if may {
            self.full_at = full_at;
        }
        may
    }

    /// Takes the wait of a thread that was read, in a poll that took `total`.
    fn measured(&mut self, waited: Duration, total: Duration) {
        let share = if total.is_zero() { 0.0 } else { waited.div_duration_f64(total) };
        self.share += (share.min(1.0) - self.share) / 8.0;
    }
}

/// A thread that polls: its id in the registry and the kernel's, and the begin of its poll.
#[derive(Clone, Copy, Debug)]
pub(super) struct Polling {
    pub(super) thread: u64,
    pub(super) tid: u32,
    pub(super) since: Option<Moment>,
}

impl Waits {
    pub(super) fn new() -> Self {
        Self {
            eyes: Eyes::open().ok(),
            threads: HashMap::new(),
            next: None,
            estimate: Estimate::default(),
        }
    }

    /// Reads the counters of some threads that poll at `now`.
    pub(super) fn look(&mut self, now: Moment, mut polling: Vec<Polling>) {
        if self.next.is_some_and(|next| now < next) {
            return;
        }
        self.next = Some(now + READ_EVERY);
        self.threads.retain(|thread, readings| {
            polling.iter().any(|it| it.thread == *thread)
                || readings.last().is_some_and(|last| now.since(last.at) < STALE)
        });
        polling.sort_unstable_by_key(|it| it.since.unwrap_or(now));
        for it in polling.into_iter().take(MAX_READ) {
            self.read(now, it);
        }
    }

    /// Returns what is not the own time of a poll from `from` to `until`, which is in the past or about now.
    pub(super) fn exclude(
        &mut self,
        thread: u64,
        tid: u32,
        from: Moment,
        until: Moment,
    ) -> Excluded {
        let now = SystemClock.now();
        let still = standstill::within(from, until);
        let running = until.since(from).saturating_sub(still);
        if !self.estimate.may_measure(now) {
            return Excluded { waited: running.mul_f64(self.estimate.share), still };
        }
        self.read(now, Polling { thread, tid, since: Some(from) });
        let readings = self.threads.get(&thread).map_or(&[][..], Vec::as_slice);
        let mut all = waited(readings, from, until);
        let goes_on = now.since(until) < FRESH;
        if goes_on && self.waits_now(tid) {
            // Not those of this look.
            let last = readings.iter().rev().find(|reading| now.since(reading.at) >= FRESH);
            let since = last.map_or(from, |last| last.at.max(from));
            all += until.since(since).saturating_sub(counted_since(readings, since));
        }
        let waited = all.min(running);
        self.estimate.measured(waited, running);
        Excluded { waited, still }
    }

    /// Whether a thread is runnable and does not run: its CPU time stands still.
    fn waits_now(&self, tid: u32) -> bool {
        let Some(eyes) = &self.eyes else { return false };
        let before = timer::cpu_time_of(tid).ok();
        let is_runnable = eyes.look(tid).is_some_and(|(thread, _)| thread.state == 'R');
        is_runnable && before.is_some() && timer::cpu_time_of(tid).ok() == before
    }

    fn read(&mut self, now: Moment, polling: Polling) {
        let runs = self.eyes.as_ref().and_then(|eyes| eyes.runs(polling.tid));
        let Some(runs) = runs else { return };
        let readings = self.threads.entry(polling.thread).or_default();
        let since = polling.since.or(readings.last().map(|last| last.at)).unwrap_or(now);
        readings.push(Reading { at: now, waited: runs.waited, cpu: runs.cpu });
        trim(readings, since);
    }
}

/// Removes the readings that a poll since `since` does not need: all before the last one that is before it.
fn trim(readings: &mut Vec<Reading>, since: Moment) {
    let last_before = readings.iter().rposition(|reading| reading.at <= since).unwrap_or(0);
    readings.drain(..last_before);
    if readings.len() > KEPT {
        readings.remove(1);
    }
}

/// Returns the time that a thread with these readings waited for a core between `from` and `until`, at most.
fn waited(readings: &[Reading], from: Moment, until: Moment) -> Duration {
    let Some(last) = readings.last() else { return Duration::ZERO };
    let is_before = |reading: &&Reading| reading.at <= from && from.since(reading.at) < STALE;
    if let Some(before) = readings.iter().rev().find(is_before) {
        return last.waited.saturating_sub(before.waited).min(until.since(from));
    }
    // As much for the time before the first reading as for the time after it.
    let Some(first) = readings.iter().find(|reading| reading.at > from) else {
        return Duration::ZERO;
    };
    let known = last.at.since(first.at);
    if known.is_zero() {
        return Duration::ZERO;
    }
    let share = last.waited.saturating_sub(first.waited).as_secs_f64() / known.as_secs_f64();
    until.since(from).mul_f64(share.min(1.0))
}

/// Returns the time that a thread ran, or waited for a core as the kernel has counted, after its last reading up to `since`.
fn counted_since(readings: &[Reading], since: Moment) -> Duration {
    let before = readings.iter().rev().find(|reading| reading.at <= since);
    let (Some(last), Some(before)) = (readings.last(), before) else { return Duration::ZERO };
    last.waited.saturating_sub(before.waited) + last.cpu.saturating_sub(before.cpu)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(milli: u64) -> Moment {
        Moment::from_nanos(milli * 1_000_000)
    }

    fn readings(readings: &[(u64, u64)]) -> Vec<Reading> {
        let reading = |&(milli, waited)| Reading {
            at: at(milli),
            waited: Duration::from_millis(waited),
            cpu: Duration::ZERO,
        };
        readings.iter().map(reading).collect()
    }

    #[test]
    fn a_wait_is_what_the_counter_grew_by_since_before_the_poll() {
        for (name, readings, from, until, expected) in [
            ("nothing is known", readings(&[]), 100, 200, 0),
            ("one reading", readings(&[(200, 70)]), 100, 200, 0),
            ("one before and one after", readings(&[(50, 10), (200, 90)]), 100, 200, 80),
            ("no longer than the poll", readings(&[(50, 10), (200, 150)]), 100, 200, 100),
            (
                "the last one before it counts",
                readings(&[(10, 0), (90, 60), (200, 70)]),
                100,
                200,
                10,
            ),
            ("half of it is known", readings(&[(150, 10), (200, 50)]), 100, 200, 80),
            (
                "an old one says nothing",
                readings(&[(100, 0), (950, 600), (1000, 600)]),
                900,
                1000,
                0,
            ),
        ] {
            let found = waited(&readings, at(from), at(until));
            assert_eq!(found, Duration::from_millis(expected), "{name}");
        }
    }

    #[test]
    fn the_reading_before_a_long_poll_is_kept() {
        let mut kept = readings(&[(0, 1), (50, 2)]);
        for n in 0..100 {
            kept.push(readings(&[(100 + n * 50, 3 + n)])[0]);
            trim(&mut kept, at(60));
        }
        assert_eq!(kept[0].at, at(50));
        assert!(kept.len() <= KEPT);
        trim(&mut kept, at(10_000));
        assert_eq!(kept.len(), 1, "of an earlier poll nothing is kept");
    }

    #[test]
    fn many_long_polls_are_read_at_a_bounded_rate_and_the_rest_is_estimated() {
        let mut estimate = Estimate::default();
        let start = Moment::from_nanos(1_000_000_000_000);
        // 5000 a second for ten seconds.
        let measured = (0..50_000).filter(|n| {
            let may = estimate.may_measure(start + Duration::from_micros(n * 200));
            if may {
                estimate.measured(Duration::from_millis(30), Duration::from_millis(120));
            }
            may
        });
        let measured = measured.count() as u64;
        let most = MEASURED_PER_SECOND * 10 + MEASURED_AT_ONCE;
        assert!((most - 5..=most).contains(&measured), "{measured}");
        assert!((0.24..=0.26).contains(&estimate.share), "{}", estimate.share);
        // A few are all read.
        let later = start + Duration::from_secs(3600);
        let few = |n: u64| later + Duration::from_millis(n * 100);
        assert!((0..100).all(|n| estimate.may_measure(few(n))));
    }
}
