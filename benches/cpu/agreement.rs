//! Agreement between an engine and `perf record` on the same run of third-party code.
//!
//! A thread parses and prints with `serde_json` and compresses with `flate2` for some seconds. Both
//! profilers sample it, and the shares of the hottest functions are compared. Kernel symbols are
//! excluded on both sides. The linker may fold identical functions, which then share one address
//! under several names. The name shown is arbitrary, so such names count as one.

use std::collections::{BTreeSet, HashMap};
use std::fs;
use std::io::Write;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use marple::internals::symbols;
use object::{Object, ObjectSymbol};

use crate::cell::CellValues;
use crate::drive::{Engine, Recorded};

/// Sampling rate of both; a prime, so that it does not align with other periodic work.
const HERTZ: u32 = 997;

const THREAD: &str = "third-party";

/// Number of functions compared: those with the most samples from either side.
const COMPARED_FUNCTIONS: usize = 12;

fn work(until: Instant) {
    let line =
        r#"{"id":4711,"name":"a customer","tags":["a","b","c"],"nested":{"x":1.5,"y":[1,2,3]}}"#;
    let text = format!("[{}]", [line; 200].join(","));
    while Instant::now() < until {
        let value: serde_json::Value = serde_json::from_str(&text).expect("valid");
        let printed = value.to_string();
        let level = flate2::Compression::new(4);
        let mut packer = flate2::write::GzEncoder::new(Vec::new(), level);
        packer.write_all(printed.as_bytes()).expect("an infallible writer");
        std::hint::black_box(packer.finish().expect("an infallible writer"));
    }
}

/// Prints the engine's number of samples in each function.
pub(crate) fn cell(engine: Engine, time: Duration) -> Result<(), String> {
    let running = engine.start(HERTZ)?;
    let body = move || work(Instant::now() + time);
    let thread = thread::Builder::new().name(THREAD.into()).spawn(body);
    let _ = thread.map_err(|error| error.to_string())?.join();
    let Recorded::Marple(mut profile) = running.stop()? else {
        return Err(format!("{engine} is not an engine of marple"));
    };
    symbols::symbolize(&mut profile);
    for sample in &profile.samples {
        let innermost = profile.stacks.frames(sample.stack).next();
        let line = innermost.and_then(|frame| profile.frames.get(frame).lines.first());
        let function = line.and_then(|line| profile.functions.get(line.function.index()));
        if let Some(function) = function {
            let name = profile.strings.get(function.system_name);
            println!("{} {}", name.split('@').next().unwrap_or(name), sample.values[0]);
        }
    }
    Ok(())
}

/// Returns the root mean square of the differences in standard errors, and the largest difference
/// in percentage points, or the reason if they cannot be measured.
pub(crate) fn compare_with_perf_record(engine: Engine, millis: u64) -> Result<(f64, f64), String> {
    let to_text = |error: std::io::Error| error.to_string();
    let folder = tempfile::tempdir().map_err(to_text)?;
    let data = folder.path().join("perf.data");
    let mut record = Command::new("perf");
    record.args(["record", "-q", "-e", "cpu-clock:u", "-F", &HERTZ.to_string(), "-o"]).arg(&data);
    record.arg("--").arg(std::env::current_exe().map_err(to_text)?);
    record.args(["cell", "third-party", engine.name(), &millis.to_string()]);
    let ours = command_output(&mut record)?;
    let mut report = Command::new("perf");
    report.args(["report", "-q", "--stdio", "--no-demangle", "--no-children", "-F", "sample,sym"]);
    report.args(["--comm", THREAD, "-i"]).arg(&data);
    let theirs = command_output(&mut report)?;

    let aliases = aliases();
    let one_name = |counts: HashMap<String, f64>| {
        let mut sums = HashMap::new();
        for (name, count) in counts {
            let name = aliases.get(&name).cloned().unwrap_or(name);
            *sums.entry(name).or_insert(0.0) += count;
        }
        sums
    };
    let ours = CellValues::parse(&ours);
    // Format: `    1234  [.] _ZN…`
    let line = |line: &str| {
        let mut fields = line.split_ascii_whitespace();
        let count = fields.next()?.parse::<f64>().ok()?;
        let name = fields.nth(1)?;
        Some((name.split('@').next().unwrap_or(name).to_owned(), count))
    };
    let theirs: HashMap<String, f64> = theirs.lines().filter_map(line).collect();
    Ok(difference(&one_name(ours.sums()), &one_name(theirs)))
}

/// Maps each name to one name per address, for the code mapped in this process. The measured
/// process runs the same code.
fn aliases() -> HashMap<String, String> {
    let maps = fs::read_to_string("/proc/self/maps").unwrap_or_default();
    let code = maps.lines().filter(|line| line.contains(" r-xp "));
    let files: BTreeSet<&str> = code.filter_map(|line| line.split_whitespace().nth(5)).collect();
    let mut aliases = HashMap::new();
    for file in files {
        let Ok(bytes) = fs::read(file) else { continue };
        let Ok(image) = object::File::parse(&*bytes) else { continue };
        let mut first: HashMap<u64, String> = HashMap::new();
        record_alias(&image, &mut first, &mut aliases);
        // Both profilers take the names from a debug file if there is one.
        if let Ok(bytes) = fs::read(debug_file(&image))
            && let Ok(image) = object::File::parse(&*bytes)
        {
            record_alias(&image, &mut first, &mut aliases);
        }
    }
    aliases
}

/// Returns the path at which Debian's packages install the symbols of `image`.
fn debug_file(image: &object::File<'_>) -> String {
    let id = image.build_id().ok().flatten().unwrap_or_default();
    let hex: String = id.iter().map(|byte| format!("{byte:02x}")).collect();
    let (folder, name) = hex.split_at_checked(2).unwrap_or_default();
    format!("/usr/lib/debug/.build-id/{folder}/{name}.debug")
}

fn record_alias(
    image: &object::File<'_>,
    first: &mut HashMap<u64, String>,
    aliases: &mut HashMap<String, String>,
) {
    for symbol in image.symbols().chain(image.dynamic_symbols()) {
        let Ok(name) = symbol.name() else { continue };
        if symbol.kind() != object::SymbolKind::Text || symbol.address() == 0 {
            continue;
        }
        let name = name.split('@').next().unwrap_or(name).to_owned();
        let one = first.entry(symbol.address()).or_insert_with(|| name.clone());
        aliases.insert(name, one.clone());
    }
}

fn difference(ours: &HashMap<String, f64>, theirs: &HashMap<String, f64>) -> (f64, f64) {
    let (our_all, their_all): (f64, f64) = (ours.values().sum(), theirs.values().sum());
    let count_of =
        |counts: &HashMap<String, f64>, name: &String| counts.get(name).copied().unwrap_or(0.0);
    let mut names: Vec<&String> = ours.keys().chain(theirs.keys()).collect();
    names.sort_unstable();
    names.dedup();
    names.sort_by(|a, b| {
        let combined_share =
            |name: &String| count_of(ours, name) / our_all + count_of(theirs, name) / their_all;
        combined_share(b).total_cmp(&combined_share(a))
    });
    let (mut squares, mut largest, mut compared) = (0.0, 0.0, 0.0);
    for name in names.into_iter().take(COMPARED_FUNCTIONS) {
        let (our, their) = (count_of(ours, name), count_of(theirs, name));
        let points = our / our_all - their / their_all;
        // Both estimate the same share; their combination is the best estimate of it.
        let share = (our + their) / (our_all + their_all);
        let error = (share * (1.0 - share) * (1.0 / our_all + 1.0 / their_all)).sqrt();
        squares += (points / error).powi(2);
        largest = f64::max(largest, points.abs() * 100.0);
        compared += 1.0;
        if std::env::var_os("MARPLE_BENCH_VERBOSE").is_some() {
            eprintln!("{our:>6} {their:>6} {:>6.2} {name}", points / error);
        }
    }
    ((squares / compared).sqrt(), largest)
}

fn command_output(command: &mut Command) -> Result<String, String> {
    let output = command.output().map_err(|error| format!("{command:?}: {error}"))?;
    let error_text = String::from_utf8_lossy(&output.stderr);
    if std::env::var_os("MARPLE_BENCH_VERBOSE").is_some() {
        eprint!("{error_text}");
    }
    match output.status.success() {
        true => Ok(String::from_utf8_lossy(&output.stdout).into_owned()),
        false => Err(format!("{command:?}: {}: {error_text}", output.status)),
    }
}
