//! Accuracy and cost of stall detection: `cargo bench --bench stalls`.
//!
//! Each row has a name, a value, a goal, and `pass` or `short`. It takes about two minutes, with
//! `-- --quick` half a minute. `-- recorded`, `-- unrecorded` and `-- cost` run one part.
//!
//! Polls of 20, 40, 100, 200 and 400 ms are injected into a runtime with one worker or two, under a
//! threshold of 50 ms. The runtime is idle, has busy workers (tasks with polls of 5 ms), or shares
//! busy cores with other work. Each injected poll measures its own duration: on busy cores a poll
//! of 40 ms may take longer, and the measured duration decides. Recorded polls (`marple::task`)
//! must be detected if they lasted for the threshold plus the period of 10 ms. Unrecorded polls,
//! which are inferred from the runtime's counters, have another 60 ms. Between threshold and limit
//! either result is right. A false positive is a stall reported for a time at which no injected
//! poll exceeded the threshold.
//!
//! The cost of detection is the CPU time of the whole process with the detector on, minus that
//! with the detector off. The two are interleaved.

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
    let parts = ["recorded", "unrecorded", "cost"];
    let all = !std::env::args().any(|arg| parts.contains(&arg.as_str()));
    let is_selected = |part: &str| all || std::env::args().any(|arg| arg == part);
    for recorded in [true, false] {
        if !is_selected(recording_name(recorded)) {
            continue;
        }
        for load in [Load::Idle, Load::BusyWorkers, Load::BusyCores] {
            for workers in [1, 2] {
                measure_detection(recorded, load, workers, if quick { 1 } else { 3 });
            }
        }
    }
    if is_selected("cost") {
        measure_cost(if quick { 3 } else { 9 });
    }
}

fn recording_name(recorded: bool) -> &'static str {
    if recorded { "recorded" } else { "unrecorded" }
}

#[derive(Clone, Copy, PartialEq)]
enum Load {
    Idle,
    BusyWorkers,
    BusyCores,
}

impl Load {
    const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::BusyWorkers => "busy workers",
            Self::BusyCores => "busy cores",
        }
    }
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
    let spinners: Vec<_> = match load {
        Load::BusyCores => (0..std::thread::available_parallelism().map_or(2, |n| n.get()))
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
    if load == Load::BusyWorkers {
        for _ in 0..3 * workers {
            runtime.spawn(short_polls(Arc::clone(&stop)).traced("short"));
        }
    }
    std::thread::sleep(Duration::from_millis(500));
    let injected = Arc::new(Mutex::new(Vec::new()));
    let mut reported_stalls: Vec<Stall> = Vec::new();
    let collect_stalls = |collected: &mut Vec<Stall>| {
        let Ok(status) = agent.handle().status().wait(Duration::from_secs(10)) else { return };
        let known = |stall: &Stall| {
            collected.iter().any(|other| other.tid == stall.tid && other.started == stall.started)
        };
        let added: Vec<Stall> = status.stalls.into_iter().filter(|stall| !known(stall)).collect();
        collected.extend(added);
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
    spinners.into_iter().for_each(|thread| drop(thread.join()));
    runtime.shutdown_background();

    let injected = injected.lock().expect("no panic").clone();
    let detection_limit =
        THRESHOLD + PERIOD + if recorded { Duration::ZERO } else { UNRECORDED_DELAY };
    let is_named = |stall: &Stall| match recorded {
        true => stall.task.starts_with("injected"),
        false => stall.function.as_deref().is_some_and(|name| name.contains("inject_poll")),
    };
    let is_detected = |poll: &&Injected| {
        reported_stalls.iter().any(|stall| poll.matches(stall) && is_named(stall))
    };
    let above: Vec<&Injected> =
        injected.iter().filter(|poll| poll.duration >= detection_limit).collect();
    let detected = above.iter().filter(|poll| is_detected(poll)).count();
    let is_injected = |stall: &&Stall| {
        injected.iter().any(|poll| poll.duration >= THRESHOLD && poll.matches(stall))
    };
    // A short poll that the machine delayed beyond the threshold is a true stall.
    let (of_short_polls, others): (Vec<&Stall>, Vec<&Stall>) =
        reported_stalls.iter().partition(|stall| stall.task.starts_with("short"));
    let delayed = of_short_polls.len();
    let false_positives = others.iter().filter(|stall| !is_injected(stall)).count();
    let plural = if workers == 1 { "" } else { "s" };
    let name = format!("{}, {}, {workers} worker{plural}", recording_name(recorded), load.name());
    // On busy cores an unrecorded stall may be sampled too late, so there is no goal.
    let goal = if recorded || load != Load::BusyCores { above.len() as f64 } else { f64::NAN };
    row(&format!("{name}: detected of {}", above.len()), detected as f64, "", goal, true);
    row(&format!("{name}: false positives"), false_positives as f64, "", 0.0, false);
    if load != Load::BusyWorkers && delayed == 0 {
        return;
    }
    row(&format!("{name}: 5 ms polls delayed to 50 ms"), delayed as f64, "", f64::NAN, false);
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
        ("idle runtime", RuntimeState::Idle, 0.1),
        ("task woken every 1 ms", RuntimeState::Busy, f64::NAN),
        ("64 workers in polls of 150 ms", RuntimeState::AllStalled, 2.0),
    ] {
        let (mut off, mut on) = (Vec::new(), Vec::new());
        for _ in 0..pairs {
            off.push(share(None, load));
            on.push(share(Some(Duration::from_millis(100)), load));
        }
        let mut added: Vec<f64> = on.iter().zip(&off).map(|(on, off)| on - off).collect();
        added.sort_by(f64::total_cmp);
        off.sort_by(f64::total_cmp);
        let control = format!("control: {name}, detector off");
        row(&control, off[pairs / 2], "% of a core", f64::NAN, false);
        row(&format!("{name}, added by detector"), added[pairs / 2], "% of a core", goal, false);
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
    println!("{name:64} {value:10.3} {unit:12} {verdict}");
}
