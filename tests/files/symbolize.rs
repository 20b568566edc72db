//! `marple symbolize` over a real heap profile: source lines, inlined functions and rejected input.

use std::fs::{self, File};
use std::hint::black_box;
use std::path::Path;
use std::process::{Command, Output};

use jiff::Timestamp;
use marple::internals::agent::{HeapWriter, ProcessMemory};
use marple::internals::base::Bytes;
use marple::internals::codec::pprof::proto::{Location, Profile};
use marple::internals::codec::pprof::{read, write_proto};
use marple::internals::heap;

use crate::support::peers;

/// The line of the leaking allocation.
const LEAK_LINE: i64 = line!() as i64 + 4;

#[inline(always)]
fn inlined_leak() -> Vec<u8> {
    black_box(Vec::with_capacity(black_box(24 << 20)))
}

#[inline(never)]
fn leak_blocks() -> Vec<u8> {
    black_box(inlined_leak())
}

fn heap_profile(path: &Path) {
    heap::set_rate(Bytes(1));
    let kept = leak_blocks();
    let process = ProcessMemory { resident: None, working_set: None, limit: None };
    HeapWriter::reserve().write(Timestamp::now(), process, File::create(path).unwrap()).unwrap();
    heap::set_rate(Bytes(512 << 10));
    drop(kept);
}

fn run_marple(args: &[&str]) -> Output {
    Command::new(env!("CARGO_BIN_EXE_marple")).arg("symbolize").args(args).output().unwrap()
}

fn profile(path: &Path) -> Profile {
    read(&fs::read(path).unwrap()).unwrap()
}

/// Returns function, file name and line of each function at a location, innermost first.
fn functions_at(profile: &Profile, location: &Location) -> Vec<(String, String, i64)> {
    let line = |line: &marple::internals::codec::pprof::proto::Line| {
        let function = profile.function.iter().find(|known| known.id == line.function_id).unwrap();
        let file = profile.text(function.filename).rsplit('/').next().unwrap_or_default();
        (profile.text(function.name).to_owned(), file.to_owned(), line.line)
    };
    location.line.iter().map(line).collect()
}

#[test]
fn symbolized_profile_has_lines_and_inlined_functions_in_go() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("shop.001.memory.pprof");
    heap_profile(&from);
    let before = fs::read(&from).unwrap();
    let output = run_marple(&[from.to_str().unwrap()]);
    let output_text = String::from_utf8(output.stdout).unwrap();
    assert!(output.status.success(), "{output_text}{}", String::from_utf8_lossy(&output.stderr));
    assert!(output_text.contains("frames have source lines"), "{output_text}");
    assert_eq!(fs::read(&from).unwrap(), before, "the evidence stays as it is");

    let to = dir.path().join("shop.001.memory.lines.pprof");
    let (old, new) = (profile(&from), profile(&to));
    assert_eq!(new.sample, old.sample, "only where code is from changes");
    let all: Vec<_> = new.location.iter().map(|location| functions_at(&new, location)).collect();
    // The name has no module path if line tables are the only debug information.
    let is_inlined = |(name, file, line): &(String, String, i64)| {
        name.ends_with("inlined_leak") && file == "symbolize.rs" && *line == LEAK_LINE
    };
    let inlined_frames = all.iter().find(|shown| shown.iter().any(is_inlined));
    let inlined_frames =
        inlined_frames.unwrap_or_else(|| panic!("line {LEAK_LINE} is not in {all:#?}"));
    let at = inlined_frames.iter().position(is_inlined).unwrap();
    let outer =
        ("files::symbolize::leak_blocks".to_owned(), "symbolize.rs".to_owned(), LEAK_LINE + 5);
    assert_eq!(inlined_frames.get(at + 1), Some(&outer), "{inlined_frames:#?}");

    let own = new.mapping.first().unwrap();
    assert!(own.has_functions && own.has_filenames && own.has_line_numbers);
    let listed = peers::go_pprof(&["-list=files::symbolize::leak_blocks$", to.to_str().unwrap()]);
    assert!(listed.contains("black_box(inlined_leak())"), "{listed}");

    let again = run_marple(&[from.to_str().unwrap()]);
    let error_text = String::from_utf8(again.stderr).unwrap();
    assert_eq!(again.status.code(), Some(1));
    assert!(error_text.contains("already exists; use --force to replace it"), "{error_text}");
    assert!(run_marple(&["--force", from.to_str().unwrap()]).status.success());
}

#[test]
fn binary_is_matched_by_build_id() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("moved.memory.pprof");
    heap_profile(&from);
    let mut moved = profile(&from);
    let own = std::env::current_exe().unwrap();
    let path = moved.mapping.first().map(|own| own.filename).unwrap() as usize;
    for (missing, why) in
        [("/nowhere/shop", "No such file"), (env!("CARGO_BIN_EXE_marple"), "build ID")]
    {
        moved.string_table[path] = missing.to_owned();
        // Only locations of the executable keep their mapping: the C library may have a debug file
        // on the test machine.
        let executable = moved.mapping.first().unwrap().id;
        moved.location.iter_mut().filter(|at| at.mapping_id != executable).for_each(|at| {
            at.mapping_id = 0;
        });
        write_proto(&moved, File::create(&from).unwrap()).unwrap();
        let output = run_marple(&[from.to_str().unwrap()]);
        let error_text = String::from_utf8(output.stderr).unwrap();
        assert_eq!(output.status.code(), Some(1), "{error_text}");
        assert!(error_text.contains(why) && error_text.contains("--binary"), "{error_text}");
        assert!(error_text.contains("nothing was written"), "{error_text}");
        let to = dir.path().join(format!("{}.pprof", missing.len()));
        let found = run_marple(&[
            from.to_str().unwrap(),
            "--binary",
            own.to_str().unwrap(),
            "--output",
            to.to_str().unwrap(),
        ]);
        assert!(found.status.success(), "{}", String::from_utf8_lossy(&found.stderr));
        let new = profile(&to);
        let lines = new.location.iter().flat_map(|location| &location.line);
        assert!(lines.filter(|line| line.line > 0).count() > 3);
    }
}

#[test]
fn non_profile_input_is_one_line_error() {
    let dir = tempfile::tempdir().unwrap();
    let from = dir.path().join("x.pprof");
    fs::write(&from, "hello").unwrap();
    let output = run_marple(&[from.to_str().unwrap()]);
    let error_text = String::from_utf8(output.stderr).unwrap();
    assert_eq!(output.status.code(), Some(1));
    assert!(
        error_text.contains("x.pprof: not a pprof profile") && error_text.lines().count() == 1,
        "{error_text}"
    );
}
