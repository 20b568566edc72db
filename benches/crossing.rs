//! Latency from memory crossing a rule's threshold to a complete heap profile on disk.
//!
//! `cargo bench --bench crossing`; `-- --quick` takes a third of the rounds.
//!
//! Each row has a name, a value, a goal, and `pass` or `short`. The clock starts before the
//! allocation, whose pages take a while to touch, and stops when the file has its final name. Ticks
//! are 250 ms apart (the default), and crossings are spread over the time between two ticks. So
//! half a tick of the median is the wait for the next tick.

use std::alloc::System;
use std::hint::black_box;
use std::path::Path;
use std::time::{Duration, Instant};
use std::{fs, thread};

use marple::config::{BudgetSettings, DiskReserve, StoreSettings, ToggleSettings};
use marple::internals::base::Bytes;
use marple::internals::model::{Metric, Rule};
use marple::{Builder, CaptureKind, Settings};

#[global_allocator]
static ALLOCATOR: marple::Allocator<System> = marple::Allocator::new(System);

const ROUNDS: usize = 27;
const MIB: usize = 1 << 20;
const GOAL_MILLIS: f64 = 300.0;
const WAIT_TIMEOUT: Duration = Duration::from_secs(20);

fn main() {
    // `cargo test --all-targets` runs benches too; only `cargo bench` passes `--bench`.
    if !std::env::args().any(|arg| arg == "--bench") {
        return;
    }
    let quick = std::env::args().any(|arg| arg == "--quick");
    let rounds = if quick { ROUNDS / 3 } else { ROUNDS };
    for (metric, name) in [(Metric::Rss, "resident memory"), (Metric::Heap, "live heap")] {
        let mut millis: Vec<f64> = measure_crossings(&metric, rounds);
        millis.sort_by(f64::total_cmp);
        let percentile = |percent: usize| millis[(millis.len() - 1) * percent / 100];
        let [p10, p50, p90] = [10, 50, 90].map(percentile);
        let verdict = if p50 <= GOAL_MILLIS { "pass" } else { "short" };
        println!("{name}: threshold to profile, p50, ms  {p50:.0}  <= {GOAL_MILLIS}  {verdict}");
        println!("{name}: threshold to profile, p10 and p90, ms  {p10:.0} {p90:.0}  -  -");
    }
}

/// Returns the latency of each of `rounds` crossings of a rule over `metric`, in milliseconds.
fn measure_crossings(metric: &Metric, rounds: usize) -> Vec<f64> {
    let temp_dir = tempfile::tempdir().unwrap();
    let dir = temp_dir.path().join("captures");
    let base = if *metric == Metric::Rss { resident_bytes() } else { 0 };
    let rule = Rule {
        name: "crossing".into(),
        abs: Some((base + 128 * MIB) as f64),
        cooldown: Duration::from_millis(1),
        capture: [CaptureKind::Heap].into(),
        duration: Duration::from_millis(10),
        ..Rule::new(metric.clone())
    };
    let settings = Settings {
        dir: dir.clone(),
        interval: Duration::from_millis(250),
        rules: vec![rule],
        budget: BudgetSettings {
            incidents_per_day: 1000,
            min_between_incidents: Duration::ZERO,
            join_window: Duration::ZERO,
            ..BudgetSettings::default()
        },
        store: StoreSettings {
            min_free_space: DiskReserve::Bytes(Bytes(0)),
            ..StoreSettings::default()
        },
        toggle: ToggleSettings { signal: None, ..ToggleSettings::default() },
        ..Settings::default()
    };
    let agent = Builder::from_settings(settings).start().unwrap();
    let handle = agent.handle();
    let has_no_incident = || handle.status().wait(WAIT_TIMEOUT).unwrap().incidents.is_empty();
    // Rules are evaluated once their window of ten ticks is full.
    thread::sleep(Duration::from_secs(3));
    let round = |round: usize| {
        let before = heap_profile_count(&dir);
        // Varies the phase relative to the tick.
        thread::sleep(Duration::from_millis(500 + (round as u64 * 97) % 250));
        let crossed = Instant::now();
        let memory = black_box(vec![1_u8; 136 * MIB]);
        wait_until("a heap profile", || heap_profile_count(&dir) > before);
        let millis = crossed.elapsed().as_secs_f64() * 1e3;
        drop(memory);
        wait_until("the end of the incident", has_no_incident);
        millis
    };
    (0..rounds).map(round).collect()
}

/// Returns the number of heap profiles in `dir`.
fn heap_profile_count(dir: &Path) -> usize {
    let list = |dir: &Path| fs::read_dir(dir).into_iter().flatten().flatten();
    list(dir)
        .filter(|entry| entry.path().is_dir())
        .flat_map(|entry| list(&entry.path()))
        .filter(|file| file.file_name().to_string_lossy().ends_with(".memory.pprof"))
        .count()
}

fn wait_until(condition_name: &str, is_met: impl Fn() -> bool) {
    let start = Instant::now();
    while !is_met() {
        assert!(start.elapsed() < WAIT_TIMEOUT, "timed out waiting for {condition_name}");
        thread::sleep(Duration::from_millis(1));
    }
}

/// Returns the resident bytes of this process.
fn resident_bytes() -> usize {
    let statm = fs::read_to_string("/proc/self/statm").unwrap();
    let pages: usize = statm.split(' ').nth(1).unwrap().parse().unwrap();
    pages * 4096
}
