//! Stacks are complete whichever way a program was built, or the profile states why they are not.
//!
//! The test compiles `builds/program.rs` with rustc, once for each set of flags, against the crate
//! that the test was linked with. The program profiles itself.
#![cfg(all(feature = "cpu", target_os = "linux", target_env = "gnu", target_arch = "x86_64"))]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use tempfile::TempDir;

const ENGINES: [&str; 3] = ["perf", "timer", "pprof"];

/// Innermost frames of every complete stack. The frames of the thread's start come above them.
const CHAIN: [&str; 10] = [
    "layer_zero",
    "layer_one",
    "layer_two",
    "layer_three",
    "layer_four",
    "layer_five",
    "layer_six",
    "layer_seven",
    "layer_eight",
    "layer_nine",
];

/// The crate under test, as built for this test: its file, and the directory of its dependencies.
static CRATE: LazyLock<(PathBuf, PathBuf)> = LazyLock::new(|| {
    let features = [
        ("cpu", cfg!(feature = "cpu")),
        ("heap", cfg!(feature = "heap")),
        ("trace", cfg!(feature = "trace")),
        ("http", cfg!(feature = "http")),
    ];
    let features = features.iter().filter(|(_, is_on)| *is_on).map(|(name, _)| *name);
    let features = features.collect::<Vec<_>>().join(",");
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["test", "--no-run", "--test", "cpu_builds", "--message-format", "json"])
        .args(["--no-default-features", "--features", &features]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let said = run(&mut cargo);
    let file = said
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|it| it["target"]["name"] == "marple" && it["target"]["kind"][0] == "lib")
        .flat_map(|it| it["filenames"].as_array().cloned().unwrap_or_default())
        .filter_map(|file| file.as_str().map(PathBuf::from))
        .find(|file| file.extension().is_some_and(|extension| extension == "rlib"))
        .expect("cargo names the crate it builds");
    let deps = std::env::current_exe().unwrap().parent().unwrap().to_owned();
    (file, deps)
});

/// Returns a command's standard output. Panics with its standard error if the command fails.
fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let complaint = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{complaint}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// Creates a temporary directory on the disk of the target directory.
fn folder() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Compiles the program with these flags.
fn build(folder: &TempDir, flags: &[&str]) -> PathBuf {
    let (file, deps) = &*CRATE;
    let program = folder.path().join("program");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/builds/program.rs");
    let mut rustc = Command::new(std::env::var_os("RUSTC").unwrap_or_else(|| "rustc".into()));
    rustc
        .args(["--edition", "2024", "--crate-type", "bin"])
        .arg("--extern")
        .arg(format!("marple={}", file.display()))
        .arg("-L")
        .arg(format!("dependency={}", deps.display()))
        .args(flags)
        .arg("-o")
        .args([program.as_path(), source.as_path()]);
    run(&mut rustc);
    program
}

/// Output of the program after profiling itself.
#[derive(Debug, Default)]
struct Told {
    refused: Option<String>,
    /// Samples of the working thread by their frames, innermost first.
    samples: Vec<(u64, Vec<String>)>,
    /// Samples that the profile marks as truncated.
    cut: Vec<(u64, Vec<String>)>,
    is_complete: bool,
    remarks: Vec<String>,
}

impl Told {
    fn by(program: &Path, engine: &str, names_from: Option<&Path>) -> Self {
        let mut told = Self::default();
        let said = run(Command::new(program).arg(engine).args(names_from));
        for line in said.lines() {
            let (kind, rest) = line.split_once('\t').unwrap_or((line, ""));
            match kind {
                "refused" => told.refused = Some(rest.to_owned()),
                "sample" => {
                    let mut fields = rest.split('\t').map(str::to_owned);
                    let count = fields.next().unwrap().parse().unwrap();
                    let is_cut = fields.next().unwrap() == "cut";
                    let frames: Vec<String> = fields.collect();
                    if is_cut {
                        told.cut.push((count, frames.clone()));
                    }
                    told.samples.push((count, frames));
                }
                "complete" => told.is_complete = rest == "true",
                "told" => told.remarks.push(rest.to_owned()),
                _ => panic!("{line}"),
            }
        }
        told
    }

    fn is_whole(&self, how: &str, engine: &str) {
        let (all, whole) = (self.count(|_| true), self.count(is_whole));
        println!("{how}, {engine}: {whole} of {all} stacks are whole");
        assert!(all > 20, "{how}, {engine}: too few samples: {self:#?}");
        assert!(whole * 20 >= all * 19, "{how}, {engine}: {self:#?}");
    }

    /// Returns the number of samples whose frames match `counts`.
    fn count(&self, counts: impl Fn(&[String]) -> bool) -> u64 {
        self.samples.iter().filter(|(_, frames)| counts(frames)).map(|(count, _)| count).sum()
    }
}

/// Returns `true` if all layers are present in their order.
fn holds_the_chain(frames: &[String]) -> bool {
    let layers = frames.iter().filter(|name| name.contains("layer_"));
    layers.zip(CHAIN).filter(|(name, layer)| name.ends_with(*layer)).count() == CHAIN.len()
}

/// Returns `true` if the stack is complete from the work to the start of the thread.
fn is_whole(frames: &[String]) -> bool {
    holds_the_chain(frames) && frames.last().is_some_and(|name| name.contains("clone"))
}

/// Returns `true` if the stack is of the work and does not reach the start of the thread. (Samples
/// of the thread's own end have complete stacks without the layers.)
fn lacks_layers(frames: &[String]) -> bool {
    let is_of_work = |name: &String| name.ends_with("::work") || name.contains("layer_");
    frames.iter().any(is_of_work) && !is_whole(frames)
}

/// Returns `true` if there are as many frames as in a complete stack, named or not.
fn is_as_deep(frames: &[String]) -> bool {
    frames.len() > CHAIN.len() + 3
}

/// Checks that 19 of 20 stacks of the working thread of `program` are complete. The others may be
/// of the thread's own start and end.
fn stacks_are_whole(how: &str, program: &Path, names_from: Option<&Path>) {
    for engine in ENGINES {
        let told = Told::by(program, engine, names_from);
        if let Some(why) = &told.refused {
            panic!("{how}, {engine}: {why}");
        }
        told.is_whole(how, engine);
    }
}

#[test]
fn default_builds_have_whole_stacks() {
    let folder = folder();
    let program = build(&folder, &["-O"]);
    stacks_are_whole("-O", &program, None);
}

#[test]
fn builds_with_frame_pointers_have_whole_stacks() {
    let folder = folder();
    let program = build(&folder, &["-O", "-C", "force-frame-pointers=yes"]);
    stacks_are_whole("frame pointers", &program, None);
}

#[test]
fn builds_without_optimization_have_whole_stacks() {
    let folder = folder();
    let program = build(&folder, &["-g"]);
    stacks_are_whole("-g", &program, None);
}

#[test]
fn builds_that_abort_on_panic_have_whole_stacks() {
    let folder = folder();
    let program = build(&folder, &["-O", "-C", "panic=abort"]);
    stacks_are_whole("panic=abort", &program, None);
}

#[test]
fn split_debug_info_takes_no_names_away() {
    for how in ["packed", "unpacked"] {
        let folder = folder();
        let program = build(&folder, &["-O", "-g", "-C", &format!("split-debuginfo={how}")]);
        stacks_are_whole(how, &program, None);
    }
}

#[test]
fn a_stripped_program_has_whole_stacks_of_addresses_that_the_other_file_names() {
    let folder = folder();
    let program = build(&folder, &["-O", "-g"]);
    let stripped = folder.path().join("stripped");
    run(Command::new("strip").arg("-o").args([&stripped, &program]));
    for engine in ENGINES {
        let told = Told::by(&stripped, engine, None);
        let all = told.count(is_as_deep);
        let nameless =
            told.count(|frames| frames[..CHAIN.len()].iter().all(|name| name.starts_with('?')));
        assert!(all > 20 && nameless * 20 >= all * 19, "{engine}: {told:#?}");
        assert!(!told.is_complete, "{engine}: a reader may try with the other file");
    }
    stacks_are_whole("stripped, names from the other file", &stripped, Some(&program));
}

#[test]
fn a_stripped_program_finds_its_debug_file_beside_it() {
    for folder_of_it in [".", ".debug"] {
        let folder = folder();
        let program = build(&folder, &["-O", "-g"]);
        fs::create_dir_all(folder.path().join(folder_of_it)).unwrap();
        let debug = folder.path().join(folder_of_it).join("program.debug");
        run(Command::new("objcopy").arg("--only-keep-debug").args([&program, &debug]));
        let link = format!("--add-gnu-debuglink={}", debug.display());
        run(Command::new("objcopy").args(["--strip-all", &link]).arg(&program));
        stacks_are_whole("stripped, with a debug file", &program, None);

        // A debug file of another build must not be used.
        let folder_of_other = self::folder();
        let other = build(&folder_of_other, &["-O"]);
        fs::copy(&other, &debug).unwrap();
        let told = Told::by(&program, ENGINES[0], None);
        assert_eq!(told.count(is_whole), 0, "names of another build: {told:#?}");
        assert!(told.count(is_as_deep) > 20, "{told:#?}");
    }
}

/// Without tables and frame pointers such a stack cannot be unwound. The innermost frame needs no
/// unwinding, so the profile still shows where the time goes. It states what is missing, for each
/// stack and as a sum.
#[test]
fn a_build_without_unwind_tables_shows_where_the_time_goes_and_says_what_is_cut() {
    let folder = folder();
    let flags = ["-O", "-C", "panic=abort", "-C", "force-unwind-tables=no"];
    let program = build(&folder, &flags);
    for engine in ENGINES {
        let told = Told::by(&program, engine, None);
        let (all, whole) = (told.count(|_| true), told.count(is_whole));
        let cut: u64 = told.cut.iter().map(|(count, _)| count).sum();
        println!(
            "no unwind tables, {engine}: {whole} of {all} stacks are whole, {cut} say they are cut"
        );
        let at_work = told.count(|frames| frames[0].ends_with("::work"));
        assert!(at_work > 20 && at_work * 10 >= all * 8, "{engine}: {told:#?}");
        // The `pprof` crate's unwinder stops there too, but does not report it.
        if engine == "pprof" {
            continue;
        }
        for sample in told.samples.iter().filter(|(_, frames)| lacks_layers(frames)) {
            assert!(told.cut.contains(sample), "{engine}: not whole, and not said: {sample:?}");
        }
        let said = told.remarks.iter().filter(|it| it.starts_with("CPU samples cut where unwind"));
        let said: u64 = said.filter_map(|it| it.rsplit_once(' ')?.1.parse::<u64>().ok()).sum();
        assert!(cut > 20 && said >= cut, "{engine}: {told:#?}");
    }
}

/// Without tables, a frame pointer is followed if a call instruction proves the frame, and the
/// profile states so. Any other stack is truncated there.
#[test]
fn frame_pointers_without_unwind_tables_are_followed_as_far_as_calls_prove_them() {
    let folder = folder();
    let mut flags = vec!["-O", "-C", "panic=abort", "-C", "force-unwind-tables=no"];
    flags.extend(["-C", "force-frame-pointers=yes"]);
    let program = build(&folder, &flags);
    for engine in &ENGINES[..2] {
        let told = Told::by(&program, engine, None);
        let (all, through) = (told.count(|_| true), told.count(holds_the_chain));
        println!("frame pointers alone, {engine}: {through} of {all} stacks hold every layer");
        assert!(all > 20 && through * 20 >= all * 19, "{engine}: {told:#?}");
        for sample in told.samples.iter().filter(|(_, frames)| lacks_layers(frames)) {
            assert!(told.cut.contains(sample), "{engine}: not whole, and not said: {sample:?}");
        }
        let is_said = told.remarks.iter().any(|it| it.contains("code without unwind tables"));
        assert!(is_said, "{engine}: {told:#?}");
    }
}

#[test]
fn a_static_program_has_whole_stacks_or_says_why_not() {
    let folder = folder();
    let program = build(&folder, &["-O", "-C", "target-feature=+crt-static"]);
    for engine in ENGINES {
        let told = Told::by(&program, engine, None);
        match (engine, &told.refused) {
            ("pprof", Some(why)) => assert!(why.contains("dynamically linked libgcc_s"), "{why}"),
            (_, Some(why)) => panic!("{engine}: {why}"),
            (_, None) => told.is_whole("static", engine),
        }
    }
}
