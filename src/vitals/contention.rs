//! Contention for cores with other processes, and blocking locks or system calls within polls.
//!
//! ```text
//! cpu_waited = min(run delay of threads that never sleep, cores used by others) if no core is idle
//! blocked    = (busy - cpu - run delay) / (workers * time)                      over six seconds
//! ```
//!
//! `busy` is the time that the workers of the observed runtimes spent polling, as counted by the
//! runtime. `cpu` is the CPU time of the whole process. `run delay` is the time that the service's
//! threads were runnable without a core. Both include more threads than the workers, so `blocked`
//! is a lower bound: the remaining time was spent in polls that slept in a lock, a system call or a
//! page fault. Waiting behind threads of the same process does not count, so `cpu_waited` is
//! bounded by the use of others. A thread that sleeps now and then gets its share, if late, so only
//! the run delay of threads that never sleep counts.
//!
//! The runtime updates `busy` when a worker parks, or after 61 polls. A worker that waits for a
//! lock may not get there for minutes. A worker that has not parked for a whole second therefore
//! counts as busy for that second. Run delays cost 4 us a thread and are read only while they can
//! matter. That is the case if workers are busy for longer than the CPU time used, or if the
//! process uses a tenth of its cores.

use std::collections::HashMap;
use std::time::Duration;

use super::cpu_times::{MachineCpu, MachineTime, RunDelay, RunDelays};
use crate::base::{Moment, Percent};
use crate::model::WorkerProgress;

/// Averaging window of `blocked`, in seconds.
const WINDOW_SECONDS: usize = 6;

/// Fractions of the workers' time and of the cores from which run delays are read.
const MIN_BLOCKED_FRACTION: f64 = 0.1;
const MIN_USED_FRACTION: f64 = 0.1;

/// Number of readings below both fractions after which the files are closed.
const MAX_QUIET_READINGS: u32 = 10;

/// Fraction of idle time below which a machine has no spare core.
const MAX_IDLE_FRACTION: f64 = 0.05;

/// Minimum time between readings. CPU time is charged in ticks of up to 10 ms, so less is not
/// significant.
const MIN_ELAPSED: Duration = Duration::from_millis(200);

#[derive(Debug, Default)]
pub(super) struct ContentionReader {
    last_reading: Option<CpuReading>,
    /// Workers' counters at the last reading.
    workers: HashMap<(u64, u32), WorkerTime>,
    seconds: [ContentionSecond; WINDOW_SECONDS],
    delays: Option<RunDelays>,
    /// `true` from the second reading of the delays on, which is the first with a difference.
    are_delays_known: bool,
    machine: Option<MachineCpu>,
    machine_time: Option<MachineTime>,
    quiet_readings: u32,
    cpu_waited: f64,
    blocked: Option<Percent>,
}

#[derive(Clone, Copy, Debug)]
struct CpuReading {
    at: Moment,
    cpu: Duration,
}

#[derive(Clone, Copy, Debug, Default)]
struct WorkerTime {
    park_unpark_count: u64,
    busy: u64,
    is_present: bool,
}

/// Values of one second, in seconds.
#[derive(Clone, Copy, Debug, Default)]
struct ContentionSecond {
    elapsed: f64,
    workers: f64,
    busy: f64,
    cpu: f64,
    /// `None` if it was not read.
    delay: Option<f64>,
}

impl ContentionSecond {
    fn off_cpu_time(&self) -> f64 {
        (self.busy - self.cpu).max(0.0)
    }

    fn blocked(&self) -> f64 {
        self.delay.map_or(0.0, |delay| (self.off_cpu_time() - delay).max(0.0))
    }
}

/// Input for one second.
#[derive(Clone, Copy, Debug)]
pub(super) struct ContentionInput<'a> {
    pub(super) now: Moment,
    /// CPU time of the process since its start.
    pub(super) cpu: Duration,
    /// Number of cores that the process may use.
    pub(super) cores: f64,
    pub(super) workers: &'a [WorkerProgress],
    /// `true` if the process was suspended in this second or the one before. A poll that lasted
    /// through that has not blocked, and its time is counted when it ends.
    pub(super) was_suspended: bool,
}

impl ContentionReader {
    /// Returns the time of the last reading.
    pub(super) fn last_read_at(&self) -> Option<Moment> {
        self.last_reading.map(|last| last.at)
    }

    /// Adds one second.
    pub(super) fn read(&mut self, input: ContentionInput<'_>, root: &std::path::Path) {
        let ContentionInput { now, cpu, cores, .. } = input;
        let Some(last) = self.last_reading else {
            self.last_reading = Some(CpuReading { at: now, cpu });
            self.take_busy_time(input.workers, 0.0);
            return;
        };
        let elapsed = now.since(last.at);
        if elapsed < MIN_ELAPSED {
            return;
        }
        self.last_reading = Some(CpuReading { at: now, cpu });
        if input.was_suspended {
            self.take_busy_time(input.workers, 0.0);
            return;
        }
        self.seconds.rotate_left(1);
        let second = ContentionSecond {
            elapsed: elapsed.as_secs_f64(),
            workers: input.workers.len() as f64,
            busy: self.take_busy_time(input.workers, elapsed.as_secs_f64()),
            cpu: cpu.saturating_sub(last.cpu).as_secs_f64(),
            delay: None,
        };
        self.set_newest(second);
        let worker_time: f64 = self.seconds.iter().map(|it| it.workers * it.elapsed).sum();
        let may_block =
            second.off_cpu_time() > second.workers * second.elapsed * MIN_BLOCKED_FRACTION;
        let may_wait = second.cpu > cores * second.elapsed * MIN_USED_FRACTION;
        let delay = self.read_run_delay(may_block || may_wait, elapsed);
        if let Some(newest) = self.seconds.last_mut() {
            newest.delay = delay.map(|delay| delay.total.as_secs_f64());
        }
        self.cpu_waited = self.measure_cpu_waited(may_wait, second, delay, root);
        let blocked: f64 = self.seconds.iter().map(ContentionSecond::blocked).sum();
        self.blocked = match input.workers.is_empty() {
            true => None,
            false => Percent::of(blocked.min(worker_time), worker_time),
        };
    }

    /// Returns the time that threads waited for cores used by others in the last second, in cores.
    pub(super) fn cpu_waited(&self) -> Option<f64> {
        self.last_reading.map(|_| self.cpu_waited)
    }

    /// Returns the fraction of the workers' time in which polls neither ran nor waited for a core.
    pub(super) fn blocked(&self) -> Option<Percent> {
        self.blocked
    }

    fn set_newest(&mut self, second: ContentionSecond) {
        if let Some(newest) = self.seconds.last_mut() {
            *newest = second;
        }
    }

    /// Returns the busy time of the workers in the last `elapsed` seconds.
    fn take_busy_time(&mut self, workers: &[WorkerProgress], elapsed: f64) -> f64 {
        self.workers.values_mut().for_each(|worker| worker.is_present = false);
        let mut sum = 0.0;
        for progress in workers {
            let (turns, busy) = progress.counters;
            let new = WorkerTime { park_unpark_count: turns, busy, is_present: true };
            let Some(last) = self.workers.insert(progress.worker, new) else { continue };
            let counted = Duration::from_nanos(busy.saturating_sub(last.busy)).as_secs_f64();
            sum += match (last.park_unpark_count == turns, progress.is_parked) {
                (true, true) => 0.0,
                (true, false) => elapsed,
                // The counter includes busy time from before this second.
                (false, _) => counted.min(elapsed),
            };
        }
        self.workers.retain(|_, worker| worker.is_present);
        sum
    }

    /// Returns the run delay of the last second if it is `needed` and can be read.
    fn read_run_delay(&mut self, needed: bool, elapsed: Duration) -> Option<RunDelay> {
        self.quiet_readings = if needed { 0 } else { self.quiet_readings + 1 };
        if self.quiet_readings > MAX_QUIET_READINGS {
            self.delays = None;
            self.machine = None;
            self.machine_time = None;
            self.are_delays_known = false;
            return None;
        }
        if self.delays.is_none() {
            if !needed {
                return None;
            }
            self.delays = RunDelays::open();
        }
        let delta = self.delays.as_mut()?.take_delta(elapsed);
        let was_known = std::mem::replace(&mut self.are_delays_known, delta.is_some());
        delta.filter(|_| was_known)
    }

    fn measure_cpu_waited(
        &mut self,
        needed: bool,
        second: ContentionSecond,
        delay: Option<RunDelay>,
        root: &std::path::Path,
    ) -> f64 {
        if !needed {
            self.machine_time = None;
            return 0.0;
        }
        if self.machine.is_none() {
            self.machine = MachineCpu::open(root);
        }
        let time = self.machine.as_ref().and_then(MachineCpu::read);
        let before = std::mem::replace(&mut self.machine_time, time);
        match (before, time, delay) {
            (Some(before), Some(time), Some(delay)) => {
                let delay = delay.of_busy_threads.as_secs_f64();
                compute_cpu_waited(second.elapsed, second.cpu, delay, before, time)
            }
            _ => 0.0,
        }
    }
}

/// Returns the part of `delay` caused by other processes, in cores. `cpu` is the CPU time used by
/// this process in `elapsed`.
fn compute_cpu_waited(
    elapsed: f64,
    cpu: f64,
    delay: f64,
    before: MachineTime,
    after: MachineTime,
) -> f64 {
    let busy = after.busy.saturating_sub(before.busy).as_secs_f64();
    let idle = after.idle.saturating_sub(before.idle).as_secs_f64();
    if idle > (busy + idle) * MAX_IDLE_FRACTION || elapsed <= 0.0 {
        return 0.0;
    }
    delay.min((busy - cpu).max(0.0)) / elapsed
}

#[cfg(test)]
mod tests {
    use super::*;

    fn time(busy: f64, idle: f64) -> MachineTime {
        MachineTime { busy: Duration::from_secs_f64(busy), idle: Duration::from_secs_f64(idle) }
    }

    #[test]
    fn run_delay_counts_only_up_to_cpu_used_by_others() {
        let zero = time(0.0, 0.0);
        for (cpu, delay, after, expected) in [
            // Two cores, each shared by another process and one thread of this one.
            (1.0, 1.0, time(2.0, 0.0), 1.0),
            // 64 threads of this process compete with each other only.
            (2.0, 62.0, time(2.0, 0.0), 0.0),
            (1.0, 30.0, time(2.0, 0.0), 1.0),
            // One core is idle: the delays are wake-up latency.
            (0.5, 0.2, time(1.0, 1.0), 0.0),
            (0.1, 0.1, time(2.0, 0.0), 0.1),
        ] {
            let got = compute_cpu_waited(1.0, cpu, delay, zero, after);
            assert!((got - expected).abs() < 1e-9, "{cpu} {delay}: {got}");
        }
    }

    /// Counters of a worker: turns and busy nanoseconds.
    type Counters = (u64, u64);

    /// Returns `blocked` of a service with two workers after `seconds`. `at` returns the workers'
    /// counters at a second, and the CPU time used in it.
    fn blocked(seconds: u64, delay: f64, at: impl Fn(u64) -> ([Counters; 2], f64)) -> f64 {
        blocked_with_suspension(|_| false, seconds, delay, at)
    }

    /// Returns the same for a process that is suspended in some seconds.
    fn blocked_with_suspension(
        is_suspended: impl Fn(u64) -> bool,
        seconds: u64,
        delay: f64,
        at: impl Fn(u64) -> ([Counters; 2], f64),
    ) -> f64 {
        let mut contention = ContentionReader::default();
        let mut cpu = 0.0;
        for second in 0..seconds {
            let (counters, used) = at(second);
            cpu += used;
            let workers = [0, 1].map(|worker| WorkerProgress {
                worker: (1, worker),
                is_parked: counters[worker as usize].0 % 2 == 1,
                counters: counters[worker as usize],
                driver_tid: None,
            });
            let input = ContentionInput {
                now: Moment::from_nanos(1 + second * NANOS_PER_SEC),
                cpu: Duration::from_secs_f64(cpu),
                cores: 1000.0,
                workers: &workers,
                was_suspended: is_suspended(second),
            };
            contention.read(input, std::path::Path::new("/"));
            if let Some(newest) = contention.seconds.last_mut().filter(|_| second > 0) {
                newest.delay = Some(delay);
            }
        }
        let blocked: f64 = contention.seconds.iter().map(ContentionSecond::blocked).sum();
        blocked / 12.0
    }

    const NANOS_PER_SEC: u64 = 1_000_000_000;

    #[test]
    fn suspended_seconds_do_not_count_as_blocked() {
        // Workers that are always in polls, and use no CPU time from the tenth second on.
        let poll = |second: u64| {
            ([(second * 20, second * NANOS_PER_SEC); 2], if second < 10 { 2.0 } else { 0.0 })
        };
        assert!(blocked(13, 0.0, poll) > 0.4);
        let is_suspended = |second| second >= 10;
        assert!(blocked_with_suspension(is_suspended, 13, 0.0, poll) < 0.01);
    }

    #[test]
    fn polls_off_cpu_without_run_delay_count_as_blocked() {
        // Workers that park now and then, and are busy all the time.
        let busy = |second: u64| (second * 20, second * NANOS_PER_SEC);
        let contended = blocked(30, 0.0, |second| ([busy(second); 2], 1.0));
        assert!((contended - 0.5).abs() < 0.01, "one of two waits for the other: {contended}");
        let working = blocked(30, 0.0, |second| ([busy(second); 2], 2.0));
        assert!(working < 0.01, "{working}");
        let starved = blocked(30, 1.0, |second| ([busy(second); 2], 1.0));
        assert!(starved < 0.01, "a neighbour has the core: {starved}");
        let idle = blocked(30, 0.0, |_| ([(7, 0); 2], 0.0));
        assert!(idle < 0.01, "{idle}");
    }

    #[test]
    fn worker_that_never_parks_counts_as_busy() {
        let asleep = |second: u64| ([(if second < 5 { 7 } else { 8 }, 0), (7, 0)], 0.0);
        let got = blocked(11, 0.0, asleep);
        assert!((0.4..0.43).contains(&got), "five seconds of one of two workers: {got}");
        // One poll computes for 20 s, which the runtime counts at its end.
        let late_counting = |second: u64| {
            let counters = match second {
                0..5 => (7, 0),
                5..25 => (8, 0),
                _ => (9, 20 * NANOS_PER_SEC),
            };
            ([counters, (7, 0)], if (5..25).contains(&second) { 1.0 } else { 0.0 })
        };
        for seconds in 7..40 {
            let got = blocked(seconds, 0.0, late_counting);
            assert!(got < 0.09, "{seconds}: {got}");
        }
    }
}
