//! A cell of the table: a process that takes one measurement and prints `name value` lines.

use std::collections::HashMap;
use std::io::Read;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use rustix::time::ClockId;

use crate::births;
use crate::burn::{self, Burnt, FUNCTIONS, THREAD, cpu_of};
use crate::drive::{Engine, Report, Running};
use crate::turns::{self, Idle};
use crate::{agreement, handler, throughput};

/// Time after which a cell counts as hung; no working cell takes that long.
const PATIENCE: Duration = Duration::from_secs(90);

/// Values of a cell, in printing order.
pub(crate) struct Measured(Vec<(String, f64)>);

impl Measured {
    pub(crate) fn of(said: &str) -> Self {
        let value = |line: &str| {
            let (name, value) = line.split_once(' ')?;
            Some((name.to_owned(), value.parse().ok()?))
        };
        Self(said.lines().filter_map(value).collect())
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
    let this = std::env::current_exe().expect("this program has a path");
    let mut command = Command::new(this);
    command.arg("cell").args(cell).stdout(Stdio::piped()).stderr(Stdio::piped());
    command.spawn().expect("this program can be run")
}

/// Runs a cell; the error is the reason if it has no values.
pub(crate) fn measure(cell: &[&str]) -> Result<Measured, String> {
    let mut child = spawn(cell);
    let start = Instant::now();
    // The output fits into a pipe buffer, so it need not be read before the process ends.
    let status = loop {
        match child.try_wait() {
            Ok(Some(status)) => break status,
            Ok(None) if start.elapsed() < PATIENCE => std::thread::sleep(Duration::from_millis(5)),
            _ => {
                let _ = child.kill();
                let _ = child.wait();
                return Err(format!("hung, and was killed after {PATIENCE:?}"));
            }
        }
    };
    let (mut said, mut complaint) = (String::new(), String::new());
    let _ = child.stdout.take().map(|mut pipe| pipe.read_to_string(&mut said));
    let _ = child.stderr.take().map(|mut pipe| pipe.read_to_string(&mut complaint));
    if !status.success() {
        return Err(format!("{status}: {}", complaint.trim()));
    }
    Ok(Measured::of(&said))
}

/// Runs the cell that `args` describe, in this process.
pub(crate) fn run(args: &[String]) {
    let args: Vec<&str> = args.iter().map(String::as_str).collect();
    let done = match args[..] {
        ["neighbour"] => loop {
            std::hint::spin_loop();
        },
        ["burn", engine, hertz, threads, millis] => match (hertz.parse(), threads.parse()) {
            (Ok(hertz), Ok(threads)) => {
                let time = Duration::from_millis(millis.parse().unwrap_or(1000));
                burn_cell(of(engine), hertz, threads, time)
            }
            _ => Err(format!("not a cell: {args:?}")),
        },
        ["third", engine, millis] => {
            agreement::cell(of(engine), Duration::from_millis(millis.parse().unwrap_or(1000)))
        }
        ["start", engine, threads] => start_cell(of(engine), threads.parse().unwrap_or(0)),
        ["lookback", engine, idle, busy, millis] => {
            let number = |text: &str| text.parse().unwrap_or(0);
            let time = Duration::from_millis(millis.parse().unwrap_or(1000));
            turns::lookback(of(engine), number(idle), number(busy), time)
        }
        ["sample", engine, millis] => {
            turns::sample(of(engine), Duration::from_millis(millis.parse().unwrap_or(1000)))
        }
        ["births", engine] => births::cell(of(engine)),
        ["handler", engine] => handler::cell(of(engine)),
        ["throughput", engine, pairs] => throughput::cell(of(engine), pairs.parse().unwrap_or(7)),
        _ => Err(format!("not a cell: {args:?}")),
    };
    if let Err(why) = done {
        eprintln!("{why}");
        std::process::exit(1);
    }
}

fn of(name: &str) -> Engine {
    Engine::of(name).unwrap_or_else(|| panic!("no engine is called {name}"))
}

fn burn_cell(engine: Engine, hertz: u32, threads: usize, time: Duration) -> Result<(), String> {
    // The first start in a process includes one-time work, so it is not measured.
    drop(engine.start(hertz)?);
    let start = || {
        let before = cpu_of(ClockId::ProcessCPUTime);
        let running = engine.start(hertz);
        (running, before, cpu_of(ClockId::ProcessCPUTime))
    };
    let stop = |(running, before, started): (Result<Running, String>, f64, f64), burnt: Burnt| {
        let sampled = cpu_of(ClockId::ProcessCPUTime) - started;
        let recorded = running.and_then(Running::stop);
        let whole = cpu_of(ClockId::ProcessCPUTime) - before;
        (recorded, Spent { burnt, sampled, whole })
    };
    let (recorded, spent) = burn::during(threads, time, start, stop);
    let report = recorded?.named(hertz);
    if std::env::var_os("MARPLE_BENCH_SAY").is_some() {
        eprintln!("{:#?}", report);
    }
    tell_of_burning(&report, hertz, &spent);
    Ok(())
}

struct Spent {
    /// CPU seconds of the burning threads in each function.
    burnt: Burnt,
    /// CPU seconds of the process while it was sampled.
    sampled: f64,
    /// CPU seconds of the process, including start and stop.
    whole: f64,
}

fn tell_of_burning(report: &Report, hertz: u32, spent: &Spent) {
    let burnt = spent.burnt;
    let total: f64 = burnt.iter().sum();
    let periods = total * f64::from(hertz);
    let (mut weights, mut attributed, mut samples) = ([0.0; 3], 0, 0);
    let mut weight = 0.0;
    for seen in report.seen.iter().filter(|seen| seen.thread == THREAD) {
        weight += seen.weight;
        samples += seen.samples;
        let under = |mark: &&str| seen.functions.iter().any(|name| is_called(name, mark));
        if let Some(which) = FUNCTIONS.iter().position(under) {
            weights[which] += seen.weight;
            attributed += seen.samples;
        }
    }
    let attributed_weight: f64 = weights.iter().sum();
    let errors = weights.iter().zip(burnt).map(|(&weight, burnt)| {
        let (share, truth) = (weight / attributed_weight, burnt / total);
        let points = (share - truth).abs();
        (points, points / (truth * (1.0 - truth) / attributed as f64).sqrt())
    });
    // `f64::max` would ignore a NaN error.
    let worst = errors.fold((0.0, 0.0), |worst: (f64, f64), error| {
        (larger(worst.0, error.0), larger(worst.1, error.1))
    });
    println!("got {}", weight / periods);
    println!("periods {periods}");
    // Losses are not known by thread, so this covers the whole process.
    let all: f64 = report.seen.iter().map(|seen| seen.weight).sum();
    let accounted = (all + report.lost) / (spent.sampled * f64::from(hertz));
    println!("accounted {accounted}");
    println!("points {}", worst.0 * 100.0);
    println!("errors {}", worst.1);
    println!("samples {samples}");
    println!("outside {}", (spent.whole - total) * 1e6 / samples as f64);
    let is_whole = |functions: &[String]| {
        let deep = functions.iter().filter(|name| is_called(name, "deepen")).count();
        deep == burn::DEPTH as usize + 1
    };
    let whole = report.seen.iter().filter(|seen| seen.thread == THREAD);
    let whole: u64 = whole.filter(|seen| is_whole(&seen.functions)).map(|seen| seen.samples).sum();
    println!("whole {}", whole as f64 / samples as f64);
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
    let _idle = Idle::new(threads);
    let before = resident("VmRSS:");
    let start = Instant::now();
    let running = engine.start(99)?;
    println!("millis {}", start.elapsed().as_secs_f64() * 1e3);
    println!("mib {}", resident("VmHWM:") - before);
    burn::during(2, Duration::from_millis(100), || (), |(), _| ());
    let start = Instant::now();
    let recorded = running.stop()?;
    println!("stop {}", start.elapsed().as_secs_f64() * 1e3);
    drop(recorded);
    let start = Instant::now();
    let running = engine.start(99)?;
    println!("again {}", start.elapsed().as_secs_f64() * 1e3);
    drop(running);
    Ok(())
}

/// Returns resident MiB of this process: current or peak, depending on `field`.
fn resident(field: &str) -> f64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap_or_default();
    let line = status.lines().find_map(|line| line.strip_prefix(field));
    let kib = line.and_then(|line| line.trim().strip_suffix("kB")?.trim().parse::<f64>().ok());
    kib.map_or(f64::NAN, |kib| kib / 1024.0)
}
