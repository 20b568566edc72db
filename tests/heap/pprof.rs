//! Go's view of a heap profile, and the comments in the profile.

use std::fs::File;
use std::hint::black_box;
use std::path::Path;

use jiff::Timestamp;
use marple::internals::agent::{HeapWriter, ProcessMemory};
use marple::internals::base::Bytes;
use marple::internals::heap;

use crate::support::peers;

const MIB: usize = 1 << 20;

#[inline(never)]
fn keep_blocks() -> Vec<Vec<u8>> {
    black_box((0..10).map(|_| Vec::with_capacity(black_box(20 * MIB))).collect())
}

#[inline(never)]
fn box_block() -> Box<[u8; MIB]> {
    black_box(Box::new([7; MIB]))
}

#[inline(never)]
fn grow_block() -> Vec<u8> {
    let mut grown = Vec::new();
    while grown.capacity() < 32 * MIB {
        grown.reserve_exact(grown.capacity() + MIB);
        grown.resize(grown.capacity(), 1);
    }
    black_box(grown)
}

fn write(path: &Path) {
    let process =
        ProcessMemory { resident: Some(4711), working_set: Some(4000), limit: Some(5000) };
    let mut writer = HeapWriter::reserve();
    writer.write(Timestamp::now(), process, File::create(path).unwrap()).unwrap();
}

/// Returns the innermost functions and their fractions by flat bytes: the rows of `-top` without
/// its header.
fn top_functions(args: &[&str]) -> Vec<(String, String)> {
    let text = peers::go_pprof(&[&["-top", "-unit=MB", "-nodefraction=0"], args].concat());
    let lines = text.lines().skip_while(|line| !line.contains("flat%")).skip(1);
    lines
        .map(|line| {
            let words: Vec<&str> = line.split_whitespace().collect();
            (words[0].to_owned(), words[5..].join(" "))
        })
        .collect()
}

fn flat_percentage(top: &[(String, String)], function: &str) -> String {
    let ours = format!("heap::pprof::{function}");
    let found = top.iter().find(|(_, name)| *name == ours);
    found.unwrap_or_else(|| panic!("no {ours} in {top:#?}")).0.clone()
}

#[test]
fn go_shows_program_functions_and_dump_difference() {
    heap::set_rate(Bytes(1));
    let dir = tempfile::tempdir().unwrap();
    let (first, second) = (dir.path().join("1.pprof"), dir.path().join("2.pprof"));
    let (first_name, second_name) = (first.to_str().unwrap(), second.to_str().unwrap());
    let boxed = box_block();
    write(&first);
    let (kept, grown) = (keep_blocks(), grow_block());
    write(&second);

    let all = top_functions(&[second_name]);
    assert_eq!(flat_percentage(&all, "keep_blocks::{{closure}}"), "200MB");
    assert_eq!(flat_percentage(&all, "box_block"), "1MB");
    assert_eq!(flat_percentage(&all, "grow_block"), format!("{}MB", grown.capacity() / MIB));
    for (_, name) in all.iter().filter(|(flat, _)| flat != "0") {
        for inner in ["__rust", "__rg_", "GlobalAlloc", "marple::heap", "alloc::alloc", "raw_vec"] {
            assert!(!name.contains(inner), "{name} is shown as innermost");
        }
    }
    let between = top_functions(&["-base", first_name, second_name]);
    assert_eq!(flat_percentage(&between, "keep_blocks::{{closure}}"), "200MB");
    assert!(!between.iter().any(|(flat, name)| name.contains("box_block") && flat != "0"));

    let comments = peers::go_pprof(&["-comments", second_name]);
    for expected in [
        "every allocation is recorded",
        "bytes in use, standard error 0 (0.0 %)",
        "bytes allocated, standard error ",
        "heap: counted, not sampled: ",
        "no sample was dropped",
        "process: 4711 bytes resident",
        "process: 4000 bytes count against the memory limit of 5000",
    ] {
        assert!(comments.contains(expected), "no `{expected}` in {comments}");
    }
    let raw = peers::go_pprof(&["-raw", second_name]);
    assert!(raw.contains("inuse_space/bytes[dflt]"), "{raw}");
    drop((boxed, kept, grown));
}
