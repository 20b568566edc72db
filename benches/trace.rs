//! Cost of recording polls: CPU time per operation, divided by that of the same runtime without
//! marple.
//!
//! `cargo bench --bench trace` measures the wrapper on stable tokio; `RUSTFLAGS="--cfg
//! tokio_unstable" cargo bench --bench trace` measures tokio's hooks. Rounds are interleaved, each
//! ratio is to the plain run of the same round, and the median of the rounds is shown. `control` is
//! the plain run against itself; its distance from 1 is noise. With hooks, `empty hooks` is tokio's
//! own cost of calling hooks: each task counts a reference to the task-end hook, and all
//! workers write to that counter.
//!
//! The rows `trace file` are the cost of writing a trace of the recorded polls, and its size. They
//! come first because the ring of an exited thread is kept for the length of the window. After
//! dozens of runtimes only small rings are left, and the fixed cost of a trace would dominate a few
//! thousand events. `fragmented heap` repeats it in a process that has filled 300 MB and freed a
//! random half of it.
//!
//! `-- --quick` takes a third of the rounds. `-- NAME ..` runs the workloads whose names start with
//! NAME, and `trace` the rows of the file. `-- --once plain|off|recording NAME OPERATIONS` runs one
//! workload once and prints nothing, for `valgrind --tool=callgrind`: the instructions of an
//! operation are the difference of two runs.

#[path = "trace/workloads.rs"]
mod workloads;

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use marple::instrument_runtime;
use marple::internals::base::{Bytes, Clock, SystemClock};
use marple::internals::codec::perfetto;
use marple::internals::model::TraceMode;
use marple::internals::trace::{TraceSession, configure};
use tokio::runtime::Runtime;
use workloads::{Spawn, WORKLOADS, builder, cpu_time, median};

const ROUNDS: usize = 9;
const MAX_BYTES: Bytes = Bytes::mib(16);
const WINDOW: Duration = Duration::from_secs(30);
const HOOKS: bool = cfg!(tokio_unstable);

/// By workload: goals for recording over plain, with hooks and with the wrapper.
const GOALS: [(f64, f64); 4] = [(1.10, 1.10), (1.18, 1.28), (1.02, 1.02), (1.02, 1.02)];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let [once, mode_name, name, operations] = &args[..]
        && once == "--once"
    {
        return run_once_only(mode_name, name, operations.parse().expect("a number"));
    }
    let rounds = if args.iter().any(|arg| arg == "--quick") { ROUNDS / 3 } else { ROUNDS };
    let is_selected = |name: &str| {
        let mut names = args.iter().filter(|arg| !arg.starts_with("--")).peekable();
        names.peek().is_none() || names.any(|wanted| name.starts_with(&**wanted))
    };
    let source = if HOOKS { "hooks" } else { "wrapper" };
    println!("{rounds} rounds, CPU time over plain tokio, 2 workers, {source}");
    println!("{:48} {:>9} {:>9}", "", "value", "goal");
    if is_selected("trace file") {
        measure_files(source, rounds);
    }
    for (workload, goals) in WORKLOADS.iter().zip(GOALS).filter(|(it, _)| is_selected(it.name)) {
        let plain = || builder().build().expect("a runtime");
        let instrumented = || instrument_runtime(&mut builder()).build().expect("a runtime");
        let spawn = if HOOKS { Spawn::Plain } else { Spawn::Wrapped };
        let (mut plains, mut ratios) = (Vec::new(), [(); 5].map(|()| Vec::new()));
        for round in 0..=rounds {
            let off = || {
                configure(TraceMode::OnDemand, MAX_BYTES, WINDOW);
                workload.run(&instrumented(), spawn)
            };
            let on = || {
                configure(TraceMode::Always, MAX_BYTES, WINDOW);
                let nanos = workload.run(&instrumented(), spawn);
                configure(TraceMode::OnDemand, MAX_BYTES, WINDOW);
                nanos
            };
            let base = workload.run(&plain(), Spawn::Plain);
            let control = workload.run(&plain(), Spawn::Plain);
            let clock = workload.run(&plain(), Spawn::Clocked);
            let empty_hooks = workload.run(&runtime_with_empty_hooks(), Spawn::Plain);
            let runs = [control, clock, empty_hooks, off(), on()];
            if round > 0 {
                plains.push(base);
                for (ratios, nanos) in ratios.iter_mut().zip(runs) {
                    ratios.push(nanos / base);
                }
            }
        }
        let name = workload.name;
        println!("{:48} {:7.0} ns", format!("{name}: plain"), median(plains));
        let [control, clock, empty_hooks, off, on] = ratios.map(median);
        println!("{:48} {control:9.3}", format!("{name}: control over plain"));
        println!("{:48} {clock:9.3}", format!("{name}: two clock readings per poll"));
        if HOOKS {
            println!("{:48} {empty_hooks:9.3}", format!("{name}: empty hooks"));
        }
        println!("{:48} {off:9.3}", format!("{name}: {source}, off"));
        let goal = if HOOKS { goals.0 } else { goals.1 };
        row(&format!("{name}: {source}, recording"), on, goal);
    }
}

/// Builds a runtime with the same hooks as marple's, all of them empty.
fn runtime_with_empty_hooks() -> Runtime {
    let mut builder = builder();
    builder.on_thread_park(|| ()).on_thread_unpark(|| ());
    #[cfg(tokio_unstable)]
    builder
        .on_before_task_poll(|_| ())
        .on_after_task_poll(|_| ())
        .on_task_spawn(|_| ())
        .on_task_terminate(|_| ());
    builder.build().expect("a runtime")
}

fn run_once_only(mode_name: &str, name: &str, operations: u32) {
    let (runtime, spawn) = match mode_name {
        "plain" => (builder().build(), Spawn::Plain),
        _ => (
            instrument_runtime(&mut builder()).build(),
            if HOOKS { Spawn::Plain } else { Spawn::Wrapped },
        ),
    };
    let mode = if mode_name == "recording" { TraceMode::Always } else { TraceMode::OnDemand };
    configure(mode, MAX_BYTES, WINDOW);
    let workload = WORKLOADS.iter().find(|workload| workload.name.starts_with(name));
    workload.expect("a workload").run_once(&runtime.expect("a runtime"), spawn, operations);
}

/// Measures the cost of a trace from a full set of rings.
fn measure_files(source: &str, rounds: usize) {
    configure(TraceMode::Always, MAX_BYTES, WINDOW);
    let runtime = instrument_runtime(&mut builder()).build().expect("a runtime");
    let costs: Vec<TraceFileCost> = (0..rounds).map(|_| measure_file(&runtime, || ())).collect();
    let fragmented: Vec<TraceFileCost> =
        (0..rounds).map(|_| measure_file(&runtime, fragment_heap)).collect();
    configure(TraceMode::OnDemand, MAX_BYTES, WINDOW);
    let median_of = |files: &[TraceFileCost], value: fn(&TraceFileCost) -> f64| {
        median(files.iter().map(value).collect())
    };
    println!("{:48} {:9.0}", "trace file: events", median_of(&costs, |file| file.events));
    println!(
        "{:48} {:9.3}",
        "trace file: CPU ns per event, copy from rings",
        median_of(&costs, |file| file.snapshot_nanos)
    );
    row(
        &format!("trace file: CPU ns per event, {source}"),
        median_of(&costs, |file| file.total_nanos),
        100.0,
    );
    println!(
        "{:48} {:9.3}",
        "trace file: CPU ns per event, fragmented heap",
        median_of(&fragmented, |file| file.total_nanos)
    );
    row(
        &format!("trace file: gzip bytes per event, {source}"),
        median_of(&costs, |file| file.bytes),
        8.0,
    );
}

/// Number of events in a trace, and per event: nanoseconds to copy it from the rings, nanoseconds
/// to copy and write it, and bytes.
struct TraceFileCost {
    events: f64,
    snapshot_nanos: f64,
    total_nanos: f64,
    bytes: f64,
}

/// Records, calls `prepare_heap`, and writes a trace. The returned value of `prepare_heap` is freed
/// afterwards. The trace is written on a separate thread, as in the agent: blocks freed by
/// other threads mostly do not affect its allocator.
fn measure_file<T>(runtime: &Runtime, prepare_heap: fn() -> T) -> TraceFileCost {
    let spawn = if HOOKS { Spawn::Plain } else { Spawn::Wrapped };
    for workload in &WORKLOADS {
        workload.run(runtime, spawn);
    }
    let heap_blocks = prepare_heap();
    let file = thread::spawn(|| {
        let session =
            TraceSession::start(MAX_BYTES, SystemClock.anchor()).expect("no other session");
        let before = cpu_time();
        let timeline = session.stop(SystemClock.now());
        let stopped = cpu_time();
        let mut size = Counting(0);
        perfetto::write(&timeline, &mut size).expect("an infallible writer");
        let written = cpu_time();
        let activity = &timeline.activity;
        let slices = activity.threads.iter().map(|thread| thread.slices.len()).sum::<usize>();
        let events = (slices + activity.tasks.len()) as f64;
        let [snapshot_nanos, total_nanos] =
            [stopped, written].map(|until| (until - before) / events);
        TraceFileCost { events, snapshot_nanos, total_nanos, bytes: size.0 as f64 / events }
    });
    let file = file.join().expect("no panic");
    drop(heap_blocks);
    file
}

/// Allocates blocks of 16 to 600 bytes and frees a random half of them.
fn fragment_heap() -> Vec<Box<[u8]>> {
    let mut seed = 1_u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize % below
    };
    let mut blocks: Vec<Box<[u8]>> =
        (0..1_000_000).map(|_| vec![1; 16 + random(584)].into()).collect();
    for index in (1..blocks.len()).rev() {
        blocks.swap(index, random(index + 1));
    }
    blocks.truncate(blocks.len() / 2);
    blocks
}

fn row(name: &str, value: f64, goal: f64) {
    let verdict = if value <= goal { "pass" } else { "short" };
    println!("{name:48} {value:9.3} {goal:9.2} {verdict}");
}

/// A writer that only counts bytes.
struct Counting(u64);

impl Write for Counting {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0 += bytes.len() as u64;
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
