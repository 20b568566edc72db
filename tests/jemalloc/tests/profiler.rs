//! Tests of a program with jemalloc: it gets heap profiles from jemalloc's own profiler, or an
//! error that names the missing setting. jemalloc reads its settings before main, so each test runs
//! itself in a separate process.

#[path = "../../support/host.rs"]
mod host;
#[path = "../../support/peers.rs"]
mod peers;

use std::hint::black_box;
use std::process::Command;

use host::{Host, WAIT_TIMEOUT, settings};
use marple::internals::model::{Manifest, Outcome};
use marple::{CaptureKind, Settings};
use tikv_jemallocator::Jemalloc;

#[global_allocator]
static ALLOCATOR: Jemalloc = Jemalloc;

const INNER_ENV: &str = "MARPLE_TEST_JEMALLOC";
const BLOCKS: usize = 1024;
const SIZE: usize = 64 << 10;

/// Returns `true` in the process with these settings. Elsewhere it starts that process, which must
/// succeed, and returns `false`.
fn is_inner_process(test: &str, jemalloc: &str) -> bool {
    if std::env::var_os(INNER_ENV).is_some() {
        return true;
    }
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "--nocapture", test])
        .env(INNER_ENV, "1")
        .env("_RJEM_MALLOC_CONF", jemalloc)
        .output()
        .unwrap();
    let output_text = [output.stdout, output.stderr].concat();
    println!("{}", String::from_utf8_lossy(&output_text));
    assert!(output.status.success(), "with _RJEM_MALLOC_CONF={jemalloc}: {}", output.status);
    false
}

#[inline(never)]
fn leak_blocks() {
    for _ in 0..BLOCKS {
        std::mem::forget(black_box(Vec::<u8>::with_capacity(black_box(SIZE))));
    }
}

/// Starts and stops a heap capture, with a leak in between.
fn capture_heap() -> (Host, Vec<(std::path::PathBuf, Manifest)>) {
    let host = Host::start(Settings { rules: Vec::new(), ..settings() });
    host.handle().start_capture([CaptureKind::Heap]).wait(WAIT_TIMEOUT).unwrap();
    host::wait_for("the capture to have begun or failed", || {
        let incidents = host.incidents();
        let (_, manifest) = incidents.first()?;
        let failed = manifest.captures.iter().any(|capture| capture.outcome == Outcome::Failed);
        (failed || !manifest.artifacts.is_empty()).then_some(())
    });
    leak_blocks();
    host.handle().stop_capture().wait(WAIT_TIMEOUT).unwrap();
    let closed = host.wait_for_closed(1);
    (host, closed)
}

#[test]
fn go_names_leaking_function() {
    let conf = "prof:true,prof_active:false,lg_prof_sample:12";
    if !is_inner_process("go_names_leaking_function", conf) {
        return;
    }
    // A leak before the capture is neither sampled nor in the profile.
    leak_blocks();
    let (host, closed) = capture_heap();
    let (dir, manifest) = &closed[0];
    let capture = &manifest.captures[0];
    assert_eq!(capture.engine, "jemalloc");
    assert_eq!(manifest.artifacts.len(), 2, "one at each end");
    let last = dir.join(&manifest.artifacts[1].file);
    let top = peers::go_pprof(&["-top", "-unit=MB", "-nodefraction=0", last.to_str().unwrap()]);
    println!("{top}");
    let first = top.lines().skip_while(|line| !line.contains("flat%")).nth(1).unwrap();
    let words: Vec<&str> = first.split_whitespace().collect();
    assert!(words.last().unwrap().ends_with("profiler::leak_blocks"), "{top}");
    let megabytes: f64 = words[0].trim_end_matches("MB").parse().unwrap();
    assert!((63.0..66.0).contains(&megabytes), "64 MiB of blocks that are all sampled: {top}");
    let comments = peers::go_pprof(&["-comments", last.to_str().unwrap()]);
    for expected in ["one sample in 4096 bytes", "prof_active:false", "prof_accum:true"] {
        assert!(comments.contains(expected), "no `{expected}` in {comments}");
    }
    // Sampling is off again after the capture.
    drop(host);
    leak_blocks();
    let (_host, closed) = capture_heap();
    let (dir, manifest) = &closed[0];
    let first = dir.join(&manifest.artifacts[0].file);
    let top = peers::go_pprof(&["-top", "-unit=MB", "-nodefraction=0", first.to_str().unwrap()]);
    let total = top.lines().find(|line| line.starts_with("Showing nodes")).unwrap();
    assert!(total.contains("of 6"), "what was leaked between the captures is in it: {total}");
}

#[test]
fn capture_without_prof_names_missing_setting() {
    if !is_inner_process("capture_without_prof_names_missing_setting", "prof:false") {
        return;
    }
    let (_host, closed) = capture_heap();
    let output_text = format!("{:?}", closed[0].1.captures);
    assert!(output_text.contains("prof:true in _RJEM_MALLOC_CONF"), "{output_text}");
}
