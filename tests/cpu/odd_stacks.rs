//! Unusual stacks: deep recursion and generated code, in profiles of both engines. A test
//! for another kind of stack goes here; blocks from generated code belong to `tests/heap`.
#![allow(unsafe_code, reason = "code cannot be generated without")]

use std::hint::black_box;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use marple::internals::model::{Marker, Profile};
use marple::internals::symbols;
use rustix::time::ClockId;

use crate::support::cpu_load::{cpu_time, engines, function_names, serial_guard, start, stop};
use crate::support::generated_code::map_code;

/// Returns the fraction of `column`, over the samples of the test's threads, whose stacks match
/// `counts`.
fn matching_fraction(profile: &Profile, column: usize, counts: impl Fn(&[String]) -> bool) -> f64 {
    let (mut all, mut part) = (0, 0);
    for sample in &profile.samples {
        let function_names = function_names(profile, sample);
        // Excludes the recorder's own thread.
        if function_names.iter().any(|name| name.contains("marple::cpu::sampling")) {
            continue;
        }
        all += sample.values[column];
        part += if counts(&function_names) { sample.values[column] } else { 0 };
    }
    assert!(all > 0);
    part as f64 / all as f64
}

fn burn_for_millis(millis: u64) -> u64 {
    let end = cpu_time(ClockId::ThreadCPUTime) + Duration::from_millis(millis);
    let mut sum = 0u64;
    while cpu_time(ClockId::ThreadCPUTime) < end {
        (0..5000).for_each(|n| sum = black_box(sum.wrapping_add(n)));
    }
    sum
}

#[inline(never)]
fn descend(levels: u32) -> u64 {
    let padding = black_box([u64::from(levels); 16]);
    black_box(match levels {
        0 => burn_for_millis(7),
        _ => descend(levels - 1),
    }) + padding[3]
}

#[inline(never)]
fn run_shallow() -> u64 {
    black_box(burn_for_millis(3))
}

#[inline(never)]
fn interpret(levels: u32, millis: u64) {
    let end = cpu_time(ClockId::ThreadCPUTime) + Duration::from_millis(millis);
    while cpu_time(ClockId::ThreadCPUTime) < end {
        black_box(descend(levels) + run_shallow());
    }
}

/// A stack copy has 32 or 56 KiB: 400 levels fit into the larger, 2000 levels into neither.
#[test]
fn deep_recursion_is_attributed_to_its_caller() {
    let _serial = serial_guard();
    for engine in engines() {
        for levels in [400, 2000] {
            let session = start(engine, 250).unwrap();
            interpret(levels, 1500);
            let mut profile = stop(session);
            symbols::symbolize(&mut profile);
            let context = format!("{engine}, {levels} levels: {:?}", profile.losses);
            let is_marker = |name: &String| name.starts_with("[truncated");
            let below = matching_fraction(&profile, 1, |names| {
                names.iter().any(|n| n.ends_with("::interpret"))
            });
            let cut = matching_fraction(&profile, 1, |names| names.last().is_some_and(is_marker));
            println!("{context}: {below} below, {cut} cut");
            assert!(below + cut >= 0.97, "{context}: {below} below, {cut} cut");
            assert!(below >= 0.9, "{context}: {below}");
            let deep = matching_fraction(&profile, 1, |names| {
                names.iter().any(|name| name == Marker::Omitted.name())
            });
            assert!(deep >= 0.5, "{context}: {deep}");
        }
    }
}

/// `push rbp; mov rbp, rsp; mov ecx, 2000000; 10 * (imul rax, rax); dec ecx; jnz; pop rbp; ret`
const FILTER: [&[u8]; 3] = [
    &[0x55, 0x48, 0x89, 0xe5, 0xb9, 0x80, 0x84, 0x1e, 0],
    b"\x48\x0f\xaf\xc0\x48\x0f\xaf\xc0\x48\x0f\xaf\xc0\x48\x0f\xaf\xc0\x48\x0f\xaf\xc0\
      \x48\x0f\xaf\xc0\x48\x0f\xaf\xc0\x48\x0f\xaf\xc0\x48\x0f\xaf\xc0\x48\x0f\xaf\xc0",
    &[0xff, 0xc9, 0x75, 0xd4, 0x5d, 0xc3],
];
/// [`FILTER`] without a frame: `mov ecx, 2000000; 10 * (imul rax, rax); dec ecx; jnz; ret`
const FRAMELESS: [&[u8]; 3] =
    [&[0xb9, 0x80, 0x84, 0x1e, 0], FILTER[1], &[0xff, 0xc9, 0x75, 0xd4, 0xc3]];

type FilterFn = extern "C" fn();

#[inline(never)]
fn run_filter(code: FilterFn) {
    black_box((black_box(code)(), ()));
}

struct RemoveOnDrop(String);

impl Drop for RemoveOnDrop {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.0);
    }
}

#[test]
fn generated_code_is_one_row_under_its_caller() {
    let _serial = serial_guard();
    let mapped = map_code(&FILTER, false);
    let map = RemoveOnDrop(format!("/tmp/perf-{}.map", std::process::id()));
    let line = format!("{:x} 1000 rule_17\n", mapped as usize);
    std::fs::write(&map.0, line).unwrap();
    // A map that others may write is ignored, and the umask may be 0.
    std::fs::set_permissions(&map.0, std::fs::Permissions::from_mode(0o644)).unwrap();
    for engine in engines() {
        for (code, row) in [
            (mapped, "rule_17"),
            (map_code(&FILTER, false), "[anonymous code]"),
            (map_code(&FILTER, true), "[memfd:jit]"),
            (map_code(&FRAMELESS, false), "[anonymous code]"),
        ] {
            // SAFETY: the code follows the C calling convention, takes nothing and returns nothing.
            let code = unsafe { std::mem::transmute::<*const (), FilterFn>(code) };
            let session = start(engine, 250).unwrap();
            let end = cpu_time(ClockId::ThreadCPUTime) + Duration::from_millis(800);
            while cpu_time(ClockId::ThreadCPUTime) < end {
                run_filter(code);
            }
            let mut profile = stop(session);
            symbols::symbolize(&mut profile);
            let context = format!("{engine}, {row}: {:?}", profile.losses);
            let caller = matching_fraction(&profile, 1, |names| {
                names.iter().any(|name| name.ends_with("run_filter"))
            });
            let named = matching_fraction(&profile, 1, |names| {
                names.first().is_some_and(|name| name == row)
            });
            println!("{context}: {caller} under its caller, {named} in its row");
            assert!(caller >= 0.9 && named >= 0.9, "{context}: {caller}, {named}");
        }
    }
}
