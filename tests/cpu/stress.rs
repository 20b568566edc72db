//! A host under the loads that are hardest on a profiler, all at once, while each engine and wall
//! mode record it at a requested rate of 1000 Hz.
//!
//! The test fails on a crash, a hang, a lost errno or a killed child process, or if the host makes
//! no progress. The load is in `stress/workers.rs`. Each run is a child process of this program,
//! watched through its standard output. A run hangs if it prints nothing for half a minute, or if
//! one of its threads makes no progress in that time. The test prints the progress with a session
//! and without.
//!
//! `STRESS_SECONDS` is the length of each part of a run: one session, then alternating times with
//! and without a session, then sessions started and stopped as fast as possible. The default is 3.
//! Use 30 by hand for more than the specified minute:
//!
//! ```text
//! STRESS_SECONDS=30 cargo test --release --features pprof --test cpu stress:: -- \
//!     --nocapture --test-threads 1
//! ```
//!
//! The engine `pprof` is not part of the test: it is for comparison and for platforms without the
//! other two. In one of two runs on an overloaded machine the host overflowed its stack with it.
//! `STRESS_OF=pprof` replaces another engine by it.
//!
//! The program needs no other file, so that it can be copied into an older system;
//! `tests/cpu/stress/old-glibc` does that. `STRESS_CYCLES` is the number of sessions that the tests
//! of starting and stopping use: 100, or 1000 by hand.
#![allow(unsafe_code, reason = "signals, forks and `dlopen` cannot be used without")]

mod host_signal;
mod session;
mod watch;
mod workers;

use std::sync::{Mutex, PoisonError};

use watch::{RunResult, Totals};

use crate::support::drive::Engine;
use crate::support::rerun::test_path;

/// Runs at the same time would only slow each other down.
static SERIAL: Mutex<()> = Mutex::new(());

/// Runs the child process with `engine`, with and without sessions, and checks the results.
fn run_stress_test(engine: Engine, test: &str) {
    if let Some(name) = watch::requested_engine() {
        return session::run_stress(
            Engine::from_name(&name).expect("an engine's name"),
            watch::seconds(),
        );
    }
    let engine = replacement_engine(engine);
    let _serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    match watch::run(test, engine.name()) {
        RunResult::Completed(totals) => check_totals(engine, &totals),
        RunResult::Refused(why) => println!("{engine}: refused here: {why}"),
        ended => panic!("{engine}: {ended}"),
    }
}

/// Returns the engine that `STRESS_OF` names, or `engine`. `pprof-rs` on glibc 2.31 is a run that
/// fails.
fn replacement_engine(engine: Engine) -> Engine {
    std::env::var("STRESS_OF").ok().and_then(|name| Engine::from_name(&name)).unwrap_or(engine)
}

fn check_totals(engine: Engine, totals: &Totals) {
    println!("{engine}: {}", totals.remarks.join("; "));
    let mut ratios = Vec::new();
    let Totals { with_session: with, without_session: without, .. } = totals;
    for (name, &count) in &with.iterations {
        let before = without.iterations.get(name).copied().unwrap_or(0);
        // A ratio of CPU time of the whole process, so that the load of other processes has no
        // effect.
        let ratio = count as f64 / with.cpu / (before as f64 / without.cpu);
        println!("{engine}: {name:<12} {count:>9}, without {before:>9}, per CPU second {ratio:.3}");
        let idle = workers::MAY_MAKE_NO_PROGRESS.contains(&name.as_str());
        assert!(idle || totals.progress.get(name) > Some(&0), "{engine}: `{name}` did nothing");
        ratios.extend((before > 0 && count > 0).then_some(ratio));
    }
    ratios.sort_by(f64::total_cmp);
    if let Some(median) = ratios.get(ratios.len() / 2) {
        println!("{engine}: progress with a session over that without, median: {median:.3}");
    }
    assert_eq!(totals.count("errno lost"), 0, "{engine}");
    assert_eq!(totals.count("children killed"), 0, "{engine}");
    assert!(totals.count("samples") > 0, "{engine}: nothing was recorded");
}

#[test]
fn perf_engine_survives_stress() {
    run_stress_test(Engine::Perf, test_path!(perf_engine_survives_stress));
}

#[test]
fn timer_engine_survives_stress() {
    run_stress_test(Engine::Timer, test_path!(timer_engine_survives_stress));
}

#[test]
fn wall_mode_survives_stress() {
    run_stress_test(Engine::Wall, test_path!(wall_mode_survives_stress));
}

#[test]
fn perf_engine_starts_and_stops_under_load() {
    run_start_stop_test(Engine::Perf, test_path!(perf_engine_starts_and_stops_under_load));
}

#[test]
fn timer_engine_starts_and_stops_under_load() {
    run_start_stop_test(Engine::Timer, test_path!(timer_engine_starts_and_stops_under_load));
}

#[test]
fn wall_mode_starts_and_stops_under_load() {
    run_start_stop_test(Engine::Wall, test_path!(wall_mode_starts_and_stops_under_load));
}

#[test]
fn pprof_engine_starts_and_stops_under_load() {
    run_start_stop_test(Engine::Pprof, test_path!(pprof_engine_starts_and_stops_under_load));
}

fn run_start_stop_test(engine: Engine, test: &str) {
    if let Some(name) = watch::requested_engine() {
        return session::starts_and_stops(Engine::from_name(&name).expect("an engine's name"));
    }
    let engine = replacement_engine(engine);
    let _serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    match watch::run(test, engine.name()) {
        RunResult::Completed(totals) => {
            println!("{engine}: {:?}, {:?}", totals.progress, totals.counts);
            assert!(totals.count("samples") > 0, "{engine}: no session saw the load");
        }
        RunResult::Refused(why) => println!("{engine}: refused here: {why}"),
        ended => panic!("{engine}: {ended}"),
    }
}

#[test]
fn host_profiling_timer_keeps_running_with_perf_engine() {
    run_host_timer_test(
        Engine::Perf,
        test_path!(host_profiling_timer_keeps_running_with_perf_engine),
    );
}

#[test]
fn host_profiling_timer_keeps_running_with_timer_engine() {
    run_host_timer_test(
        Engine::Timer,
        test_path!(host_profiling_timer_keeps_running_with_timer_engine),
    );
}

#[test]
fn host_profiling_timer_keeps_running_with_pprof_engine() {
    run_host_timer_test(
        Engine::Pprof,
        test_path!(host_profiling_timer_keeps_running_with_pprof_engine),
    );
}

/// Runs a host with an interval timer and a SIGPROF handler.
fn run_host_timer_test(engine: Engine, test: &str) {
    if let Some(name) = watch::requested_engine() {
        return host_signal::run_host(Engine::from_name(&name).expect("an engine's name"));
    }
    let _serial = SERIAL.lock().unwrap_or_else(PoisonError::into_inner);
    match watch::run(test, engine.name()) {
        RunResult::Completed(totals) => println!("{engine}: {}", totals.remarks.join("; ")),
        ended => panic!("{engine}: {ended}"),
    }
}
