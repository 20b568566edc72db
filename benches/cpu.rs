//! Accuracy and cost of CPU profiles, for each engine and for the `pprof` crate alone.
//!
//! `cargo bench --features pprof --bench cpu` runs all parts; `-- --quick` takes a few minutes; `--
//! samples agreement` runs these two parts only. The parts are listed in `PARTS`.
//!
//! Each row has a name, a value, a goal, and `pass` or `short`. Each cell runs in a separate
//! process, because SIGPROF is process-wide and an engine leaves state behind in its process. A
//! cell that hangs is killed, and its rows report that. Cells of different engines are interleaved,
//! so that load from other processes affects all of them.
//!
//! - `samples obtained`: periods that the samples of the busy threads stand for, divided by the
//!   periods in their CPU clocks (`cpu/burn.rs`).
//! - `samples obtained + lost`: periods of all samples plus those the profile reports as lost,
//!   divided by the periods in the CPU time of the process.
//! - `attribution`: the largest error of the CPU shares of three functions, in binomial standard
//!   errors of the samples taken; median of rounds.
//! - `CPU per sample outside busy threads`: CPU time of the process outside of the busy threads
//!   until the end of the session, divided by the samples. It includes the wake-ups, the start and
//!   the stop, which few samples share.
//! - `CPU of recorder per sample`: CPU time of the recording thread at 1000 Hz over two busy
//!   threads, divided by the samples; includes its wake-ups. A session without busy threads
//!   measures the wake-ups alone, which then cost more because each wakes a core.
//! - `look-back`: CPU time of the recording thread at 19 Hz, divided by wall time or by the CPU
//!   time of the busy threads.
//! - `first start`: the first start in a process with a number of idle threads, on a machine that
//!   has a perf event: wall time, and growth of the peak resident memory.
//! - `first perf event of the machine`: wall time to start a look-back on a machine without any
//!   perf event.
//! - `threads of 35 ms`: samples of a blocking thread, divided by the periods it ran, with and
//!   without [thread-start notifications](marple::trace::Hooks::notify_thread_starts).
//! - `signal handler`: CPU time of a SIGPROF that a thread raises for itself 20 calls deep, minus
//!   that of an empty handler.
//! - `difference from perf record`: root mean square difference from the shares of `perf record` in
//!   the same run, over the 12 most sampled functions, in standard errors.
//! - `throughput`: work per second of process CPU time with the engine, divided by that without, in
//!   interleaved pairs; `control` has no engine on either side.

#[path = "cpu/agreement.rs"]
mod agreement;
#[path = "cpu/burn.rs"]
mod burn;
#[path = "cpu/cell.rs"]
mod cell;
#[path = "../tests/support/drive.rs"]
mod drive;
#[path = "cpu/handler.rs"]
mod handler;
#[path = "cpu/recorder_cost.rs"]
mod recorder_cost;
#[path = "cpu/short_threads.rs"]
mod short_threads;
#[path = "cpu/table.rs"]
mod table;
#[path = "cpu/throughput.rs"]
mod throughput;

use std::time::{Duration, Instant};

use cell::{CellValues, measure};
use drive::Engine;
use marple::internals::base::Hertz;
use marple::internals::cpu::Lookback;
use marple::internals::cpu::options::Options;
use marple::internals::model::CpuEngine;
use recorder_cost::LOOKBACK_HZ;
use table::{Goal, median, row};

/// Engines with rows of their results.
const ENGINES: [Engine; 4] = [Engine::Perf, Engine::Timer, Engine::Pprof, Engine::Peer];

/// Duration and number of the measurements.
struct Plan {
    burn: Duration,
    rates: &'static [u32],
    threads: &'static [usize],
    rounds: usize,
    pairs: usize,
    recorder_span: Duration,
}

const FULL: Plan = Plan {
    burn: Duration::from_millis(2500),
    rates: &[99, 500, 1000],
    threads: &[1, 2, 8, 32, 256],
    rounds: 7,
    pairs: 11,
    recorder_span: Duration::from_secs(5),
};

const QUICK: Plan = Plan {
    burn: Duration::from_millis(800),
    rates: &[99, 1000],
    threads: &[2, 32],
    rounds: 3,
    pairs: 7,
    recorder_span: Duration::from_secs(2),
};

fn main() {
    let args: Vec<String> = std::env::args().collect();
    if let Some(cell) = args.iter().position(|arg| arg == "cell") {
        return cell::run(&args[cell + 1..]);
    }
    // `cargo test --all-targets` runs benches too; only `cargo bench` passes `--bench`.
    if !args.iter().any(|arg| arg == "--bench") {
        return;
    }
    let plan = if args.iter().any(|arg| arg == "--quick") { QUICK } else { FULL };
    for engine in ENGINES {
        if let Err(why) = measure(&["start", engine.name(), "0"]) {
            println!("{engine}: does not run here: {why}");
        }
    }
    let selected: Vec<&Part> =
        PARTS.iter().filter(|(name, _)| args.iter().any(|arg| arg == name)).collect();
    let parts = if selected.is_empty() { PARTS.iter().collect() } else { selected };
    parts.into_iter().for_each(|(_, part)| part(&plan));
}

type Part = (&'static str, fn(&Plan));

/// All parts in the order they run; naming some on the command line runs only those.
const PARTS: [Part; 9] = [
    ("samples", samples_obtained),
    ("busy-cores", samples_obtained_on_busy_cores),
    ("attribution", attribution),
    ("start", start),
    ("recorder-cost", recorder_cost),
    ("short-threads", |_| short_threads()),
    ("handlers", |_| handlers()),
    ("throughput", throughput),
    ("agreement", agreement),
];

fn samples_obtained(plan: &Plan) {
    for &hertz in plan.rates {
        for &threads in plan.threads {
            for engine in ENGINES {
                let name = format!("{engine}: {hertz} Hz, {threads} threads");
                print_sample_rows(&name, &measure_burning(engine, hertz, threads, plan.burn));
            }
        }
    }
}

/// Repeats [`samples_obtained`] while two processes per core compete for CPU time.
fn samples_obtained_on_busy_cores(plan: &Plan) {
    let load = BackgroundLoad::new(2 * std::thread::available_parallelism().map_or(2, Into::into));
    for threads in [8, 32] {
        for engine in ENGINES {
            let name = format!("{engine}: 99 Hz, {threads} threads, busy cores");
            print_sample_rows(&name, &measure_burning(engine, 99, threads, plan.burn));
        }
    }
    drop(load);
}

fn measure_burning(
    engine: Engine,
    hertz: u32,
    threads: usize,
    time: Duration,
) -> Result<CellValues, String> {
    let (hertz, threads) = (hertz.to_string(), threads.to_string());
    let millis = time.as_millis().to_string();
    measure(&["burn", engine.name(), &hertz, &threads, &millis])
}

fn print_sample_rows(name: &str, measured: &Result<CellValues, String>) {
    match measured {
        Ok(measured) => {
            let obtained = measured.get("obtained");
            // With few periods per thread, more of a thread's time lies before its first sample.
            let of = format!("of {:.0}", measured.get("periods"));
            row(&format!("{name}: samples obtained"), obtained, &of, Goal::AtLeast(0.97));
            let accounted = measured.get("accounted");
            let name = format!("{name}: samples obtained + lost");
            row(&name, accounted, "", Goal::Near(1.0, 0.01));
        }
        Err(why) => println!("{name}: short: {why}"),
    }
}

fn attribution(plan: &Plan) {
    for hertz in [99, 1000] {
        let mut rounds: [Vec<CellValues>; ENGINES.len()] = Default::default();
        for _ in 0..plan.rounds {
            for (engine, rounds) in ENGINES.into_iter().zip(&mut rounds) {
                rounds.extend(measure_burning(engine, hertz, 8, plan.burn));
            }
        }
        for (engine, rounds) in ENGINES.into_iter().zip(&rounds) {
            let name = format!("{engine}: {hertz} Hz, 8 threads");
            let of = |key| median(rounds.iter().map(|measured| measured.get(key)));
            row(&format!("{name}: attribution"), of("errors"), "s.e.", Goal::AtMost(2.0));
            row(&format!("{name}: attribution, in points"), of("points"), "", Goal::None);
            row(&format!("{name}: samples taken"), of("samples"), "", Goal::None);
            row(&format!("{name}: complete stacks"), of("complete"), "", Goal::AtLeast(0.99));
            let name = format!("{name}: CPU per sample outside busy threads");
            row(&name, of("outside"), "us", Goal::None);
        }
    }
}

/// The kernel synchronizes with all cores before the first perf event of the machine, and again
/// once there was no event for a second. Such starts have their own row. The other starts run
/// beside an event, like captures beside a look-back.
fn start(plan: &Plan) {
    let options = Options {
        engine: CpuEngine::Perf,
        lookback_frequency: Hertz(LOOKBACK_HZ),
        ..Options::default()
    };
    let firsts = (0..plan.rounds).map(|_| {
        std::thread::sleep(Duration::from_millis(1500));
        let started_at = Instant::now();
        Lookback::start(&options).map(|_| started_at.elapsed().as_secs_f64() * 1e3)
    });
    let firsts: Result<Vec<f64>, _> = firsts.collect();
    match firsts {
        Ok(firsts) => {
            row(
                "perf: first perf event of the machine",
                median(firsts.into_iter()),
                "ms",
                Goal::None,
            );
        }
        Err(why) => println!("perf: first perf event of the machine: not measured: {why}"),
    }
    let _event = Lookback::start(&options);
    starts(plan, 0);
    starts(plan, 200);
}

fn starts(plan: &Plan, threads: usize) {
    let mut rounds: [Vec<CellValues>; ENGINES.len()] = Default::default();
    for _ in 0..plan.rounds {
        for (engine, rounds) in ENGINES.into_iter().zip(&mut rounds) {
            rounds.extend(measure(&["start", engine.name(), &threads.to_string()]));
        }
    }
    for (engine, rounds) in ENGINES.into_iter().zip(&rounds) {
        let of = |key| median(rounds.iter().map(|measured| measured.get(key)));
        let name = format!("{engine}: {threads} idle threads");
        row(&format!("{name}: first start"), of("millis"), "ms", Goal::AtMost(10.0));
        row(&format!("{name}: first start, memory"), of("mib"), "MiB", Goal::AtMost(4.0));
        row(&format!("{name}: second start"), of("second"), "ms", Goal::None);
        row(&format!("{name}: first stop"), of("stop"), "ms", Goal::None);
    }
}

/// Measures the recording thread before a capture and during one.
fn recorder_cost(plan: &Plan) {
    let millis = plan.recorder_span.as_millis().to_string();
    let engines = [Engine::Perf, Engine::Timer];
    for (idle, busy) in [(0, 0), (200, 0), (0, 2), (200, 2)] {
        for engine in engines {
            let name = format!("{engine}: look-back, {idle} idle, {busy} busy threads");
            let (idle, busy) = (idle.to_string(), busy.to_string());
            match measure(&["lookback", engine.name(), &idle, &busy, &millis]) {
                Ok(measured) => {
                    row(&name, measured.get("percent"), "% of a core", Goal::AtMost(0.1))
                }
                Err(why) => println!("{name}: short: {why}"),
            }
        }
    }
    for engine in engines {
        let name = format!("{engine}: CPU of recorder per sample, 20 deep");
        match measure(&["sample", engine.name(), &millis]) {
            Ok(measured) => {
                row(&name, measured.get("sample"), "us", Goal::AtMost(5.0));
                let name = format!("{engine}: CPU of recorder per second without samples");
                row(&name, measured.get("wake-ups"), "us", Goal::None);
            }
            Err(why) => println!("{name}: short: {why}"),
        }
    }
}

fn short_threads() {
    for engine in [Engine::Perf, Engine::Timer] {
        match measure(&["short-threads", engine.name()]) {
            Ok(measured) => {
                let name = format!("{engine}: 99 Hz, threads of 35 ms");
                for kind in ["not notified", "notified"] {
                    let obtained = measured.get(&kind.replace(' ', "-"));
                    let name = format!("{name}, {kind}: samples obtained");
                    row(&name, obtained, "of 1", Goal::None);
                }
            }
            Err(why) => println!("{engine}: threads of 35 ms: short: {why}"),
        }
    }
}

fn handlers() {
    for engine in ENGINES {
        match measure(&["handler", engine.name()]) {
            Ok(measured) => {
                let name = format!("{engine}: signal handler");
                row(&name, measured.get("micros"), "us", Goal::AtMost(2.0));
            }
            Err(why) => println!("{engine}: signal handler: short: {why}"),
        }
    }
}

fn throughput(plan: &Plan) {
    let pairs = plan.pairs.to_string();
    let of = |engine: Engine| measure(&["throughput", engine.name(), &pairs]);
    let control = match of(Engine::Control) {
        Ok(control) => control,
        Err(why) => return println!("control: throughput at 99 Hz: short: {why}"),
    };
    row("control: throughput at 99 Hz", control.get("median"), "", Goal::None);
    row("control: throughput at 99 Hz, lower quartile", control.get("low"), "", Goal::None);
    for engine in ENGINES {
        match of(engine) {
            Ok(measured) => {
                let name = format!("{engine}: throughput at 99 Hz");
                row(&name, measured.get("median"), "", Goal::AtLeast(control.get("low")));
            }
            Err(why) => println!("{engine}: throughput at 99 Hz: short: {why}"),
        }
    }
}

fn agreement(plan: &Plan) {
    for engine in [Engine::Perf, Engine::Timer] {
        let name = format!("{engine}: difference from perf record");
        match agreement::compare_with_perf_record(engine, 2 * plan.burn.as_millis() as u64) {
            Ok((errors, points)) => {
                row(&name, errors, "s.e.", Goal::AtMost(1.5));
                row(&format!("{name}, largest in points"), points, "", Goal::None);
            }
            Err(why) => println!("{name}: not measured: {why}"),
        }
    }
}

/// Processes that compete for CPU time until this value is dropped.
struct BackgroundLoad(Vec<std::process::Child>);

impl BackgroundLoad {
    fn new(number: usize) -> Self {
        Self((0..number).map(|_| cell::spawn(&["spin"])).collect())
    }
}

impl Drop for BackgroundLoad {
    fn drop(&mut self) {
        for child in &mut self.0 {
            let _ = child.kill();
            let _ = child.wait();
        }
    }
}
