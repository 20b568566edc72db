//! Accuracy and cost of stall detection: `cargo bench --bench stalls`.
//!
//! Each row has a name, a value, a goal, and `pass` or `short`. It takes about two minutes, with
//! `-- --quick` half a minute. `-- recorded`, `-- plain` and `-- cost` run one part.
//!
//! Polls of 20, 40, 100, 200 and 400 ms are injected into a runtime with one worker or two, under a
//! threshold of 50 ms. The runtime is idle, hot (tasks with polls of 5 ms at any time), or on a
//! machine whose cores are busy with other work. Each injected poll measures its own duration: on a
//! loaded machine one of 40 ms may take longer, and the measured duration decides. Recorded polls
//! (`marple::task`) must be found if they lasted for the threshold plus the period of 10 ms.
//! Unrecorded ones, which the runtime's counters make suspicious, have another 60 ms. Between
//! threshold and limit either result is right. A false alarm is a stall reported for a time at
//! which no injected poll exceeded the threshold.
//!
//! The cost of detection is the CPU time of the whole process with detection, minus that with the
//! agent alone. The two are interleaved.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use jiff::Timestamp;
use marple::Agent;
use marple::config::{DiskReserve, Settings, StoreSettings, ToggleSettings, TraceSettings};
use marple::internals::base::Bytes;
use marple::internals::model::Stall;
use marple::internals::os::proc::process::cpu_time;
use marple::task::Trace as _;
use tokio::runtime::{Builder, Runtime};

const THRESHOLD: Duration = Duration::from_millis(50);
const PERIOD: Duration = Duration::from_millis(10);

/// Additional time for an unrecorded poll: an idle runtime is inspected once per threshold, and
/// again after 10 ms.
const UNRECORDED_DELAY: Duration = Duration::from_millis(60);

/// Maximum distance between the start times of a stall and of its poll. On an overloaded machine
/// the worker may be preempted between the two.
const MAX_START_DIFFERENCE: Duration = Duration::from_millis(20);

const POLL_MILLIS: [u64; 5] = [20, 40, 100, 200, 400];

fn main() {
    // `cargo test --all-targets` runs benches too; only `cargo bench` passes `--bench`.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let quick = std::env::args().any(|arg| arg == "--quick");
    let parts = ["recorded", "plain", "cost"];
    let all = !std::env::args().any(|arg| parts.contains(&arg.as_str()));
    let is_selected = |part: &str| all || std::env::args().any(|arg| arg == part);
    for recorded in [true, false] {
        if !is_selected(if recorded { "recorded" } else { "plain" }) {
            continue;
        }
        for load in [Load::Idle, Load::Hot, Load::Machine] {
            for workers in [1, 2] {
                measure_detection(recorded, load, workers, if quick { 1 } else { 3 });
            }
        }
    }
    if is_selected("cost") {
        measure_cost(if quick { 3 } else { 9 });
    }
}

#[derive(Clone, Copy, Debug, PartialEq)]
enum Load {
    Idle,
    Hot,
    Machine,
}

/// Start and duration of an injected poll.
#[derive(Clone, Copy, Debug)]
struct Injected {
    start: Timestamp,
    duration: Duration,
}

impl Injected {
    fn matches(&self, stall: &Stall) -> bool {
        let (from, until) = (self.start - MAX_START_DIFFERENCE, self.start + self.duration);
        stall.started >= from && stall.started <= until
    }
}

fn measure_detection(recorded: bool, load: Load, workers: usize, rounds: usize) {
    let (agent, _dir) = start_agent(Some(THRESHOLD), Duration::from_millis(100));
    let runtime = runtime(workers);
    agent.handle().watch_runtime(runtime.handle().clone()).expect("a runtime to observe");
    let stop = Arc::new(AtomicBool::new(false));
    let burning: Vec<_> = match load {
        Load::Machine => (0..std::thread::available_parallelism().map_or(2, |n| n.get()))
            .map(|_| {
                let stop = Arc::clone(&stop);
                std::thread::spawn(move || {
                    while !stop.load(Ordering::Relaxed) {
                        std::hint::spin_loop();
                    }
                })
            })
            .collect(),
        _ => Vec::new(),
    };
    if load == Load::Hot {
        for _ in 0..3 * workers {
            runtime.spawn(short_polls(Arc::clone(&stop)).traced("short"));
        }
    }
    std::thread::sleep(Duration::from_millis(500));
    let injected = Arc::new(Mutex::new(Vec::new()));
    let mut reported_stalls: Vec<Stall> = Vec::new();
    let collect_stalls = |told: &mut Vec<Stall>| {
        let Ok(status) = agent.handle().status().wait(Duration::from_secs(10)) else { return };
        let known = |stall: &Stall| {
            told.iter().any(|told| told.tid == stall.tid && told.started == stall.started)
        };
        let fresh: Vec<Stall> = status.stalls.into_iter().filter(|stall| !known(stall)).collect();
        told.extend(fresh);
    };
    for _ in 0..rounds {
        for length in POLL_MILLIS.map(Duration::from_millis) {
            let injected = Arc::clone(&injected);
            let poll = async move {
                let (start, started_at) = (Timestamp::now(), Instant::now());
                inject_poll(length);
                let duration = started_at.elapsed();
                injected.lock().expect("no panic").push(Injected { start, duration });
            };
            let done =
                if recorded { runtime.spawn(poll.traced("injected")) } else { runtime.spawn(poll) };
            runtime.block_on(done).expect("no panic");
            std::thread::sleep(Duration::from_millis(120));
            collect_stalls(&mut reported_stalls);
        }
    }
    stop.store(true, Ordering::Relaxed);
    burning.into_iter().for_each(|thread| drop(thread.join()));
    runtime.shutdown_background();

    let injected = injected.lock().expect("no panic").clone();
    let due = THRESHOLD + PERIOD + if recorded { Duration::ZERO } else { UNRECORDED_DELAY };
    let is_named = |stall: &Stall| match recorded {
        true => stall.task.starts_with("injected"),
        false => stall.function.as_deref().is_some_and(|name| name.contains("inject_poll")),
    };
    let found = |poll: &&Injected| {
        reported_stalls.iter().any(|stall| poll.matches(stall) && is_named(stall))
    };
    let above: Vec<&Injected> = injected.iter().filter(|poll| poll.duration >= due).collect();
    let hits = above.iter().filter(|poll| found(poll)).count();
    let is_right = |stall: &&Stall| {
        injected.iter().any(|poll| poll.duration >= THRESHOLD && poll.matches(stall))
    };
    // A short poll that the machine delayed beyond the threshold is a true stall.
    let (short, told): (Vec<&Stall>, Vec<&Stall>) =
        reported_stalls.iter().partition(|stall| stall.task.starts_with("short"));
    let held_up = short.len();
    let wrong = told.iter().filter(|stall| !is_right(stall)).count();
    let kind = if recorded { "recorded" } else { "plain" };
    let name = format!("{kind}, {load:?}, {workers} workers").to_lowercase();
    // On a machine with busy cores an unrecorded stall may be sampled too late, so there is no
    // goal.
    let goal = if recorded || load != Load::Machine { above.len() as f64 } else { f64::NAN };
    row(&format!("{name}: found of {}", above.len()), hits as f64, "", goal, true);
    row(&format!("{name}: false alarms"), wrong as f64, "", 0.0, false);
    if load != Load::Hot && held_up == 0 {
        return;
    }
    row(&format!("{name}: polls of 5 ms held up for 50"), held_up as f64, "", f64::NAN, false);
}

#[inline(never)]
fn inject_poll(length: Duration) {
    std::thread::sleep(length);
    std::hint::black_box(());
}

async fn short_polls(stop: Arc<AtomicBool>) {
    while !stop.load(Ordering::Relaxed) {
        let start = Instant::now();
        while start.elapsed() < Duration::from_millis(5) {
            std::hint::spin_loop();
        }
        tokio::task::yield_now().await;
    }
}

/// State of the runtime while the cost of detection is measured.
#[derive(Clone, Copy, PartialEq)]
enum RuntimeState {
    Idle,
    Busy,
    /// All workers in polls that stall, about 400 stalls a second.
    AllStalled,
}

async fn run_stalled_polls() {
    loop {
        std::thread::sleep(Duration::from_millis(150));
        tokio::task::yield_now().await;
    }
}

/// Measures CPU time of detection, in per cent of a core.
fn measure_cost(pairs: usize) {
    const SPAN: Duration = Duration::from_secs(2);
    let share = |stall: Option<Duration>, load: RuntimeState| {
        let (agent, _dir) = start_agent(stall, Duration::from_secs(10));
        let runtime = runtime(if load == RuntimeState::AllStalled { 64 } else { 2 });
        agent.handle().watch_runtime(runtime.handle().clone()).expect("a runtime to observe");
        match load {
            RuntimeState::Idle => {}
            RuntimeState::Busy => drop(
                runtime.spawn(
                    async {
                        loop {
                            tokio::time::sleep(Duration::from_millis(1)).await;
                        }
                    }
                    .traced("busy"),
                ),
            ),
            RuntimeState::AllStalled => {
                (0..64).for_each(|_| drop(runtime.spawn(run_stalled_polls().traced("stalled"))))
            }
        }
        std::thread::sleep(Duration::from_millis(200));
        let (before, started_at) = (cpu_time(), Instant::now());
        std::thread::sleep(SPAN);
        let share =
            (cpu_time() - before).as_secs_f64() / started_at.elapsed().as_secs_f64() * 100.0;
        runtime.shutdown_background();
        share
    };
    for (name, load, goal) in [
        ("an idle runtime", RuntimeState::Idle, 0.1),
        ("a task woken each millisecond", RuntimeState::Busy, f64::NAN),
        ("64 workers in polls of 150 ms", RuntimeState::AllStalled, 2.0),
    ] {
        let (mut alone, mut looked) = (Vec::new(), Vec::new());
        for _ in 0..pairs {
            alone.push(share(None, load));
            looked.push(share(Some(Duration::from_millis(100)), load));
        }
        let mut more: Vec<f64> =
            looked.iter().zip(&alone).map(|(with, without)| with - without).collect();
        more.sort_by(f64::total_cmp);
        alone.sort_by(f64::total_cmp);
        row(
            &format!("control: {name}, nobody looks"),
            alone[pairs / 2],
            "% of a core",
            f64::NAN,
            false,
        );
        row(&format!("looking for stalls, {name}"), more[pairs / 2], "% of a core", goal, false);
    }
}

fn start_agent(stall: Option<Duration>, interval: Duration) -> (Agent, tempfile::TempDir) {
    let dir = tempfile::TempDir::new().expect("a directory");
    let settings = Settings {
        dir: dir.path().join("captures"),
        interval,
        rules: Vec::new(),
        trace: TraceSettings { stall_threshold: stall, ..TraceSettings::default() },
        toggle: ToggleSettings { signal: None, ..ToggleSettings::default() },
        store: StoreSettings {
            min_free_space: DiskReserve::Bytes(Bytes(0)),
            ..StoreSettings::default()
        },
        ..Settings::default()
    };
    (marple::Builder::from_settings(settings).start().expect("an agent"), dir)
}

fn runtime(workers: usize) -> Runtime {
    Builder::new_multi_thread().worker_threads(workers).enable_all().build().expect("a runtime")
}

/// Prints a row. A NaN goal means that there is no goal.
fn row(name: &str, value: f64, unit: &str, goal: f64, at_least: bool) {
    let verdict = match (goal.is_nan(), at_least) {
        (true, _) => String::new(),
        (false, true) => format!(">= {goal}  {}", if value >= goal { "pass" } else { "short" }),
        (false, false) => format!("<= {goal}  {}", if value <= goal { "pass" } else { "short" }),
    };
    println!("{name:56} {value:10.3} {unit:12} {verdict}");
}
