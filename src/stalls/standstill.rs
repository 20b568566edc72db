//! Detection of standstills of the whole process: stopped by a signal, frozen by its cgroup, or on
//! a suspended machine.
//!
//! The agent's thread sleeps until a known time. A late wake-up has one of three causes, which the
//! kernel's counters separate:
//!
//! ```text
//! late = end of the sleep - max(due, its start)
//! late <= run delay and CPU time of this thread   the thread waited for a core, or did other work
//! the process used more CPU than it could have    the thread alone was held up
//! otherwise                                       the process stood still
//! ```

use std::cell::Cell;
use std::time::Duration;

use tokio::runtime::Builder;
use tokio::time::Instant;

use crate::base::{Clock, Moment, SystemClock, log, standstill, warnings};
use crate::os::proc::thread_reader::ProcThreadReader;
use crate::os::proc::{process, threads};

/// Minimum duration of a recorded standstill. A shorter one may be a late timer of a virtual
/// machine.
const MIN_STANDSTILL: Duration = Duration::from_millis(20);

/// Minimum duration of a logged standstill. Tools that limit CPU use by signals stop a process ten
/// times a second.
const MIN_LOGGED_STANDSTILL: Duration = Duration::from_millis(500);

/// Minimum time between two log lines. Standstills in between are counted in the next line.
const LOG_INTERVAL: Duration = Duration::from_secs(10);

thread_local! {
    static PARKED_AT: Cell<Moment> = const { Cell::new(Moment::from_nanos(0)) };
    /// Unexamined sleeps of the agent's runtime, newest first. Work between two sleeps may block
    /// and is no evidence.
    ///
    /// There may be several: `epoll_wait` fails with `EINTR` when a stopped process is continued.
    /// The runtime then sleeps once more for an instant before the loop runs.
    static SLEEPS: Cell<[Option<Sleep>; 4]> = const { Cell::new([None; 4]) };
}

#[derive(Clone, Copy, Debug)]
struct Sleep {
    from: Moment,
    until: Moment,
}

/// Makes the runtime of the agent's thread record its sleeps.
pub(crate) fn observe_sleeps(builder: &mut Builder) -> &mut Builder {
    builder
        .on_thread_park(|| PARKED_AT.set(SystemClock.now()))
        .on_thread_unpark(|| push_sleep(Sleep { from: PARKED_AT.get(), until: SystemClock.now() }))
}

fn push_sleep(sleep: Sleep) {
    let [first, second, third, _] = SLEEPS.get();
    SLEEPS.set([Some(sleep), first, second, third]);
}

/// Takes the sleep with the longest delay past `due` and returns it with that delay.
fn take_longest_delay(due: Moment) -> Option<(Sleep, Duration)> {
    let sleeps = SLEEPS.take().into_iter().flatten();
    sleeps
        .map(|sleep| (sleep, sleep.until.since(due.max(sleep.from))))
        .max_by_key(|(_, late)| *late)
}

/// Counter values at the last tick.
#[derive(Clone, Copy, Debug)]
struct ClockBaseline {
    /// Run delay of the agent's thread: its total time waiting for a core.
    run_delay: Duration,
    /// CPU time of the agent's thread.
    thread_cpu: Duration,
    process_cpu: ProcessCpu,
}

/// CPU time of the process.
#[derive(Clone, Copy, Debug)]
struct ProcessCpu {
    at: Moment,
    used: Duration,
}

impl ProcessCpu {
    fn measure(now: Moment) -> Self {
        Self { at: now, used: process::cpu_time() }
    }
}

/// A late wake-up and the growth of the counters it is compared with.
#[derive(Clone, Copy, Debug)]
struct TickLateness {
    late: Duration,
    /// Growth since the baseline.
    run_delay: Duration,
    thread_cpu: Duration,
    process_cpu: Duration,
    /// Time over which `process` grew.
    elapsed: Duration,
    cores: f64,
}

impl TickLateness {
    /// Returns the duration of the standstill, or `None` if the delay has another cause.
    fn standstill(self) -> Option<Duration> {
        let unexplained = self.late.saturating_sub(self.run_delay + self.thread_cpu);
        // All cores may have worked for the process before and after the standstill.
        let running = self.elapsed.saturating_sub(unexplained) + MIN_STANDSTILL;
        let max_cpu = running.mul_f64(self.cores.max(1.0));
        (unexplained >= MIN_STANDSTILL && self.process_cpu <= max_cpu).then_some(unexplained)
    }
}

/// The standstill detector. Must stay on the agent's thread.
pub(crate) struct StandstillDetector {
    /// `None` if the kernel does not report run delays; detection is impossible then.
    thread_reader: Option<ProcThreadReader>,
    tid: u32,
    cores: f64,
    baseline: Option<ClockBaseline>,
    logged_at: Option<Moment>,
    unlogged_count: u32,
    unlogged_time: Duration,
}

impl StandstillDetector {
    /// Returns a detector for the calling thread.
    pub(crate) fn new() -> Self {
        let reader = match ProcThreadReader::open() {
            Ok(reader) => Some(reader),
            Err(why) => {
                let text = format!(
                    "a stopped or starved process cannot be distinguished from a stall: {why}; \
                     false stalls may be reported"
                );
                warnings::set("trace.stall_threshold", text);
                None
            }
        };
        Self {
            thread_reader: reader,
            tid: threads::current_tid(),
            cores: process::cores().map_or(1.0, f64::from),
            baseline: None,
            logged_at: None,
            unlogged_count: 0,
            unlogged_time: Duration::ZERO,
        }
    }

    /// Examines a wake-up of the thread that was due by `due` at the latest. Returns the duration
    /// of the standstill, if there was one.
    pub(crate) fn check_wakeup(&mut self, due: Instant) -> Option<Duration> {
        let (sleep, late) = take_longest_delay(to_moment(due))?;
        if late < MIN_STANDSTILL {
            return None;
        }
        let now = SystemClock.now();
        let before = self.baseline?;
        let after = self.measure(ProcessCpu::measure(now))?;
        self.baseline = Some(after);
        let lateness = TickLateness {
            late,
            elapsed: now.since(before.process_cpu.at),
            run_delay: after.run_delay.saturating_sub(before.run_delay),
            thread_cpu: after.thread_cpu.saturating_sub(before.thread_cpu),
            process_cpu: after.process_cpu.used.saturating_sub(before.process_cpu.used),
            cores: self.cores,
        };
        let duration = lateness.standstill()?;
        // The standstill started at an unknown time within the sleep.
        standstill::record(sleep.from, sleep.until);
        if duration >= MIN_LOGGED_STANDSTILL {
            self.log(now, duration);
        }
        Some(duration)
    }

    /// Reads the baseline for the next late wake-up. Costs about 5 us: the CPU time of the process
    /// is taken from the last reading of the vitals.
    pub(crate) fn update_baseline(&mut self) {
        let now = SystemClock.now();
        let last = process::last_cpu_time().map(|(at, used)| ProcessCpu { at, used });
        self.baseline = self.measure(last.unwrap_or_else(|| ProcessCpu::measure(now)));
        if self.unlogged_count > 0 && self.logged_at.is_none_or(|at| now.since(at) >= LOG_INTERVAL)
        {
            let times = self.unlogged_count;
            let time = self.unlogged_time.as_secs_f64();
            log::warn(format!(
                "the process did not run {times} more times, for {time:.1} s in total (stopped, \
                 frozen or suspended)"
            ));
            self.logged_at = Some(now);
            self.unlogged_count = 0;
            self.unlogged_time = Duration::ZERO;
        }
    }

    fn measure(&self, process: ProcessCpu) -> Option<ClockBaseline> {
        let run_delay = self.thread_reader.as_ref()?.sched_stat(self.tid)?.run_delay;
        Some(ClockBaseline { run_delay, thread_cpu: threads::cpu_time(), process_cpu: process })
    }

    fn log(&mut self, now: Moment, duration: Duration) {
        if self.logged_at.is_some_and(|at| now.since(at) < LOG_INTERVAL) {
            self.unlogged_count += 1;
            self.unlogged_time += duration;
            return;
        }
        self.logged_at = Some(now);
        log::warn(format!(
            "the process did not run for {:.1} s (stopped, frozen or suspended)",
            duration.as_secs_f64()
        ));
    }
}

/// Converts `instant` to a moment; both use `CLOCK_MONOTONIC`.
fn to_moment(instant: Instant) -> Moment {
    let now = SystemClock.now();
    let now_instant = Instant::now();
    match instant.checked_duration_since(now_instant) {
        Some(remaining) => now + remaining,
        None => now - now_instant.saturating_duration_since(instant),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn longest_delay_is_found_among_several_sleeps() {
        let at = |millis: u64| Moment::from_nanos(millis * 1_000_000);
        // Due at 250. Stopped from 100 to 6000, then asleep for an instant until the timer is read.
        push_sleep(Sleep { from: at(0), until: at(50) });
        push_sleep(Sleep { from: at(60), until: at(6000) });
        push_sleep(Sleep { from: at(6001), until: at(6002) });
        let (sleep, late) = take_longest_delay(at(250)).unwrap();
        assert_eq!(
            (sleep.from, sleep.until, late),
            (at(60), at(6000), Duration::from_millis(5750))
        );
        assert!(take_longest_delay(at(250)).is_none());
    }

    #[test]
    fn late_wakeup_is_standstill_only_if_counters_do_not_explain_it() {
        let millis = Duration::from_millis;
        // late, elapsed, waited, own, process; expected.
        for (late, elapsed, waited, own, process, expected) in [
            // Stopped for 6 s between two ticks: a quiet process, and one that used both cores
            // until then.
            (5900, 6100, 0, 1, 3, Some(5899)),
            (5900, 6100, 0, 1, 400, Some(5899)),
            // A crowded machine: the thread waited for a core.
            (180, 300, 175, 2, 40, None),
            // The thread did other work.
            (120, 200, 0, 118, 130, None),
            // Only this thread was blocked; the rest of the process ran.
            (2000, 2200, 0, 1, 3900, None),
            // Both: stopped, then waiting for a core.
            (6300, 6500, 300, 0, 100, Some(6000)),
            (19, 100, 0, 0, 0, None),
            (20, 100, 0, 0, 0, Some(20)),
        ] {
            let lateness = TickLateness {
                late: millis(late),
                elapsed: millis(elapsed),
                run_delay: millis(waited),
                thread_cpu: millis(own),
                process_cpu: millis(process),
                cores: 2.0,
            };
            assert_eq!(lateness.standstill(), expected.map(millis), "{lateness:?}");
        }
    }
}
