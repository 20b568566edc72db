//! Stacks are complete whichever way a program was built, or the profile states why they are not.
//!
//! The test compiles `builds/program.rs` with rustc, once for each set of flags, against the crate
//! that the test was linked with. The program profiles itself.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::LazyLock;

use tempfile::TempDir;

const ENGINES: [&str; 3] = ["perf", "timer", "pprof"];

/// Innermost frames of every complete stack. The frames of the thread's start come above them.
const COMPLETE_CHAIN: [&str; 10] = [
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

/// The crate under test, as built for the tests: its file, and the directory of its dependencies.
/// Any test program makes cargo build it; `layers` is the smallest.
static CRATE: LazyLock<(PathBuf, PathBuf)> = LazyLock::new(|| {
    let features = [
        ("cpu", cfg!(feature = "cpu")),
        ("heap", cfg!(feature = "heap")),
        ("trace", cfg!(feature = "trace")),
        ("http", cfg!(feature = "http")),
        ("pprof", cfg!(feature = "pprof")),
        // Nothing here uses them. They are on in a build with all features, which is then shared.
        ("default", cfg!(feature = "default")),
        ("cli", cfg!(feature = "cli")),
        ("jemalloc", cfg!(feature = "jemalloc")),
    ];
    let features = features.iter().filter(|(_, is_on)| *is_on).map(|(name, _)| *name);
    let features = features.collect::<Vec<_>>().join(",");
    let mut cargo = Command::new(env!("CARGO"));
    cargo
        .current_dir(env!("CARGO_MANIFEST_DIR"))
        .args(["test", "--no-run", "--test", "layers", "--message-format", "json"])
        .args(["--no-default-features", "--features", &features]);
    if !cfg!(debug_assertions) {
        cargo.arg("--release");
    }
    let cargo_output = run(&mut cargo);
    let file = cargo_output
        .lines()
        .filter_map(|line| serde_json::from_str::<serde_json::Value>(line).ok())
        .filter(|message| {
            message["target"]["name"] == "marple" && message["target"]["kind"][0] == "lib"
        })
        .flat_map(|message| message["filenames"].as_array().cloned().unwrap_or_default())
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
fn target_tempdir() -> TempDir {
    TempDir::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap()
}

/// Compiles the program with these flags.
fn build(folder: &TempDir, flags: &[&str]) -> PathBuf {
    let (file, deps) = &*CRATE;
    let program = folder.path().join("program");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/cpu/builds/program.rs");
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
struct ProgramOutput {
    refused: Option<String>,
    /// Samples of the working thread by their frames, innermost first.
    samples: Vec<(u64, Vec<String>)>,
    /// Samples that the profile marks as truncated.
    cut: Vec<(u64, Vec<String>)>,
    is_complete: bool,
    remarks: Vec<String>,
}

impl ProgramOutput {
    fn of_program(program: &Path, engine: &str, names_from: Option<&Path>) -> Self {
        let mut output = Self::default();
        let output_text = run(Command::new(program).arg(engine).args(names_from));
        for line in output_text.lines() {
            let (kind, rest) = line.split_once('\t').unwrap_or((line, ""));
            match kind {
                "refused" => output.refused = Some(rest.to_owned()),
                "sample" => {
                    let mut fields = rest.split('\t').map(str::to_owned);
                    let count = fields.next().unwrap().parse().unwrap();
                    let is_cut = fields.next().unwrap() == "cut";
                    let frames: Vec<String> = fields.collect();
                    if is_cut {
                        output.cut.push((count, frames.clone()));
                    }
                    output.samples.push((count, frames));
                }
                "complete" => output.is_complete = rest == "true",
                "told" => output.remarks.push(rest.to_owned()),
                _ => panic!("{line}"),
            }
        }
        output
    }

    fn assert_complete(&self, how: &str, engine: &str) {
        let (all, whole) = (self.count_samples(|_| true), self.count_samples(is_complete));
        println!("{how}, {engine}: {whole} of {all} stacks are whole");
        assert!(all > 20, "{how}, {engine}: too few samples: {self:#?}");
        assert!(whole * 20 >= all * 19, "{how}, {engine}: {self:#?}");
    }

    /// Returns the number of samples whose frames match `counts`.
    fn count_samples(&self, counts: impl Fn(&[String]) -> bool) -> u64 {
        self.samples.iter().filter(|(_, frames)| counts(frames)).map(|(count, _)| count).sum()
    }
}

/// Returns `true` if all layers are present in their order.
fn has_complete_chain(frames: &[String]) -> bool {
    let layers = frames.iter().filter(|name| name.contains("layer_"));
    layers.zip(COMPLETE_CHAIN).filter(|(name, layer)| name.ends_with(*layer)).count()
        == COMPLETE_CHAIN.len()
}

/// Returns `true` if the stack is complete from the work to the start of the thread.
fn is_complete(frames: &[String]) -> bool {
    has_complete_chain(frames) && frames.last().is_some_and(|name| name.contains("clone"))
}

/// Returns `true` if the stack is of the work and does not reach the start of the thread. (Samples
/// of the thread's own end have complete stacks without the layers.)
fn is_truncated(frames: &[String]) -> bool {
    let is_of_work = |name: &String| name.ends_with("::work") || name.contains("layer_");
    frames.iter().any(is_of_work) && !is_complete(frames)
}

/// Returns `true` if there are as many frames as in a complete stack, named or not.
fn has_full_depth(frames: &[String]) -> bool {
    frames.len() > COMPLETE_CHAIN.len() + 3
}

/// Checks that 19 of 20 stacks of the working thread of `program` are complete. The others may be
/// of the thread's own start and end.
fn assert_complete_stacks(how: &str, program: &Path, names_from: Option<&Path>) {
    for engine in ENGINES {
        let output = ProgramOutput::of_program(program, engine, names_from);
        if let Some(why) = &output.refused {
            panic!("{how}, {engine}: {why}");
        }
        output.assert_complete(how, engine);
    }
}

#[test]
fn default_builds_have_complete_stacks() {
    let folder = target_tempdir();
    let program = build(&folder, &["-O"]);
    assert_complete_stacks("-O", &program, None);
}

#[test]
fn builds_with_frame_pointers_have_complete_stacks() {
    let folder = target_tempdir();
    let program = build(&folder, &["-O", "-C", "force-frame-pointers=yes"]);
    assert_complete_stacks("frame pointers", &program, None);
}

#[test]
fn unoptimized_builds_have_complete_stacks() {
    let folder = target_tempdir();
    let program = build(&folder, &["-g"]);
    assert_complete_stacks("-g", &program, None);
}

#[test]
fn panic_abort_builds_have_complete_stacks() {
    let folder = target_tempdir();
    let program = build(&folder, &["-O", "-C", "panic=abort"]);
    assert_complete_stacks("panic=abort", &program, None);
}

#[test]
fn split_debug_info_keeps_names() {
    for how in ["packed", "unpacked"] {
        let folder = target_tempdir();
        let program = build(&folder, &["-O", "-g", "-C", &format!("split-debuginfo={how}")]);
        assert_complete_stacks(how, &program, None);
    }
}

#[test]
fn stripped_program_is_symbolized_with_unstripped_file() {
    let folder = target_tempdir();
    let program = build(&folder, &["-O", "-g"]);
    let stripped = folder.path().join("stripped");
    run(Command::new("strip").arg("-o").args([&stripped, &program]));
    for engine in ENGINES {
        let output = ProgramOutput::of_program(&stripped, engine, None);
        let all = output.count_samples(has_full_depth);
        let nameless = output.count_samples(|frames| {
            frames[..COMPLETE_CHAIN.len()].iter().all(|name| name.starts_with('?'))
        });
        assert!(all > 20 && nameless * 20 >= all * 19, "{engine}: {output:#?}");
        assert!(!output.is_complete, "{engine}: a reader may try with the other file");
    }
    assert_complete_stacks("stripped, names from the other file", &stripped, Some(&program));
}

#[test]
fn stripped_program_finds_adjacent_debug_file() {
    for folder_of_it in [".", ".debug"] {
        let folder = target_tempdir();
        let program = build(&folder, &["-O", "-g"]);
        fs::create_dir_all(folder.path().join(folder_of_it)).unwrap();
        let debug = folder.path().join(folder_of_it).join("program.debug");
        run(Command::new("objcopy").arg("--only-keep-debug").args([&program, &debug]));
        let link = format!("--add-gnu-debuglink={}", debug.display());
        run(Command::new("objcopy").args(["--strip-all", &link]).arg(&program));
        assert_complete_stacks("stripped, with a debug file", &program, None);

        // A debug file of another build must not be used.
        let folder_of_other = self::target_tempdir();
        let other = build(&folder_of_other, &["-O"]);
        fs::copy(&other, &debug).unwrap();
        let output = ProgramOutput::of_program(&program, ENGINES[0], None);
        assert_eq!(output.count_samples(is_complete), 0, "names of another build: {output:#?}");
        assert!(output.count_samples(has_full_depth) > 20, "{output:#?}");
    }
}

/// Without tables and frame pointers such a stack cannot be unwound. The innermost frame needs no
/// unwinding, so the profile still shows where the time goes. It states what is missing, for each
/// stack and as a sum.
#[test]
fn build_without_unwind_tables_reports_truncated_stacks() {
    let folder = target_tempdir();
    let flags = ["-O", "-C", "panic=abort", "-C", "force-unwind-tables=no"];
    let program = build(&folder, &flags);
    for engine in ENGINES {
        let output = ProgramOutput::of_program(&program, engine, None);
        let (all, whole) = (output.count_samples(|_| true), output.count_samples(is_complete));
        let cut: u64 = output.cut.iter().map(|(count, _)| count).sum();
        println!(
            "no unwind tables, {engine}: {whole} of {all} stacks are whole, {cut} say they are cut"
        );
        let at_work = output.count_samples(|frames| frames[0].ends_with("::work"));
        assert!(at_work > 20 && at_work * 10 >= all * 8, "{engine}: {output:#?}");
        // The `pprof` crate's unwinder stops there too, but does not report it.
        if engine == "pprof" {
            continue;
        }
        for sample in output.samples.iter().filter(|(_, frames)| is_truncated(frames)) {
            assert!(output.cut.contains(sample), "{engine}: not whole, and not said: {sample:?}");
        }
        let truncated_remarks = output
            .remarks
            .iter()
            .filter(|remark| remark.starts_with("CPU samples truncated where unwind"));
        let truncated: u64 = truncated_remarks
            .filter_map(|remark| remark.rsplit_once(' ')?.1.parse::<u64>().ok())
            .sum();
        assert!(cut > 20 && truncated >= cut, "{engine}: {output:#?}");
    }
}

/// Without tables, a frame pointer is followed if a call instruction proves the frame, and the
/// profile states so. Any other stack is truncated there.
#[test]
fn frame_pointers_without_unwind_tables_need_call_instruction() {
    let folder = target_tempdir();
    let mut flags = vec!["-O", "-C", "panic=abort", "-C", "force-unwind-tables=no"];
    flags.extend(["-C", "force-frame-pointers=yes"]);
    let program = build(&folder, &flags);
    for engine in &ENGINES[..2] {
        let output = ProgramOutput::of_program(&program, engine, None);
        let (all, through) =
            (output.count_samples(|_| true), output.count_samples(has_complete_chain));
        println!("frame pointers alone, {engine}: {through} of {all} stacks hold every layer");
        assert!(all > 20 && through * 20 >= all * 19, "{engine}: {output:#?}");
        for sample in output.samples.iter().filter(|(_, frames)| is_truncated(frames)) {
            assert!(output.cut.contains(sample), "{engine}: not whole, and not said: {sample:?}");
        }
        let is_said =
            output.remarks.iter().any(|remark| remark.contains("code without unwind tables"));
        assert!(is_said, "{engine}: {output:#?}");
    }
}

#[test]
fn static_program_has_complete_stacks_or_reports_reason() {
    let folder = target_tempdir();
    let program = build(&folder, &["-O", "-C", "target-feature=+crt-static"]);
    for engine in ENGINES {
        let output = ProgramOutput::of_program(&program, engine, None);
        match (engine, &output.refused) {
            ("pprof", Some(why)) => assert!(why.contains("dynamically linked libgcc_s"), "{why}"),
            (_, Some(why)) => panic!("{engine}: {why}"),
            (_, None) => output.assert_complete("static", engine),
        }
    }
}
