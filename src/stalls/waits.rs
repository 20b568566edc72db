//! Run delay of threads in long polls.
//!
//! The kernel counts the run delay of each thread in `schedstat`. A check reads the counters of a
//! few polling threads, so that most polls that become too long have a reading from before their
//! start. The counters are read again once a poll is too long. The difference was no work of the
//! poll: other threads or processes had the core. The kernel adds a wait only when it ends, so the
//! current wait of a thread that is runnable and not running is added here.

use std::collections::HashMap;
use std::time::Duration;

use crate::base::{Clock, Moment, SystemClock, standstill};
use crate::os::clock::cpu_timer;
use crate::os::proc::thread_reader::ProcThreadReader;

/// Maximum number of threads that one check reads, longest-running polls first. A reading costs
/// about 4 us.
const MAX_READ: usize = 8;

/// Minimum time between two checks that read counters, which limits their cost to 0.07 % of a core.
const READ_EVERY: Duration = Duration::from_millis(50);

/// Limits on reading the counters of threads in long polls: rate per second and burst. Each reading
/// takes about 15 us, so all of them take at most 0.3 % of a core. The delay of the other threads
/// is estimated from these.
const MEASURED_PER_SECOND: u64 = 200;
const MEASURED_AT_ONCE: u64 = 50;

/// Maximum number of readings kept per thread.
const KEPT: usize = 8;

/// Age at the start of a poll beyond which a reading is not used for that poll.
const STALE: Duration = Duration::from_millis(500);

/// Age up to which a reading belongs to the current check.
const FRESH: Duration = Duration::from_millis(2);

/// The parts of a poll's duration that are not its own time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct ExcludedTime {
    /// Time in which the thread waited for a core.
    pub(crate) waited: Duration,
    /// Time in which the whole process was stopped.
    pub(crate) still: Duration,
}

/// The counters of one thread at one moment.
#[derive(Clone, Copy, Debug)]
struct WaitReading {
    at: Moment,
    waited: Duration,
    cpu: Duration,
}

/// The readings of all threads, by registry id.
pub(crate) struct WaitEstimator {
    /// `None` if the kernel does not provide the counters.
    eyes: Option<ProcThreadReader>,
    threads: HashMap<u64, Vec<WaitReading>>,
    next: Option<Moment>,
    estimate: WaitEstimate,
}

/// Moving average of `run delay / duration` over the long polls that were read, with a rate limit
/// on readings.
#[derive(Debug, Default)]
struct WaitEstimate {
    share: f64,
    /// Time at which the whole burst is available again.
    full_at: Moment,
}

impl WaitEstimate {
    /// Returns `true` if one more thread can be read at `now`, and counts it.
    fn may_measure(&mut self, now: Moment) -> bool {
        let cost = Duration::from_secs(1) / MEASURED_PER_SECOND as u32;
        let full_at = self.full_at.max(now) + cost;
        let may = full_at.since(now) <= cost * MEASURED_AT_ONCE as u32;
        if may {
            self.full_at = full_at;
        }
        may
    }

    /// Adds the measured delay of a poll that took `total` to the average.
    fn measured(&mut self, waited: Duration, total: Duration) {
        let share = if total.is_zero() { 0.0 } else { waited.div_duration_f64(total) };
        self.share += (share.min(1.0) - self.share) / 8.0;
    }
}

/// A polling thread: its registry id, its kernel thread ID, and the start of its poll.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PollWait {
    pub(crate) thread: u64,
    pub(crate) tid: u32,
    pub(crate) since: Option<Moment>,
}

impl WaitEstimator {
    pub(crate) fn new() -> Self {
        Self {
            eyes: ProcThreadReader::open().ok(),
            threads: HashMap::new(),
            next: None,
            estimate: WaitEstimate::default(),
        }
    }

    /// Reads the counters of some of the threads that poll at `now`.
    pub(crate) fn look(&mut self, now: Moment, mut polling: Vec<PollWait>) {
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

    /// Returns the part of a poll's interval `from..until` that is not its own time. `until` is in
    /// the past or about now.
    pub(crate) fn exclude(
        &mut self,
        thread: u64,
        tid: u32,
        from: Moment,
        until: Moment,
    ) -> ExcludedTime {
        let now = SystemClock.now();
        let still = standstill::within(from, until);
        let running = until.since(from).saturating_sub(still);
        if !self.estimate.may_measure(now) {
            return ExcludedTime { waited: running.mul_f64(self.estimate.share), still };
        }
        self.read(now, PollWait { thread, tid, since: Some(from) });
        let readings = self.threads.get(&thread).map_or(&[][..], Vec::as_slice);
        let mut all = waited(readings, from, until);
        let goes_on = now.since(until) < FRESH;
        if goes_on && self.waits_now(tid) {
            // Skips the readings made by this check.
            let last = readings.iter().rev().find(|reading| now.since(reading.at) >= FRESH);
            let since = last.map_or(from, |last| last.at.max(from));
            all += until.since(since).saturating_sub(counted_since(readings, since));
        }
        let waited = all.min(running);
        self.estimate.measured(waited, running);
        ExcludedTime { waited, still }
    }

    /// Returns `true` if the thread is runnable and not running: its CPU time does not grow.
    fn waits_now(&self, tid: u32) -> bool {
        let Some(eyes) = &self.eyes else { return false };
        let before = cpu_timer::cpu_time_of(tid).ok();
        let is_runnable = eyes.look(tid).is_some_and(|(thread, _)| thread.state == 'R');
        is_runnable && before.is_some() && cpu_timer::cpu_time_of(tid).ok() == before
    }

    fn read(&mut self, now: Moment, polling: PollWait) {
        let runs = self.eyes.as_ref().and_then(|eyes| eyes.runs(polling.tid));
        let Some(runs) = runs else { return };
        let readings = self.threads.entry(polling.thread).or_default();
        let since = polling.since.or(readings.last().map(|last| last.at)).unwrap_or(now);
        readings.push(WaitReading { at: now, waited: runs.waited, cpu: runs.cpu });
        trim(readings, since);
    }
}

/// Removes the readings that a poll started at `since` does not need: all before the last one that
/// precedes the poll.
fn trim(readings: &mut Vec<WaitReading>, since: Moment) {
    let last_before = readings.iter().rposition(|reading| reading.at <= since).unwrap_or(0);
    readings.drain(..last_before);
    if readings.len() > KEPT {
        readings.remove(1);
    }
}

/// Returns an upper bound of the thread's run delay in `from..until`.
fn waited(readings: &[WaitReading], from: Moment, until: Moment) -> Duration {
    let Some(last) = readings.last() else { return Duration::ZERO };
    let is_before = |reading: &&WaitReading| reading.at <= from && from.since(reading.at) < STALE;
    if let Some(before) = readings.iter().rev().find(is_before) {
        return last.waited.saturating_sub(before.waited).min(until.since(from));
    }
    // No reading from before the poll: assume the same delay per time before the first reading as
    // after it.
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

/// Returns the time that the thread ran, or waited for a core as counted by the kernel, between its
/// last reading up to `since` and its newest reading.
fn counted_since(readings: &[WaitReading], since: Moment) -> Duration {
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

    fn readings(readings: &[(u64, u64)]) -> Vec<WaitReading> {
        let reading = |&(milli, waited)| WaitReading {
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
        let mut estimate = WaitEstimate::default();
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
        // At a low rate every poll is read.
        let later = start + Duration::from_secs(3600);
        let few = |n: u64| later + Duration::from_millis(n * 100);
        assert!((0..100).all(|n| estimate.may_measure(few(n))));
    }
}
