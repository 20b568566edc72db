//! What heap profiles cost, against the bare allocators and against the peers.
//!
//! `cargo bench --bench heap` builds the programs of `benches/heap_peers`, one allocator each and no
//! switch in any path, and prints a row for each measure: name, value, goal, `pass` or `short`. With
//! `-- profiler` also jemalloc's own profiler, for which jemalloc is built a second time; with
//! `-- instructions` also the instructions of a pair, which takes valgrind. Building needs a C compiler.
//!
//! A ratio is the median over [`PAIRS`] pairs of the CPU time two programs take for one workload, one
//! right after the other and in turn first. `control` is a program against another run of itself: what
//! the machine adds.

use std::io::{BufRead, BufReader, Write};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};

const PAIRS: usize = 11;

/// Workload, what costs, over what, and the goal.
const RATIOS: &[(&str, &str, &str, Option<f64>)] = &[
    ("json", "system", "system", None),
    ("json", "marple_off", "system", Some(1.04)),
    ("json", "marple_system", "system", Some(1.05)),
    ("json", "marple_jemalloc", "jemalloc", Some(1.05)),
    ("json", "marple_mimalloc", "mimalloc", Some(1.05)),
    ("json", "pprof_alloc", "system", None),
    ("batch", "system", "system", None),
    ("batch", "marple_system", "system", Some(1.20)),
    ("batch", "pprof_alloc", "system", None),
    ("batch2", "system", "system", None),
    ("batch2", "marple_system", "system", Some(1.15)),
    ("pairs", "marple_system", "system", None),
    ("pairs", "pprof_alloc", "system", None),
    ("vec", "marple_system", "system", None),
    ("map", "marple_system", "system", None),
    ("map", "marple_jemalloc", "jemalloc", None),
    ("tokio", "marple_system", "system", None),
];

/// The same where jemalloc's own profiler is there.
const PROFILER_RATIOS: &[(&str, &str, &str, Option<f64>)] = &[
    ("json", "marple_jemalloc", "jemalloc_profiler", Some(1.02)),
    ("map", "marple_jemalloc", "jemalloc_profiler", Some(1.02)),
    ("batch2", "marple_jemalloc", "jemalloc_profiler", Some(1.02)),
];

fn main() {
    let asked = |what: &str| std::env::args().any(|argument| argument == what);
    let programs = build(asked("profiler"));
    let mut json = [1.0; 2];
    for &(workload, of, over, goal) in RATIOS {
        let value = ratio(&programs, workload, of, over);
        let name = if of == over { format!("{of}, control") } else { format!("{of} / {over}") };
        row(&format!("{workload}: {name}"), value, goal);
        match (workload, of) {
            ("json", "marple_system") => json[0] = value,
            ("json", "pprof_alloc") => json[1] = value,
            _ => {}
        }
    }
    let share = (json[0] - 1.0) / (json[1] - 1.0);
    row("json: (marple - 1) / (pprof-alloc - 1)", share, Some(0.15));
    let ours = dump(&programs, "marple_dump", None);
    row("dump of 100,000 blocks, marple: CPU ms", ours.0, None);
    row("dump, marple: resident growth MiB", ours.1, Some(1.0));
    if asked("profiler") {
        for &(workload, of, over, goal) in PROFILER_RATIOS {
            let value = ratio(&programs, workload, of, over);
            row(&format!("{workload}: {of} / {over}"), value, goal);
        }
        let theirs = dump(&programs, "jemalloc_profiler", Some("prof:true,lg_prof_sample:0"));
        row("dump, jemalloc_pprof: CPU ms", theirs.0, None);
        row("dump, jemalloc_pprof: resident growth MiB", theirs.1, None);
        row("dump: CPU of marple / jemalloc_pprof", ours.0 / theirs.0, Some(0.1));
    }
    if asked("instructions") {
        let bare = instructions(&programs, "system");
        row("a bare pair: instructions", bare, None);
        let more = |program| instructions(&programs, program) - bare;
        row("a pair, marple: more instructions", more("marple_system"), Some(28.0));
        row("a pair, pprof-alloc: more instructions", more("pprof_alloc"), None);
    }
}

fn row(name: &str, value: f64, goal: Option<f64>) {
    match goal {
        None => println!("{name}: {value:.3}"),
        Some(goal) if value <= goal => println!("{name}: {value:.3}, goal {goal:.2}, pass"),
        Some(goal) => println!("{name}: {value:.3}, goal {goal:.2}, short"),
    }
}

/// Builds the programs and says where they are.
fn build(profiler: bool) -> PathBuf {
    let package = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/heap_peers");
    let target = Path::new(env!("CARGO_TARGET_TMPDIR")).parent().expect("target/tmp");
    let cargo = |arguments: &[&str]| {
        let mut command = Command::new(env!("CARGO"));
        command.args(["build", "--release", "--quiet", "--locked"]).args(arguments);
        let built = command.current_dir(&package).env("CARGO_TARGET_DIR", target).status();
        assert!(built.expect("cargo").success(), "cargo build {arguments:?} in {package:?}");
    };
    if profiler {
        // First, and alone: with its profiler in, jemalloc costs more in every program.
        cargo(&["--features", "profiling", "--bin", "jemalloc_profiler"]);
    }
    cargo(&[]);
    target.join("release")
}

/// A program that waits for the names of workloads.
struct Program {
    child: Child,
    asks: ChildStdin,
    answers: BufReader<ChildStdout>,
}

impl Program {
    fn start(programs: &Path, name: &str, jemalloc: Option<&str>) -> Self {
        let mut command = Command::new(programs.join(name));
        // By default glibc gives the top of its heap back and asks for it again, or not, by where the
        // last block happens to lie: up to a third of the time of a workload, by chance.
        for keep in ["MALLOC_TRIM_THRESHOLD_", "MALLOC_MMAP_THRESHOLD_"] {
            command.env(keep, (1 << 30).to_string());
        }
        if name == "jemalloc_profiler" {
            command.env("_RJEM_MALLOC_CONF", jemalloc.unwrap_or("prof:true,lg_prof_sample:19"));
        }
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().expect("a program");
        let asks = child.stdin.take().expect("piped");
        let answers = BufReader::new(child.stdout.take().expect("piped"));
        Self { child, asks, answers }
    }

    fn ask(&mut self, what: &str) -> Vec<f64> {
        writeln!(self.asks, "{what}").expect("it listens");
        let mut answer = String::new();
        self.answers.read_line(&mut answer).expect("it answers");
        answer.split_whitespace().map(|number| number.parse().expect("a number")).collect()
    }
}

impl Drop for Program {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn ratio(programs: &Path, workload: &str, of: &str, over: &str) -> f64 {
    let mut both = [of, over].map(|name| Program::start(programs, name, None));
    both.iter_mut().for_each(|program| drop(program.ask(workload)));
    let mut ratios: Vec<f64> = (0..PAIRS)
        .map(|pair| {
            let first = pair % 2;
            let mut spent = [0.0; 2];
            spent[first] = both[first].ask(workload)[0];
            spent[1 - first] = both[1 - first].ask(workload)[0];
            spent[0] / spent[1]
        })
        .collect();
    ratios.sort_by(f64::total_cmp);
    ratios[PAIRS / 2]
}

/// CPU milliseconds and resident growth in MiB of a program's first large dump.
fn dump(programs: &Path, name: &str, jemalloc: Option<&str>) -> (f64, f64) {
    let mut dumps: Vec<(f64, f64)> = (0..3)
        .map(|_| {
            let answer = Program::start(programs, name, jemalloc).ask("dump");
            (answer[0] / 1e6, answer[1] / f64::from(1 << 20))
        })
        .collect();
    dumps.sort_by(|a, b| a.0.total_cmp(&b.0));
    dumps[1]
}

/// The instructions of one pair, as valgrind counts them.
fn instructions(programs: &Path, name: &str) -> f64 {
    let count = |pairs: &str| {
        let output = Command::new("valgrind")
            .args(["--tool=callgrind", "--callgrind-out-file=/dev/null"])
            .arg(programs.join(name))
            .args(["pairs", pairs])
            .output()
            .expect("valgrind");
        let told = String::from_utf8_lossy(&output.stderr).into_owned();
        // A program that dies early has a count too.
        assert!(output.status.success(), "{name}: {}\n{told}", output.status);
        let total =
            told.split("Collected :").nth(1).and_then(|rest| rest.split_whitespace().next());
        total.and_then(|total| total.parse::<f64>().ok()).unwrap_or_else(|| panic!("{told}"))
    };
    (count("300000") - count("100000")) / 200_000.0
}
