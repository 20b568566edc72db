//! What recording polls costs: CPU time per operation, as a ratio to the same runtime without
//! marple.
//!
//! `cargo bench --bench trace` measures the wrapper on stable tokio, and `RUSTFLAGS="--cfg
//! tokio_unstable" cargo bench --bench trace` tokio's hooks. Rounds are interleaved, each ratio is
//! to the plain run of its own round, and the median of the rounds is shown. `control` is the plain
//! run against itself: what it differs from 1 by is noise. With hooks, `hooks that do nothing` is
//! what tokio itself takes for calling some: it counts a reference to the one for a task's end in
//! each task, which all workers write to.
//!
//! The first rows are what a trace of the recorded polls costs to write, and how long it gets. They
//! come first because a ring stays for as long as the window with a thread that has ended: behind
//! dozens of runtimes only small rings are left, and a trace of a few thousand events is measured
//! by what any trace costs. `holes` is the same in a process that has filled 300 MB and freed a
//! random half of it.
//!
//! `-- --quick` takes a third of the rounds. `-- NAME ..` takes the workloads whose names begin so,
//! and `file` the first rows alone. `-- --once plain|off|recording NAME OPERATIONS` runs one
//! workload once and prints nothing, for `valgrind --tool=callgrind`: the instructions of an
//! operation are the difference of two runs.

#[path = "trace/workloads.rs"]
mod workloads;

use std::io::{self, Write};
use std::thread;
use std::time::Duration;

use marple::base::{Bytes, Clock, SystemClock};
use marple::codec::perfetto;
use marple::instrument;
use marple::model::TraceMode;
use marple::trace::{Session, configure};
use tokio::runtime::Runtime;
use workloads::{Spawn, WORKLOADS, builder, cpu_time, median};

const ROUNDS: usize = 9;
const MAX_BYTES: Bytes = Bytes::mib(16);
const WINDOW: Duration = Duration::from_secs(30);
const HOOKS: bool = cfg!(tokio_unstable);

/// By workload: recording over plain, with hooks and with the wrapper.
const GOALS: [(f64, f64); 4] = [(1.10, 1.10), (1.18, 1.28), (1.02, 1.02), (1.02, 1.02)];

fn main() {
    let args: Vec<String> = std::env::args().skip(1).filter(|arg| arg != "--bench").collect();
    if let [once, how, name, operations] = &args[..]
        && once == "--once"
    {
        return once_only(how, name, operations.parse().expect("a number"));
    }
    let rounds = if args.iter().any(|arg| arg == "--quick") { ROUNDS / 3 } else { ROUNDS };
    let wanted = |name: &str| {
        let mut names = args.iter().filter(|arg| !arg.starts_with("--")).peekable();
        names.peek().is_none() || names.any(|wanted| name.starts_with(&**wanted))
    };
    let source = if HOOKS { "hooks" } else { "wrapper" };
    println!("{rounds} rounds, CPU time over plain tokio, 2 workers, {source}");
    println!("{:44} {:>9} {:>9}", "", "value", "goal");
    if wanted("file") {
        files(source, rounds);
    }
    for (workload, goals) in WORKLOADS.iter().zip(GOALS).filter(|(it, _)| wanted(it.name)) {
        let plain = || builder().build().expect("a runtime");
        let watched = || instrument(&mut builder()).build().expect("a runtime");
        let spawn = if HOOKS { Spawn::Plain } else { Spawn::Wrapped };
        let (mut plains, mut ratios) = (Vec::new(), [(); 5].map(|()| Vec::new()));
        for round in 0..=rounds {
            let off = || {
                configure(TraceMode::OnDemand, MAX_BYTES, WINDOW);
                workload.run(&watched(), spawn)
            };
            let on = || {
                configure(TraceMode::Always, MAX_BYTES, WINDOW);
                let nanos = workload.run(&watched(), spawn);
                configure(TraceMode::OnDemand, MAX_BYTES, WINDOW);
                nanos
            };
            let base = workload.run(&plain(), Spawn::Plain);
            let control = workload.run(&plain(), Spawn::Plain);
            let clock = workload.run(&plain(), Spawn::Clocked);
            let hollow = workload.run(&hollow(), Spawn::Plain);
            let runs = [control, clock, hollow, off(), on()];
            if round > 0 {
                plains.push(base);
                for (ratios, nanos) in ratios.iter_mut().zip(runs) {
                    ratios.push(nanos / base);
                }
            }
        }
        let name = workload.name;
        println!("{:44} {:7.0} ns", format!("{name}: plain"), median(plains));
        let [control, clock, hollow, off, on] = ratios.map(median);
        println!("{:44} {control:9.3}", format!("{name}: control over plain"));
        println!("{:44} {clock:9.3}", format!("{name}: the clock alone, twice a poll"));
        if HOOKS {
            println!("{:44} {hollow:9.3}", format!("{name}: hooks that do nothing"));
        }
        println!("{:44} {off:9.3}", format!("{name}: {source}, off"));
        let goal = if HOOKS { goals.0 } else { goals.1 };
        row(&format!("{name}: {source}, recording"), on, goal);
    }
}

/// A runtime with as many hooks as marple has, which do nothing.
fn hollow() -> Runtime {
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

fn once_only(how: &str, name: &str, operations: u32) {
    let (runtime, spawn) = match how {
        "plain" => (builder().build(), Spawn::Plain),
        _ => {
            (instrument(&mut builder()).build(), if HOOKS { Spawn::Plain } else { Spawn::Wrapped })
        }
    };
    let mode = if how == "recording" { TraceMode::Always } else { TraceMode::OnDemand };
    configure(mode, MAX_BYTES, WINDOW);
    let workload = WORKLOADS.iter().find(|workload| workload.name.starts_with(name));
    workload.expect("a workload").run_once(&runtime.expect("a runtime"), spawn, operations);
}

/// What a trace of a full set of rings costs.
fn files(source: &str, rounds: usize) {
    configure(TraceMode::Always, MAX_BYTES, WINDOW);
    let runtime = instrument(&mut builder()).build().expect("a runtime");
    let whole: Vec<File> = (0..rounds).map(|_| file(&runtime, || ())).collect();
    let holed: Vec<File> = (0..rounds).map(|_| file(&runtime, holes)).collect();
    configure(TraceMode::OnDemand, MAX_BYTES, WINDOW);
    let middle =
        |files: &[File], value: fn(&File) -> f64| median(files.iter().map(value).collect());
    println!("{:44} {:9.0}", "file: events", middle(&whole, |file| file.events));
    println!(
        "{:44} {:9.3}",
        "file: ns to take an event from the rings",
        middle(&whole, |file| file.taking)
    );
    row(&format!("file: ns of CPU an event, {source}"), middle(&whole, |file| file.cost), 100.0);
    println!("{:44} {:9.3}", "file: ns of CPU an event, holes", middle(&holed, |file| file.cost));
    row(&format!("file: gzip'd bytes an event, {source}"), middle(&whole, |file| file.size), 8.0);
}

/// A trace's events, and for each of them the nanoseconds to take it from the rings, those and the
/// ones to write it, and its bytes.
struct File {
    events: f64,
    taking: f64,
    cost: f64,
    size: f64,
}

/// Records, and writes in a process whose heap `heap` has been at; what that returns is freed
/// afterwards. As the agent does, on a thread of its own: what other threads freed is mostly not in
/// its allocator's way.
fn file<T>(runtime: &Runtime, heap: fn() -> T) -> File {
    let spawn = if HOOKS { Spawn::Plain } else { Spawn::Wrapped };
    for workload in &WORKLOADS {
        workload.run(runtime, spawn);
    }
    let held = heap();
    let file = thread::spawn(|| {
        let session = Session::start(MAX_BYTES, SystemClock.anchor()).expect("no other session");
        let before = cpu_time();
        let timeline = session.stop(SystemClock.now());
        let stopped = cpu_time();
        let mut size = Counting(0);
        perfetto::write(&timeline, &mut size).expect("nothing to fail");
        let written = cpu_time();
        let activity = &timeline.activity;
        let slices = activity.threads.iter().map(|thread| thread.slices.len()).sum::<usize>();
        let events = (slices + activity.tasks.len()) as f64;
        let [taking, cost] = [stopped, written].map(|until| (until - before) / events);
        File { events, taking, cost, size: size.0 as f64 / events }
    });
    let file = file.join().expect("no panic");
    drop(held);
    file
}

/// Blocks of 16 to 600 bytes, every other one that was asked for at random freed.
fn holes() -> Vec<Box<[u8]>> {
    let mut seed = 1_u64;
    let mut random = |below: usize| {
        seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
        (seed >> 33) as usize % below
    };
    let mut blocks: Vec<Box<[u8]>> =
        (0..1_000_000).map(|_| vec![1; 16 + random(584)].into()).collect();
    for place in (1..blocks.len()).rev() {
        blocks.swap(place, random(place + 1));
    }
    blocks.truncate(blocks.len() / 2);
    blocks
}

fn row(name: &str, value: f64, goal: f64) {
    let verdict = if value <= goal { "pass" } else { "short" };
    println!("{name:44} {value:9.3} {goal:9.2} {verdict}");
}

/// Counts what is written.
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
