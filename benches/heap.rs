//! Cost of heap profiles, compared with the bare allocators and with other profilers.
//!
//! `cargo bench --bench heap` builds the programs of `benches/heap_peers` and prints one row per
//! measure: name, value, goal, `pass` or `short`. `-- --quick` takes a minute. Each program has one
//! allocator and no switch in any hot path. jemalloc is built twice, with and without its profiler.
//! The build needs a C compiler, and instruction counts need valgrind.
//!
//! A row `WORKLOAD: A over B` names a workload and two programs of `benches/heap_peers`.
//! `overhead, A over B` is `(A - 1) / (B - 1)` of their ratios to the bare allocator.
//!
//! A ratio compares the CPU time of two programs for one workload; the row is the median of many
//! pairs. The programs of a pair run one right after the other and alternate in going first. Each
//! round measures all rows and restarts all programs, because the layout of a heap changes the time
//! by a few per cent. `control` compares a program with another run of itself and shows the noise
//! of the machine.
//!
//! The longest pause of another thread during a dump is the minimum over all runs: other work on
//! the machine lengthens it occasionally, the dump in every run. Its control is the same thread for
//! the same time without a dump.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

/// Number of rounds and of dumps.
struct Plan {
    rounds: usize,
    dumps: usize,
}

/// Takes about five minutes plus the build.
const FULL: Plan = Plan { rounds: 21, dumps: 7 };
const QUICK: Plan = Plan { rounds: 3, dumps: 1 };

/// Pairs per row and round.
const PAIRS: usize = 3;

/// Settings of jemalloc's profiler: the default sampling interval of 512 KiB, and every block.
const EVERY_512_KIB: &str = "prof:true,lg_prof_sample:19";
const EVERY_BLOCK: &str = "prof:true,lg_prof_sample:0";

/// Workload, measured program, reference program, and goal of their ratio.
const RATIOS: &[(&str, &str, &str, Option<f64>)] = &[
    ("json", "system", "system", None),
    ("json", "marple_off", "system", Some(1.04)),
    ("json", "marple_system", "system", Some(1.05)),
    ("json", "marple_jemalloc", "jemalloc", Some(1.05)),
    ("json", "marple_mimalloc", "mimalloc", Some(1.05)),
    ("json", "pprof_alloc", "system", None),
    ("json", "marple_jemalloc", "jemalloc_profiler", Some(1.02)),
    ("batch", "system", "system", None),
    ("batch", "marple_system", "system", Some(1.20)),
    ("batch", "pprof_alloc", "system", None),
    ("batch on 2 threads", "system", "system", None),
    ("batch on 2 threads", "marple_system", "system", Some(1.15)),
    ("batch on 2 threads", "jemalloc", "jemalloc", None),
    ("batch on 2 threads", "marple_jemalloc", "jemalloc_profiler", Some(1.02)),
    ("hash map", "system", "system", None),
    ("hash map", "marple_system", "system", None),
    ("hash map", "marple_jemalloc", "jemalloc", None),
    ("hash map", "marple_jemalloc", "jemalloc_profiler", Some(1.02)),
    ("alloc and free", "marple_system", "system", None),
    ("alloc and free", "pprof_alloc", "system", None),
    ("small Vec", "marple_system", "system", None),
    ("spawn and format", "marple_system", "system", None),
];

fn main() {
    let plan = if std::env::args().any(|argument| argument == "--quick") { QUICK } else { FULL };
    let programs = build();
    let measured = measure_ratios(&programs, plan.rounds);
    let mut marple_json = 1.0;
    let mut pprof_alloc_json = 1.0;
    for (&(workload, of, over, goal), mut values) in RATIOS.iter().zip(measured) {
        values.sort_by(f64::total_cmp);
        let [lower, median, upper] = [1, 2, 3].map(|quarter| values[values.len() * quarter / 4]);
        let control = if of == over { ", control" } else { "" };
        let name = format!("{workload}: {of} over {over}{control}");
        row(&format!("{name} (quartiles {lower:.3}, {upper:.3})"), median, goal);
        match (workload, of, over) {
            ("json", "marple_system", _) => marple_json = median,
            ("json", "pprof_alloc", _) => pprof_alloc_json = median,
            _ => {}
        }
    }
    let ratio = (marple_json - 1.0) / (pprof_alloc_json - 1.0);
    row("json: overhead, marple_system over pprof_alloc", ratio, Some(0.15));
    measure_dumps(&programs, plan.dumps);
    if Command::new("valgrind").arg("--version").output().is_err() {
        return println!("instructions: skipped, valgrind is not installed");
    }
    let workload = "alloc and free";
    let count =
        |program| instructions_per_workload(&programs, program, workload, [100_000, 300_000]);
    let system = count("system");
    row(&format!("{workload}: instructions, system"), system, None);
    for (program, goal) in [("marple_system", Some(28.0)), ("pprof_alloc", None)] {
        let added = count(program) - system;
        row(&format!("{workload}: instructions added by {program}"), added, goal);
    }
    let count = |program| instructions_per_workload(&programs, program, "json", [1, 5]);
    let system = count("system");
    for program in ["marple_off", "marple_system", "pprof_alloc"] {
        let ratio = count(program) / system;
        row(&format!("json: instructions, {program} over system"), ratio, None);
    }
}

fn row(name: &str, value: f64, goal: Option<f64>) {
    match goal {
        None => println!("{name}: {value:.3}"),
        Some(goal) if value <= goal => println!("{name}: {value:.3}, goal {goal:.2}, pass"),
        Some(goal) => println!("{name}: {value:.3}, goal {goal:.2}, short"),
    }
}

/// Builds the programs and returns their directory.
fn build() -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/heap_peers");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target/tmp");
    let cargo = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO"));
        // Not `--locked`: the lock file is updated for marple's own dependencies only by this
        // build.
        command.args(["build", "--release", "--quiet"]).args(arguments);
        let built = command.current_dir(&package).env("CARGO_TARGET_DIR", target).status();
        assert!(built.expect("cargo").success(), "cargo build {arguments:?} in {package:?}");
    };
    // Built first and separately: jemalloc with its profiler compiled in costs more in every
    // program.
    cargo(&["--features", "profiling", "--bin", "jemalloc_profiler", "--bin", "jemalloc_dump"]);
    cargo(&[]);
    target.join("release")
}

/// A running program of `benches/heap_peers`, which reads names of workloads from stdin.
struct Program {
    child: Child,
    stdin: ChildStdin,
    stdout: BufReader<ChildStdout>,
}

impl Program {
    fn start(programs: &Path, name: &str) -> Self {
        let mut command = Command::new(programs.join(name));
        // By default glibc may return the top of its heap to the kernel and request it again,
        // depending on the position of the last block. That costs up to a third of a workload's
        // time at random.
        for threshold in ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"] {
            command.env(threshold, (1 << 30).to_string());
        }
        match name {
            "jemalloc_profiler" => drop(command.env("_RJEM_MALLOC_CONF", EVERY_512_KIB)),
            "jemalloc_dump" => drop(command.env("_RJEM_MALLOC_CONF", EVERY_BLOCK)),
            _ => {}
        }
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a program");
        let stdin = child.stdin.take().expect("piped");
        let stdout = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, stdin, stdout }
    }

    fn run_workload(&mut self, workload: &str) -> Vec<f64> {
        writeln!(self.stdin, "{workload}").expect("an open stdin");
        let mut response = String::new();
        self.stdout.read_line(&mut response).expect("a response");
        response.split_whitespace().map(|number| number.parse().expect("a number")).collect()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Returns the ratio of each pair, by row.
fn measure_ratios(programs: &Path, rounds: usize) -> Vec<Vec<f64>> {
    let mut values = vec![Vec::new(); RATIOS.len()];
    for _ in 0..rounds {
        for (&(workload, of, over, _), values) in RATIOS.iter().zip(&mut values) {
            let mut programs_pair = [of, over].map(|name| Program::start(programs, name));
            programs_pair.iter_mut().for_each(|program| drop(program.run_workload(workload)));
            for _ in 0..PAIRS {
                let first = values.len() % 2;
                let mut cpu_time = [0.0; 2];
                cpu_time[first] = programs_pair[first].run_workload(workload)[0];
                cpu_time[1 - first] = programs_pair[1 - first].run_workload(workload)[0];
                values.push(cpu_time[0] / cpu_time[1]);
            }
        }
    }
    values
}

/// Measures the first large dump in a process, alternating between marple and jemalloc_pprof.
fn measure_dumps(programs: &Path, dumps: usize) {
    let names = ["marple_dump", "jemalloc_dump"];
    let mut responses = [const { Vec::new() }; 2];
    for _ in 0..dumps {
        for (name, responses) in names.iter().zip(&mut responses) {
            responses.push(Program::start(programs, name).run_workload("dump"));
        }
    }
    let sorted = |program: usize, field: usize| {
        let mut values: Vec<f64> =
            responses[program].iter().map(|response| response[field]).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let median = |program, field| sorted(program, field)[dumps / 2];
    let mib = |bytes: f64| bytes / f64::from(1 << 20);
    println!("dump: 100,000 blocks in 50,000 stacks, with names, {dumps} dumps each");
    for (program, name) in ["marple", "jemalloc_pprof"].into_iter().enumerate() {
        let goal = |goal| Some(goal).filter(|_| program == 0);
        row(&format!("dump, {name}: CPU time, ms"), median(program, 0) / 1e6, None);
        let growth = mib(median(program, 1));
        row(&format!("dump, {name}: growth of resident memory, MiB"), growth, goal(1.0));
        row(&format!("dump, {name}: bytes requested"), median(program, 2), goal(0.0));
        let pause = sorted(program, 3)[0] / 1e6;
        row(&format!("dump, {name}: longest pause of another thread, ms"), pause, None);
        let control = sorted(program, 4)[0] / 1e6;
        row(&format!("dump, {name}: longest pause without a dump, ms"), control, None);
    }
    row("dump: CPU time, marple over jemalloc_pprof", median(0, 0) / median(1, 0), Some(0.1));
}

/// Returns the instructions of one `workload`, counted by valgrind: `(count(many) - count(few)) /
/// (many - few)`.
fn instructions_per_workload(
    programs: &Path,
    name: &str,
    workload: &str,
    [few, many]: [u32; 2],
) -> f64 {
    let count = |number: u32| {
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(programs.join(name))
            .args([workload, &number.to_string()])
            .output()
            .expect("valgrind");
        let error_text = String::from_utf8_lossy(&output.stderr).into_owned();
        // A program that fails early also has a count.
        assert!(output.status.success(), "{name}: {}\n{error_text}", output.status);
        let total =
            error_text.split("Collected :").nth(1).and_then(|rest| rest.split_whitespace().next());
        total.and_then(|total| total.parse::<f64>().ok()).unwrap_or_else(|| panic!("{error_text}"))
    };
    (count(many) - count(few)) / f64::from(many - few)
}
