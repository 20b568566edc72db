//! Endless rises of tasks, threads and descriptors, and the counts of healthy services. The tests
//! create real ones in this process and read them with the agent's reader in virtual time, because
//! the reader measures the rise.

use std::fs::File;
use std::ops::RangeInclusive;
use std::os::unix::fs::symlink;
use std::sync::mpsc::{self, Sender};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use jiff::Timestamp;
use marple::config::Settings;
use marple::internals::agent::replay;
use marple::internals::agent::{ReplayOutcome, ReplayTiming};
use marple::internals::base::ManualClock;
use marple::internals::metrics::Gauges;
use marple::internals::model::Vitals;
use marple::internals::vitals::{Reader, Runtimes};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};
use tempfile::TempDir;
use tokio::runtime::{Builder, Runtime};

use super::cases::HOUR;
use super::trace::{Trace, TraceMetric, repeat};

/// Serializes the tests of this file if they are threads of one process: descriptors and threads
/// are counted per process.
static SERIAL: Mutex<()> = Mutex::new(());

/// A number of live objects of one kind.
trait Population {
    fn resize(&mut self, count: usize);

    /// Returns only the vitals of this kind.
    fn only_this_kind(&self, read: &Vitals) -> Vitals;
}

struct Tasks {
    runtime: Runtime,
    alive: Vec<tokio::task::JoinHandle<()>>,
}

impl Tasks {
    fn new() -> Self {
        Self { runtime: Builder::new_current_thread().build().unwrap(), alive: Vec::new() }
    }
}

impl Population for Tasks {
    fn resize(&mut self, count: usize) {
        while self.alive.len() < count {
            self.alive.push(self.runtime.spawn(std::future::pending()));
        }
        let ended = self.alive.split_off(count);
        ended.iter().for_each(tokio::task::JoinHandle::abort);
        self.runtime.block_on(async {
            for task in ended {
                assert!(task.await.unwrap_err().is_cancelled());
            }
        });
    }

    fn only_this_kind(&self, read: &Vitals) -> Vitals {
        Vitals { tasks: read.tasks, task_rise: read.task_rise, ..Vitals::default() }
    }
}

#[derive(Default)]
struct Threads {
    alive: Vec<(Sender<()>, JoinHandle<bool>)>,
}

impl Population for Threads {
    fn resize(&mut self, count: usize) {
        while self.alive.len() < count {
            let (sender, receiver) = mpsc::channel();
            let thread = thread::Builder::new().stack_size(64 << 10);
            // The thread ends when its sender is dropped.
            let thread = thread.spawn(move || receiver.recv().is_err()).unwrap();
            self.alive.push((sender, thread));
        }
        for (sender, thread) in self.alive.split_off(count) {
            drop(sender);
            assert!(thread.join().unwrap());
        }
    }

    fn only_this_kind(&self, read: &Vitals) -> Vitals {
        Vitals { threads: read.threads, thread_rise: read.thread_rise, ..Vitals::default() }
    }
}

#[derive(Default)]
struct Descriptors {
    open: Vec<File>,
}

impl Population for Descriptors {
    fn resize(&mut self, count: usize) {
        while self.open.len() < count {
            self.open.push(File::open("/dev/null").unwrap());
        }
        self.open.truncate(count);
    }

    fn only_this_kind(&self, read: &Vitals) -> Vitals {
        Vitals { fds: read.fds, fd_rise: read.fd_rise, ..Vitals::default() }
    }
}

/// Replays the default rules with as many objects as `trace` says, one tick each `interval`.
fn run(
    mut population: impl Population,
    runtimes: Runtimes,
    trace: &Trace,
    interval: Duration,
) -> ReplayOutcome {
    let clock = Arc::new(ManualClock::new(Timestamp::UNIX_EPOCH));
    // An empty root: limits play no part here, and reading them takes most of the time.
    let root = TempDir::new().unwrap();
    symlink("/proc", root.path().join("proc")).unwrap();
    let mut reader = Reader::with_root(runtimes, Gauges::new(), root.path(), clock.clone());
    let ticks = (trace.end_seconds() / interval.as_secs_f64()) as u32;
    let vitals = (0..=ticks).map(|tick| {
        let at = interval * tick;
        population.resize(trace.value_at(at.as_secs_f64()) as usize);
        if tick > 0 {
            clock.advance(interval);
        }
        let now = marple::internals::base::Clock::now(&*clock);
        let read = reader.read(now);
        Vitals { at: now, ..population.only_this_kind(&read) }
    });
    replay(&Settings::default(), ReplayTiming::default(), vitals)
}

#[derive(Clone, Copy, Debug)]
enum Kind {
    Tasks,
    Threads,
    Descriptors,
}

impl Kind {
    const ALL: [Self; 3] = [Self::Tasks, Self::Threads, Self::Descriptors];

    const fn rule(self) -> &'static str {
        match self {
            Self::Tasks => "tasks-rise",
            Self::Threads => "threads-rise",
            Self::Descriptors => "fds-rise",
        }
    }

    /// Returns the rise above which the rule fires.
    const fn threshold(self) -> f64 {
        match self {
            Self::Tasks => 250.0,
            Self::Threads => 100.0,
            Self::Descriptors => 1000.0,
        }
    }

    fn run(self, trace: &Trace, interval: Duration) -> ReplayOutcome {
        let runtimes = Runtimes::new();
        match self {
            Self::Tasks => {
                let tasks = Tasks::new();
                runtimes.observe(tasks.runtime.handle().clone()).unwrap();
                run(tasks, runtimes, trace, interval)
            }
            Self::Threads => run(Threads::default(), runtimes, trace, interval),
            Self::Descriptors => run(Descriptors::default(), runtimes, trace, interval),
        }
    }
}

/// A history of a number, in units of the rise above which a rule fires.
struct Row {
    name: &'static str,
    /// Pairs of seconds and number.
    points: Vec<(f64, f64)>,
    noise: f64,
    interval: Duration,
    captures: RangeInclusive<usize>,
}

const TICK: Duration = Duration::from_millis(250);
const SECOND: Duration = Duration::from_secs(1);

/// Replays each row with the count of each kind.
fn assert_captured(rows: &[Row]) {
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: limit.maximum, ..limit }).unwrap();
    let _serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    let mut short = Vec::new();
    for row in rows {
        for kind in Kind::ALL {
            let scaled = row.points.iter().map(|(at, n)| (*at, n * kind.threshold())).collect();
            let trace =
                Trace::new("", TraceMetric::Count, scaled).with_noise(row.noise * kind.threshold());
            let outcome = kind.run(&trace, row.interval);
            let capture_count = outcome.captures.len();
            let values = outcome
                .written_captures()
                .map(|capture| trace.value_at(capture.at.as_nanos() as f64 / 1e9) as u64);
            let values: Vec<u64> = values.collect();
            println!("{:<34} {:<12} {capture_count} @ {values:?}", row.name, kind.rule());
            let others = outcome.fired.iter().filter(|(_, rule, _)| rule != kind.rule()).count();
            let is_late =
                values.first().is_some_and(|first| *first as f64 > 3.0 * kind.threshold());
            if !row.captures.contains(&capture_count) || others > 0 || is_late {
                short.push((row.name, kind, capture_count, values, outcome.fired));
            }
        }
    }
    assert!(short.is_empty(), "{short:#?}");
}

#[test]
fn endless_count_growth_is_captured_with_few_repeats() {
    let row = |name, points, noise, captures| Row { name, points, noise, interval: TICK, captures };
    assert_captured(&[
        row("12 a minute", vec![(0.0, 0.2), (60.0, 0.2), (90.0, 6.2)], 0.01, 1..=5),
        row("1 a minute", vec![(0.0, 0.2), (60.0, 0.2), (420.0, 6.2)], 0.02, 1..=5),
        row("1 in three minutes", vec![(0.0, 0.1), (60.0, 0.1), (1200.0, 6.4)], 0.02, 1..=5),
        row(
            "ever faster",
            vec![(0.0, 0.1), (60.0, 0.1), (160.0, 1.0), (220.0, 3.0), (240.0, 7.0)],
            0.02,
            1..=5,
        ),
    ]);
}

/// Returns the first two hours of a daily curve between `low`, its value at the start, and `high`.
fn daily_rise(low: f64, high: f64) -> Vec<(f64, f64)> {
    let wave = |n: f64| (1.0 - (n / 12.0 * std::f64::consts::PI).cos()) / 2.0;
    (0..=8).map(|n| f64::from(n) / 4.0).map(|n| (n * HOUR, low + (high - low) * wave(n))).collect()
}

#[test]
fn healthy_count_changes_cause_no_capture() {
    let row = |name, points, noise| Row { name, points, noise, interval: TICK, captures: 0..=0 };
    let burst = [(0.0, 0.1), (20.0, 0.1), (25.0, 4.0), (40.0, 4.0), (45.0, 0.1), (60.0, 0.1)];
    assert_captured(&[
        row("start within 12 s", vec![(0.0, 0.0), (12.0, 6.0), (300.0, 6.0)], 0.05),
        row(
            "plateau after a step within 5 s",
            vec![(0.0, 0.5), (60.0, 0.5), (65.0, 6.0), (600.0, 6.0)],
            0.05,
        ),
        row("burst of 20 s each minute", repeat(&burst, 420.0), 0.02),
        row("grows by half in ten minutes", vec![(0.0, 4.0), (60.0, 4.0), (660.0, 6.0)], 0.02),
        Row { interval: SECOND, ..row("morning of a day with a peak", daily_rise(0.1, 6.0), 0.02) },
    ]);
}
