//! The readers for Linux: `task/TID/schedstat` and `/proc/stat`.

use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{Mode, OFlags, open};
use rustix::io::pread;

use super::{MachineTime, RunDelay};
use crate::base::spare;
use crate::os::kernel_file::{join_root, parse_number, split_words};
use crate::os::own_thread;
use crate::os::proc::thread_list::{ThreadList, read_thread_file};
use crate::os::proc::threads::current_tid;

/// Thread limit; above it a reading would cost more than 2 ms.
const MAX_THREADS: usize = 512;

/// Share of a period below which a thread's sleep counts as none: the thread is computing.
const MAX_SLEEP_FRACTION: f64 = 0.2;

/// Scheduler times of a thread, in nanoseconds.
#[derive(Clone, Copy, Debug)]
struct ThreadTimes {
    tid: u32,
    cpu: u64,
    delay: u64,
}

/// A reader of the run delay of the service's threads, without marple's own.
#[derive(Debug)]
pub(crate) struct RunDelays {
    tasks: ThreadList,
    tids: Vec<u32>,
    /// Threads of the last reading, sorted by ID.
    previous: Vec<ThreadTimes>,
    next: Vec<ThreadTimes>,
    has_read: bool,
}

impl RunDelays {
    /// Opens `/proc/self/task`. Returns `None` if it does not exist or has no schedstat.
    pub(crate) fn open() -> Option<Self> {
        let tasks = ThreadList::open().ok()?;
        read_times(&tasks, current_tid())?;
        Some(Self {
            tasks,
            tids: Vec::new(),
            previous: Vec::new(),
            next: Vec::new(),
            has_read: false,
        })
    }

    /// Returns the run delay since the last call, which was `elapsed` ago: zero at the first call,
    /// and `None` if there are more than 512 threads. The waits of exited threads are not included.
    pub(crate) fn take_delta(&mut self, elapsed: Duration) -> Option<RunDelay> {
        self.tasks.list(&mut self.tids).ok()?;
        if self.tids.len() > MAX_THREADS {
            self.previous.clear();
            self.has_read = false;
            return None;
        }
        self.next.clear();
        let mut waited = RunDelay::default();
        for &tid in &self.tids {
            if own_thread::running_tids().any(|own| own == tid) {
                continue;
            }
            let Some(new) = read_times(&self.tasks, tid) else { continue };
            self.next.push(new);
            let at = self.previous.binary_search_by_key(&tid, |known| known.tid);
            let none = ThreadTimes { tid, cpu: 0, delay: 0 };
            let old = at.ok().and_then(|at| self.previous.get(at)).unwrap_or(&none);
            let delay = Duration::from_nanos(new.delay.saturating_sub(old.delay));
            let cpu = Duration::from_nanos(new.cpu.saturating_sub(old.cpu));
            waited.total += delay;
            if cpu + delay >= elapsed.mul_f64(1.0 - MAX_SLEEP_FRACTION) {
                waited.of_busy_threads += delay;
            }
        }
        std::mem::swap(&mut self.previous, &mut self.next);
        let is_first = !std::mem::replace(&mut self.has_read, true);
        Some(if is_first { RunDelay::default() } else { waited })
    }
}

/// Reads `schedstat`: CPU time, run delay, number of timeslices.
fn read_times(tasks: &ThreadList, tid: u32) -> Option<ThreadTimes> {
    let mut buffer = [0; 128];
    let mut words =
        split_words(read_thread_file(tasks.directory(), tid, "schedstat", &mut buffer)?);
    Some(ThreadTimes {
        tid,
        cpu: parse_number(words.next()?)?,
        delay: parse_number(words.next()?)?,
    })
}

/// A reader of the machine's CPU time.
#[derive(Debug)]
pub(crate) struct MachineCpu(OwnedFd);

impl MachineCpu {
    /// Opens `/proc/stat` below `root`. Returns `None` if it does not exist.
    pub(crate) fn open(root: &Path) -> Option<Self> {
        let path = join_root(root, Path::new("/proc/stat"));
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        spare::open_with_retry(|| open(&path, flags, Mode::empty())).ok().map(Self)
    }

    /// Returns the cumulative times.
    pub(crate) fn read(&self) -> Option<MachineTime> {
        let mut buffer = [0; 256];
        let length = pread(&self.0, &mut buffer, 0).ok()?;
        parse(buffer.get(..length)?)
    }
}

/// Parses `cpu  user nice system idle iowait irq softirq steal guest guest_nice`, in clock ticks.
/// Guest times are included in user and nice.
fn parse(stat: &[u8]) -> Option<MachineTime> {
    let line = stat.split(|&byte| byte == b'\n').next()?.strip_prefix(b"cpu ")?;
    let mut busy = 0_u64;
    let mut idle = 0_u64;
    for (at, word) in split_words(line).take(8).enumerate() {
        let sum = if matches!(at, 3 | 4) { &mut idle } else { &mut busy };
        *sum = sum.saturating_add(parse_number(word)?);
    }
    let per_second = rustix::param::clock_ticks_per_second().max(1);
    let time = |ticks: u64| Duration::from_millis(ticks.saturating_mul(1000) / per_second);
    Some(MachineTime { busy: time(busy), idle: time(idle) })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn first_line_of_proc_stat_is_parsed() {
        let stat = b"cpu  100 10 50 300 20 5 5 30 7 0\ncpu0 1 2 3 4 5 6 7 8 9 0\n";
        let time = parse(stat).unwrap();
        let per_second = rustix::param::clock_ticks_per_second();
        let ticks = |n: u64| Duration::from_millis(n * 1000 / per_second);
        assert_eq!(time, MachineTime { busy: ticks(200), idle: ticks(320) });
        for text in ["", "cpu", "cpus 1 2", "cpu  1 x 3"] {
            assert_eq!(parse(text.as_bytes()), None, "{text}");
        }
    }

    #[test]
    fn first_run_delay_delta_is_zero() {
        let Some(mut delays) = RunDelays::open() else { return };
        let elapsed = Duration::from_millis(1);
        assert_eq!(delays.take_delta(elapsed), Some(RunDelay::default()));
        let spin = || (0..50_000_000_u64).fold(0, |sum, n| std::hint::black_box(sum ^ n));
        let threads: Vec<_> = (0..4).map(|_| std::thread::spawn(spin)).collect();
        let waited = delays.take_delta(elapsed).unwrap();
        threads.into_iter().for_each(|thread| drop(thread.join()));
        assert!(waited.of_busy_threads <= waited.total && waited.total < Duration::from_secs(3600));
        // No thread has run for an hour.
        let none = delays.take_delta(Duration::from_secs(3600)).unwrap();
        assert_eq!(none.of_busy_threads, Duration::ZERO);
    }
}
