//! Threads that start and end, and sessions that start and stop, while signals are in flight.

use std::fs;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use marple::internals::model::CpuEngine;
use rustix::time::ClockId;

use crate::support::counting::allocations;
use crate::support::cpu_load::{
    StopOnDrop, burn, cpu_time, engines, serial_guard, sigprof_is_in, start, stated_periods, stop,
};

/// Starts threads that live for about 4 ms of CPU time each, until `stop` is set.
fn spawn_short_threads(stop: &AtomicBool) {
    while !stop.load(Ordering::Relaxed) {
        thread::Builder::new()
            .name("mayfly".into())
            .spawn(|| burn(Duration::from_millis(4)))
            .unwrap()
            .join()
            .unwrap();
    }
}

#[test]
fn short_lived_thread_time_is_sampled_or_counted_lost() {
    let _serial = serial_guard();
    for engine in engines() {
        let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
        let before = descriptors();
        let session = start(engine, 99).unwrap();
        let stop_flag = AtomicBool::new(false);
        let cpu_before = cpu_time(ClockId::ProcessCPUTime);
        thread::scope(|scope| {
            let _stop = StopOnDrop(&stop_flag);
            for _ in 0..2 {
                scope.spawn(|| spawn_short_threads(&stop_flag));
            }
            while cpu_time(ClockId::ProcessCPUTime) - cpu_before < Duration::from_secs(2) {
                thread::yield_now();
            }
        });
        let profile = stop(session);
        let (expected, got, lost) = stated_periods(&profile);
        println!("{engine}: {:?} {:?}", profile.comments, profile.losses);
        assert!(expected >= 190, "{:?}", profile.comments);
        let sum = (got + lost) as f64 / expected as f64;
        assert!((0.99..1.1).contains(&sum), "{engine}: {:?}", profile.comments);
        assert_eq!(descriptors(), before, "{engine} leaves descriptors");
    }
}

/// Starts and stops sessions under load, and calls `check` after each. Signals are in flight at
/// each stop, and the default action of SIGPROF ends the process.
pub(crate) fn restart_sessions_under_load(engine: CpuEngine, sessions: usize, check: impl Fn()) {
    let stop_flag = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop_flag);
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop_flag.load(Ordering::Relaxed) {
                    burn(Duration::from_millis(1));
                }
            });
        }
        let mut samples = 0;
        for session_index in 0..sessions {
            let session = start(engine, 1000).unwrap();
            thread::yield_now();
            if session_index % 3 == 0 {
                thread::sleep(Duration::from_millis(2));
            }
            samples += stop(session).total("samples").unwrap();
            check();
        }
        assert!(samples > 0, "no session saw the load");
    });
}

#[test]
fn start_and_stop_under_load_does_not_kill_process() {
    let _serial = serial_guard();
    for engine in engines() {
        restart_sessions_under_load(engine, 200, || {
            assert!(engine != CpuEngine::Timer || sigprof_is_in("SigCgt"), "the handler is gone");
        });
    }
}

#[test]
fn signal_handler_allocates_nothing() {
    let _serial = serial_guard();
    for engine in engines() {
        let session = start(engine, 1000).unwrap();
        let allocated = thread::spawn(|| {
            burn(Duration::from_millis(50));
            let before = allocations();
            burn(Duration::from_millis(500));
            allocations() - before
        });
        assert_eq!(allocated.join().unwrap(), 0, "{engine}");
        let (_, got, _) = stated_periods(&stop(session));
        assert!(got > 100, "{engine}: {got}");
    }
    assert!(allocations() > 0, "the count counts");
}
