//! A cell of the table: a process that takes one measurement and prints `name value` lines.

use std::collections::HashMap;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::time::ClockId;

use crate::burn::{self, BurnedSeconds, FUNCTIONS, THREAD, cpu_seconds};
use crate::drive::{Engine, Report, Running};
use crate::recorder_cost::{self, IdleThreads};
use crate::{agreement, handler, short_threads, throughput};

/// Time after which a cell counts as hung; no working cell takes that long.
const CELL_TIMEOUT: Duration = Duration::from_secs(90);

/// Values of a cell, in printing order.
pub(crate) struct CellValues(Vec<(String, f64)>);

impl CellValues {
    pub(crate) fn parse(output: &str) -> Self {
        let value = |line: &str| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Self(output.lines().filter_map(value).collect())
    }

    /// Returns the sum of the values of each name.
    pub(crate) fn sums(&self) -> HashMap<String, f64> {
        let mut sums = HashMap::new();
        for (name, value) in &self.0 {
            *sums.entry(name.clone()).or_default() += value;
        }
        sums
    }

    /// Returns the value of `name`, or NaN if it is missing; NaN meets no goal.
    pub(crate) fn get(&self, name: &str) -> f64 {
        let value = self.0.iter().find(|(known, _)| known == name);
        value.map_or(f64::NAN, |(_, value)| *value)
    }
}

pub(crate) fn spawn(cell: &[&str]) -> Child {
    let program_path = std::env::current_exe().expect("this program has a path");
    let mut command = Command::new(program_path);
    command.arg("cell").args(cell).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("this program can be run")
}

/// Runs a cell; the error is the reason if it has no values.
pub(crate) fn measure(cell: &[&str]) -> Result<CellValues, String> {
    let mut child = spawn(cell);
    let start = Instant::now();
    // The output fits into a pipe buffer, so it need not be read before the process ends.
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if start.elapsed() < CELL_TIMEOUT => {
                std::thread::sleep(Duration::from_millis(5))
            }
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("hung, and was killed after {CELL_TIMEOUT:?}"));
            }
        }
    };
    let (mut output_text, mut error_text) = (String::new(), String::new());
    let _ = child.stdout.take().map(|mut pipe| pipe.read_to_string(&mut output_text));
    let _ = child.stderr.take().map(|mut pipe| pipe.read_to_string(&mut error_text));
    if !status.success() {
        return Err(format!("{status}: {}", error_text.trim()));
    }
    Ok(CellValues::parse(&output_text))
}

/// Runs the cell that `args` describe, in this process.
pub(crate) fn run(args: &[String]) {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let result = match args[..] {
        ["spin"] => loop {
            std::hint::spin_loop();
        },
        ["burn", engine, hertz, threads, millis] => match (hertz.parse(), threads.parse()) {
            (Ok(hertz), Ok(threads)) => {
                let time = Duration::from_millis(millis.parse().unwrap_or(1000));
                burn_cell(engine_from_name(engine), hertz, threads, time)
            }
            _ => Err(format!("not a cell: {args:?}")),
        },
        ["third-party", engine, millis] => agreement::cell(
            engine_from_name(engine),
            Duration::from_millis(millis.parse().unwrap_or(1000)),
        ),
        ["start", engine, threads] => {
            start_cell(engine_from_name(engine), threads.parse().unwrap_or(0))
        }
        ["lookback", engine, idle, busy, millis] => {
            let number = |text: &str| text.parse().unwrap_or(0);
            let time = Duration::from_millis(millis.parse().unwrap_or(1000));
            recorder_cost::lookback(engine_from_name(engine), number(idle), number(busy), time)
        }
        ["sample", engine, millis] => recorder_cost::sample(
            engine_from_name(engine),
            Duration::from_millis(millis.parse().unwrap_or(1000)),
        ),
        ["short-threads", engine] => short_threads::cell(engine_from_name(engine)),
        ["handler", engine] => handler::cell(engine_from_name(engine)),
        ["throughput", engine, pairs] => {
            throughput::cell(engine_from_name(engine), pairs.parse().unwrap_or(7))
        }
        _ => Err(format!("not a cell: {args:?}")),
    };
    if let Err(why) = result {
        eprintln!("{why}");
        std::process::exit(1);
    }
}

fn engine_from_name(name: &str) -> Engine {
    Engine::from_name(name).unwrap_or_else(|| panic!("no engine is called {name}"))
}

fn burn_cell(engine: Engine, hertz: u32, threads: usize, time: Duration) -> Result<(), String> {
    // The first start in a process includes one-time work, so it is not measured.
    drop(engine.start(hertz)?);
    let start = || {
        let before = cpu_seconds(ClockId::ProcessCPUTime);
        let running = engine.start(hertz);
        (running, before, cpu_seconds(ClockId::ProcessCPUTime))
    };
    let stop = |(running, before, started): (Result<Running, String>, f64, f64),
                burned: BurnedSeconds| {
        let sampled = cpu_seconds(ClockId::ProcessCPUTime) - started;
        let recorded = running.and_then(Running::stop);
        let total_cpu = cpu_seconds(ClockId::ProcessCPUTime) - before;
        (recorded, CpuUsage { burned, sampled, total: total_cpu })
    };
    let (recorded, spent) = burn::burn_during(threads, time, start, stop);
    let report = recorded?.symbolize(hertz);
    if std::env::var_os("MARPLE_BENCH_VERBOSE").is_some() {
        eprintln!("{:#?}", report);
    }
    print_burn_values(&report, hertz, &spent);
    Ok(())
}

struct CpuUsage {
    /// CPU seconds of the busy threads in each function.
    burned: BurnedSeconds,
    /// CPU seconds of the process while it was sampled.
    sampled: f64,
    /// CPU seconds of the process, including start and stop.
    total: f64,
}

fn print_burn_values(report: &Report, hertz: u32, spent: &CpuUsage) {
    let burned = spent.burned;
    let total: f64 = burned.iter().sum();
    let periods = total * f64::from(hertz);
    let (mut weights, mut attributed, mut samples) = ([0.0; 3], 0, 0);
    let mut weight = 0.0;
    for stack in report.stacks.iter().filter(|stack| stack.thread == THREAD) {
        weight += stack.weight;
        samples += stack.samples;
        let is_in_stack =
            |function: &&str| stack.functions.iter().any(|name| is_called(name, function));
        if let Some(which) = FUNCTIONS.iter().position(is_in_stack) {
            weights[which] += stack.weight;
            attributed += stack.samples;
        }
    }
    let attributed_weight: f64 = weights.iter().sum();
    let errors = weights.iter().zip(burned).map(|(&weight, burned)| {
        let (share, truth) = (weight / attributed_weight, burned / total);
        let points = (share - truth).abs();
        (points, points / (truth * (1.0 - truth) / attributed as f64).sqrt())
    });
    // `f64::max` would ignore a NaN error.
    let worst = errors.fold((0.0, 0.0), |worst: (f64, f64), error| {
        (larger(worst.0, error.0), larger(worst.1, error.1))
    });
    println!("obtained {}", weight / periods);
    println!("periods {periods}");
    // Losses are not known by thread, so this covers the whole process.
    let all: f64 = report.stacks.iter().map(|stack| stack.weight).sum();
    let accounted = (all + report.lost) / (spent.sampled * f64::from(hertz));
    println!("accounted {accounted}");
    println!("points {}", worst.0 * 100.0);
    println!("errors {}", worst.1);
    println!("samples {samples}");
    println!("outside {}", (spent.total - total) * 1e6 / samples as f64);
    let is_complete = |functions: &[String]| {
        let deep = functions.iter().filter(|name| is_called(name, "recurse")).count();
        deep == burn::DEPTH as usize + 1
    };
    let busy_stacks = report.stacks.iter().filter(|stack| stack.thread == THREAD);
    let complete_samples: u64 =
        busy_stacks.filter(|stack| is_complete(&stack.functions)).map(|stack| stack.samples).sum();
    println!("complete {}", complete_samples as f64 / samples as f64);
}

/// Returns the larger value, or NaN if either is NaN.
fn larger(a: f64, b: f64) -> f64 {
    if a >= b { a } else { a * 0.0 + b }
}

/// Returns `true` if `name`, with or without a path, names `function`.
fn is_called(name: &str, function: &str) -> bool {
    name.strip_suffix(function).is_some_and(|path| path.is_empty() || path.ends_with("::"))
}

fn start_cell(engine: Engine, threads: usize) -> Result<(), String> {
    let _idle = IdleThreads::new(threads);
    let before = resident_mib("VmRSS:");
    let start = Instant::now();
    let running = engine.start(99)?;
    println!("millis {}", start.elapsed().as_secs_f64() * 1e3);
    println!("mib {}", resident_mib("VmHWM:") - before);
    burn::burn_during(2, Duration::from_millis(100), || (), |(), _| ());
    let start = Instant::now();
    let recorded = running.stop()?;
    println!("stop {}", start.elapsed().as_secs_f64() * 1e3);
    drop(recorded);
    let start = Instant::now();
    let running = engine.start(99)?;
    println!("second {}", start.elapsed().as_secs_f64() * 1e3);
    drop(running);
    Ok(())
}

/// Returns resident MiB of this process: current or peak, depending on `field`.
fn resident_mib(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    kib.map_or(f64::NAN, |kib| kib / 1024.0)
}
