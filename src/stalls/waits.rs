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
const MAX_THREADS_PER_CHECK: usize = 8;

/// Minimum time between two checks that read counters, which limits their cost to 0.07 % of a core.
const READ_INTERVAL: Duration = Duration::from_millis(50);

/// Limits on reading the counters of threads in long polls: rate per second and burst. Each reading
/// takes about 15 us, so all of them take at most 0.3 % of a core. The delay of the other threads
/// is estimated from these.
const MAX_READS_PER_SECOND: u64 = 200;
const MAX_READ_BURST: u64 = 50;

/// Maximum number of readings kept per thread.
const MAX_READINGS: usize = 8;

/// Age at the start of a poll beyond which a reading is not used for that poll.
const MAX_READING_AGE: Duration = Duration::from_millis(500);

/// Age up to which a reading belongs to the current check.
const CURRENT_READING_AGE: Duration = Duration::from_millis(2);

/// The parts of a poll's duration that are not its own time.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub(crate) struct ExcludedTime {
    /// Time in which the thread waited for a core.
    pub(crate) run_delay: Duration,
    /// Time in which the whole process was stopped.
    pub(crate) standstill: Duration,
}

impl ExcludedTime {
    /// Returns the own time of a poll that took `duration`: `duration - run_delay - standstill`.
    pub(crate) fn own_time(self, duration: Duration) -> Duration {
        duration.saturating_sub(self.run_delay + self.standstill)
    }
}

/// The counters of one thread at one moment.
#[derive(Clone, Copy, Debug)]
struct WaitReading {
    at: Moment,
    run_delay: Duration,
    cpu_time: Duration,
}

/// The readings of all threads, by registry id.
pub(crate) struct WaitEstimator {
    /// `None` if the kernel does not provide the counters.
    thread_reader: Option<ProcThreadReader>,
    threads: HashMap<u64, Vec<WaitReading>>,
    next_read: Option<Moment>,
    estimate: WaitEstimate,
}

/// Moving average of `run delay / duration` over the long polls that were read, with a rate limit
/// on readings.
#[derive(Debug, Default)]
struct WaitEstimate {
    delay_fraction: f64,
    /// Time at which the whole burst is available again.
    burst_full_at: Moment,
}

impl WaitEstimate {
    /// Returns `true` if one more thread can be read at `now`, and counts it.
    fn try_measure(&mut self, now: Moment) -> bool {
        let cost = Duration::from_secs(1) / MAX_READS_PER_SECOND as u32;
        let full_at = self.burst_full_at.max(now) + cost;
        let is_allowed = full_at.since(now) <= cost * MAX_READ_BURST as u32;
        if is_allowed {
            self.burst_full_at = full_at;
        }
        is_allowed
    }

    /// Adds the measured delay of a poll that took `total` to the average.
    fn add_measurement(&mut self, waited: Duration, total: Duration) {
        let share = if total.is_zero() { 0.0 } else { waited.div_duration_f64(total) };
        self.delay_fraction += (share.min(1.0) - self.delay_fraction) / 8.0;
    }
}

/// A polling thread: its registry id, its kernel thread ID, and the start of its poll.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PollingThread {
    pub(crate) thread: u64,
    pub(crate) tid: u32,
    pub(crate) poll_start: Option<Moment>,
}

impl WaitEstimator {
    pub(crate) fn new() -> Self {
        Self {
            thread_reader: ProcThreadReader::open().ok(),
            threads: HashMap::new(),
            next_read: None,
            estimate: WaitEstimate::default(),
        }
    }

    /// Reads the counters of some of the threads that poll at `now`.
    pub(crate) fn read_polling(&mut self, now: Moment, mut polling: Vec<PollingThread>) {
        if self.next_read.is_some_and(|next| now < next) {
            return;
        }
        self.next_read = Some(now + READ_INTERVAL);
        self.threads.retain(|thread, readings| {
            polling.iter().any(|polled| polled.thread == *thread)
                || readings.last().is_some_and(|last| now.since(last.at) < MAX_READING_AGE)
        });
        polling.sort_unstable_by_key(|polled| polled.poll_start.unwrap_or(now));
        for polled in polling.into_iter().take(MAX_THREADS_PER_CHECK) {
            self.read(now, polled);
        }
    }

    /// Returns the part of a poll's interval `from..until` that is not its own time. `until` is in
    /// the past or about now.
    pub(crate) fn excluded_time(
        &mut self,
        thread: u64,
        tid: u32,
        from: Moment,
        until: Moment,
    ) -> ExcludedTime {
        let now = SystemClock.now();
        let standstill = standstill::overlap(from, until);
        let running = until.since(from).saturating_sub(standstill);
        if !self.estimate.try_measure(now) {
            return ExcludedTime {
                run_delay: running.mul_f64(self.estimate.delay_fraction),
                standstill,
            };
        }
        self.read(now, PollingThread { thread, tid, poll_start: Some(from) });
        let readings = self.threads.get(&thread).map_or(&[][..], Vec::as_slice);
        let mut total_delay = run_delay_between(readings, from, until);
        let is_current = now.since(until) < CURRENT_READING_AGE;
        if is_current && self.is_waiting_for_core(tid) {
            // Skips the readings made by this check.
            let last =
                readings.iter().rev().find(|reading| now.since(reading.at) >= CURRENT_READING_AGE);
            let since = last.map_or(from, |last| last.at.max(from));
            total_delay += until.since(since).saturating_sub(counted_since(readings, since));
        }
        let waited = total_delay.min(running);
        self.estimate.add_measurement(waited, running);
        ExcludedTime { run_delay: waited, standstill }
    }

    /// Returns `true` if the thread is runnable and not running: its CPU time does not grow.
    fn is_waiting_for_core(&self, tid: u32) -> bool {
        let Some(thread_reader) = &self.thread_reader else { return false };
        let before = cpu_timer::thread_cpu_time(tid).ok();
        let is_runnable =
            thread_reader.thread_state(tid).is_some_and(|(thread, _)| thread.state == 'R');
        is_runnable && before.is_some() && cpu_timer::thread_cpu_time(tid).ok() == before
    }

    fn read(&mut self, now: Moment, polling: PollingThread) {
        let sched_stat =
            self.thread_reader.as_ref().and_then(|reader| reader.sched_stat(polling.tid));
        let Some(sched_stat) = sched_stat else { return };
        let readings = self.threads.entry(polling.thread).or_default();
        let since = polling.poll_start.or(readings.last().map(|last| last.at)).unwrap_or(now);
        readings.push(WaitReading {
            at: now,
            run_delay: sched_stat.run_delay,
            cpu_time: sched_stat.cpu_time,
        });
        trim(readings, since);
    }
}

/// Removes the readings that a poll started at `since` does not need: all before the last one that
/// precedes the poll.
fn trim(readings: &mut Vec<WaitReading>, since: Moment) {
    let last_before = readings.iter().rposition(|reading| reading.at <= since).unwrap_or(0);
    readings.drain(..last_before);
    if readings.len() > MAX_READINGS {
        readings.remove(1);
    }
}

/// Returns an upper bound of the thread's run delay in `from..until`.
fn run_delay_between(readings: &[WaitReading], from: Moment, until: Moment) -> Duration {
    let Some(last) = readings.last() else { return Duration::ZERO };
    let is_before =
        |reading: &&WaitReading| reading.at <= from && from.since(reading.at) < MAX_READING_AGE;
    if let Some(before) = readings.iter().rev().find(is_before) {
        return last.run_delay.saturating_sub(before.run_delay).min(until.since(from));
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
    let share = last.run_delay.saturating_sub(first.run_delay).as_secs_f64() / known.as_secs_f64();
    until.since(from).mul_f64(share.min(1.0))
}

/// Returns the time that the thread ran, or waited for a core as counted by the kernel, between its
/// last reading up to `since` and its newest reading.
fn counted_since(readings: &[WaitReading], since: Moment) -> Duration {
    let before = readings.iter().rev().find(|reading| reading.at <= since);
    let (Some(last), Some(before)) = (readings.last(), before) else { return Duration::ZERO };
    last.run_delay.saturating_sub(before.run_delay) + last.cpu_time.saturating_sub(before.cpu_time)
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
            run_delay: Duration::from_millis(waited),
            cpu_time: Duration::ZERO,
        };
        readings.iter().map(reading).collect()
    }

    #[test]
    fn run_delay_is_counter_growth_since_before_the_poll() {
        for (name, readings, from, until, expected) in [
            ("no reading", readings(&[]), 100, 200, 0),
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
            ("one reading within the poll", readings(&[(150, 10), (200, 50)]), 100, 200, 80),
            (
                "an old reading is ignored",
                readings(&[(100, 0), (950, 600), (1000, 600)]),
                900,
                1000,
                0,
            ),
        ] {
            let found = run_delay_between(&readings, at(from), at(until));
            assert_eq!(found, Duration::from_millis(expected), "{name}");
        }
    }

    #[test]
    fn trim_keeps_last_reading_before_poll_start() {
        let mut recent = readings(&[(0, 1), (50, 2)]);
        for n in 0..100 {
            recent.push(readings(&[(100 + n * 50, 3 + n)])[0]);
            trim(&mut recent, at(60));
        }
        assert_eq!(recent[0].at, at(50));
        assert!(recent.len() <= MAX_READINGS);
        trim(&mut recent, at(10_000));
        assert_eq!(recent.len(), 1, "readings of earlier polls are removed");
    }

    #[test]
    fn run_delay_reads_are_rate_limited_and_others_estimated() {
        let mut estimate = WaitEstimate::default();
        let start = Moment::from_nanos(1_000_000_000_000);
        // 5000 a second for ten seconds.
        let measured = (0..50_000).filter(|n| {
            let is_allowed = estimate.try_measure(start + Duration::from_micros(n * 200));
            if is_allowed {
                estimate.add_measurement(Duration::from_millis(30), Duration::from_millis(120));
            }
            is_allowed
        });
        let measured = measured.count() as u64;
        let max_reads = MAX_READS_PER_SECOND * 10 + MAX_READ_BURST;
        assert!((max_reads - 5..=max_reads).contains(&measured), "{measured}");
        assert!((0.24..=0.26).contains(&estimate.delay_fraction), "{}", estimate.delay_fraction);
        // At a low rate every poll is read.
        let later = start + Duration::from_secs(3600);
        let few = |n: u64| later + Duration::from_millis(n * 100);
        assert!((0..100).all(|n| estimate.try_measure(few(n))));
    }
}
