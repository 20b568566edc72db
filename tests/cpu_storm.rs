//! A host that does everything which is hard on a profiler, at once, while each engine and wall
//! mode record it at 1000 Hz asked: no crash, no hang, no lost errno, no child process killed, and
//! the host gets on.
//!
//! What storms is in `storm/workers.rs`. Each storm is this program run once more, watched through
//! its standard output: when it says nothing for half a minute, or one of its threads got no
//! further in that time, it hangs. How far it gets with a session and how far without is printed.
//!
//! `STORM_SECONDS` is how long each part of a storm lasts: one session, then turns with a session
//! and without one, then sessions started and stopped as fast as they can be. 3 by default, 30 by
//! hand for more than the minute that was promised:
//!
//! ```text
//! STORM_SECONDS=30 cargo test --release --test cpu_storm -- --nocapture --test-threads 1
//! ```
//!
//! The engine `pprof` is not stormed here: it is for comparison and for platforms without the other
//! two, and it lost one storm of two by a stack overflow of the host on a machine at its limit.
//! `STORM_OF=pprof` puts it in the place of another engine.
//!
//! The program needs nothing but itself, so that it can be copied into an older system;
//! `tests/storm/old-glibc` does that. `STORM_CYCLES` is how many sessions are started and stopped
//! in the tests of that: 100, or 1000 by hand.
#![cfg(all(feature = "cpu", target_os = "linux"))]
// Signals, forks and dlopen are not to be had without it.
#![allow(unsafe_code)]

#[path = "storm/drive.rs"]
mod drive;
#[path = "storm/host_signal.rs"]
mod host_signal;
#[path = "storm/session.rs"]
mod session;
#[path = "storm/watch.rs"]
mod watch;
#[path = "storm/workers.rs"]
mod workers;

use std::sync::{Mutex, PoisonError};

use drive::Engine;
use watch::{Ended, Totals};

/// Two storms at a time would only wait for each other.
static TURN: Mutex<()> = Mutex::new(());

/// Runs `engine`'s storm and the control's, and holds the first to what was promised.
fn storm(engine: Engine, test: &str) {
    if let Some(name) = watch::asked() {
        return session::storm(Engine::of(&name).expect("an engine's name"), watch::seconds());
    }
    let engine = instead_of(engine);
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    match watch::run(test, engine.name()) {
        Ended::Done(totals) => check(engine, &totals),
        Ended::Refused(why) => println!("{engine}: refused here: {why}"),
        ended => panic!("{engine}: {ended}"),
    }
}

/// The engine that `STORM_OF` names instead of this one, so that one can see a storm that is lost:
/// `pprof-rs` on glibc 2.31.
fn instead_of(engine: Engine) -> Engine {
    std::env::var("STORM_OF").ok().and_then(|name| Engine::of(&name)).unwrap_or(engine)
}

fn check(engine: Engine, totals: &Totals) {
    println!("{engine}: {}", totals.remarks.join("; "));
    let mut ratios = Vec::new();
    let Totals { with, without, .. } = totals;
    for (name, &count) in &with.turns {
        let before = without.turns.get(name).copied().unwrap_or(0);
        // By the CPU time of the whole process, so that neighbours do not count.
        let ratio = count as f64 / with.cpu / (before as f64 / without.cpu);
        println!("{engine}: {name:<12} {count:>9}, without {before:>9}, per CPU second {ratio:.3}");
        let idle = workers::MAY_STAND_STILL.contains(&name.as_str());
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
fn the_perf_engine_survives_a_storm() {
    storm(Engine::Perf, "the_perf_engine_survives_a_storm");
}

#[test]
fn the_timer_engine_survives_a_storm() {
    storm(Engine::Timer, "the_timer_engine_survives_a_storm");
}

#[test]
fn wall_mode_survives_a_storm() {
    storm(Engine::Wall, "wall_mode_survives_a_storm");
}

#[test]
fn the_perf_engine_starts_and_stops_under_load() {
    starts_and_stops(Engine::Perf, "the_perf_engine_starts_and_stops_under_load");
}

#[test]
fn the_timer_engine_starts_and_stops_under_load() {
    starts_and_stops(Engine::Timer, "the_timer_engine_starts_and_stops_under_load");
}

#[test]
fn wall_mode_starts_and_stops_under_load() {
    starts_and_stops(Engine::Wall, "wall_mode_starts_and_stops_under_load");
}

#[test]
fn the_pprof_engine_starts_and_stops_under_load() {
    starts_and_stops(Engine::Pprof, "the_pprof_engine_starts_and_stops_under_load");
}

fn starts_and_stops(engine: Engine, test: &str) {
    if let Some(name) = watch::asked() {
        return session::starts_and_stops(Engine::of(&name).expect("an engine's name"));
    }
    let engine = instead_of(engine);
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    match watch::run(test, engine.name()) {
        Ended::Done(totals) => {
            println!("{engine}: {:?}, {:?}", totals.progress, totals.counts);
            assert!(totals.count("samples") > 0, "{engine}: no session saw the load");
        }
        Ended::Refused(why) => println!("{engine}: refused here: {why}"),
        ended => panic!("{engine}: {ended}"),
    }
}

#[test]
fn a_host_with_a_profiling_timer_keeps_it_beside_the_perf_engine() {
    host(Engine::Perf, "a_host_with_a_profiling_timer_keeps_it_beside_the_perf_engine");
}

#[test]
fn a_host_with_a_profiling_timer_keeps_it_beside_the_timer_engine() {
    host(Engine::Timer, "a_host_with_a_profiling_timer_keeps_it_beside_the_timer_engine");
}

#[test]
fn a_host_with_a_profiling_timer_keeps_it_beside_the_pprof_engine() {
    host(Engine::Pprof, "a_host_with_a_profiling_timer_keeps_it_beside_the_pprof_engine");
}

/// Runs a host that has an interval timer and a handler for SIGPROF of its own.
fn host(engine: Engine, test: &str) {
    if let Some(name) = watch::asked() {
        return host_signal::host(Engine::of(&name).expect("an engine's name"));
    }
    let _turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
    match watch::run(test, engine.name()) {
        Ended::Done(totals) => println!("{engine}: {}", totals.remarks.join("; ")),
        ended => panic!("{engine}: {ended}"),
    }
}
