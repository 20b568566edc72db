//! CPU profiles of this process by the `pprof` crate. SIGPROF belongs to the whole process, so
//! these tests run one at a time.
#![cfg(all(feature = "cpu", target_os = "linux", target_env = "gnu"))]

mod cpu_support;

use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use cpu_support::{
    StopOnDrop, account, burn, burn_on, check_burners, names, sigprof_is_in, stop, turn,
};
use marple::cpu::{CpuSession, Error};
use marple::model::CpuEngine;
use marple::symbols;

fn start(frequency: u32) -> Result<CpuSession, Error> {
    cpu_support::start(CpuEngine::Pprof, frequency)
}

#[test]
fn the_time_of_functions_is_theirs() {
    let _turn = turn();
    let session = start(99).unwrap();
    assert_eq!(session.engine(), "pprof");
    burn_on(1, Duration::from_secs(5));
    let mut profile = stop(session);
    let report = symbols::name_functions(&mut profile);
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    check_burners(&profile, "pprof");

    // The innermost frame is the work, not the profiler's signal handler.
    for name in profile.samples.iter().filter_map(|it| names(&profile, it).into_iter().next()) {
        assert!(!name.contains("perf_signal_handler") && !name.starts_with("pprof::"), "{name}");
        assert!(!name.contains("_Unwind") && !name.contains("restore_rt"), "{name}");
    }
}

#[test]
fn a_profile_says_what_its_numbers_are_and_what_is_missing() {
    let _turn = turn();
    let session = start(100).unwrap();
    burn(Duration::from_millis(500));
    let profile = stop(session);
    let types: Vec<_> = profile.sample_types.iter().map(|kind| (kind.name, kind.unit)).collect();
    assert_eq!(types, [("samples", "count"), ("cpu", "nanoseconds")]);
    assert_eq!(profile.default_sample_type, "cpu");
    assert_eq!((profile.period_type.name, profile.period), ("cpu", 10_000_000));
    let (samples, cpu) = (profile.total("samples").unwrap(), profile.total("cpu").unwrap());
    assert_eq!(cpu, samples * profile.period);
    assert!(profile.duration > Duration::ZERO && profile.duration < Duration::from_secs(600));

    let (expected, got, told) = account(&profile);
    let said = &profile.comments;
    assert_eq!(got, samples, "{said:?}");
    assert!(expected >= 50, "half a second of CPU time was used: {said:?}");
    let lost: u64 = profile
        .losses
        .iter()
        .filter(|loss| loss.cause.starts_with("CPU samples missing"))
        .map(|loss| loss.count)
        .sum();
    assert!(lost == 0 || lost as i64 == expected - got, "{said:?}, {:?}", profile.losses);
    assert_eq!(lost as i64, told, "{said:?}");

    assert!(profile.samples.iter().all(|it| it.labels.len() == 1), "a thread's name, no more");
    let mapped = profile.frames.iter().filter(|frame| frame.mapping.is_some()).count();
    assert!(mapped * 10 >= profile.frames.iter().len() * 9, "{mapped} frames have a file");
    assert_eq!(profile.mappings[0].path, std::env::current_exe().unwrap());
}

#[test]
fn a_second_session_is_refused_and_leaves_the_first_alone() {
    let _turn = turn();
    let first = start(99).unwrap();
    assert!(matches!(start(99), Err(Error::Busy)));
    burn(Duration::from_millis(300));
    let profile = stop(first);
    assert!(profile.total("samples").unwrap() > 0, "{:?}", profile.comments);
    drop(start(99).unwrap());
}

#[test]
fn a_dropped_session_stops() {
    let _turn = turn();
    drop(start(99).unwrap());
    assert!(sigprof_is_in("SigIgn"), "the handler was left");
    let profile = stop(start(99).unwrap());
    assert!(profile.total("samples").unwrap() <= 2, "samples of the session before: {profile:?}");
}

/// Signals are in flight whenever a session stops here, and the default action of SIGPROF kills.
#[test]
fn starting_and_stopping_under_load_does_not_kill_the_process() {
    let _turn = turn();
    let over = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopOnDrop(&over);
        for _ in 0..4 {
            scope.spawn(|| {
                while !over.load(Ordering::Relaxed) {
                    burn(Duration::from_millis(1));
                }
            });
        }
        let mut samples = 0;
        for _ in 0..50 {
            let session = start(1000).unwrap();
            thread::yield_now();
            samples += stop(session).total("samples").unwrap();
            assert!(sigprof_is_in("SigIgn"));
        }
        assert!(samples > 0, "no session saw the load");
    });
}

#[test]
fn frequencies_that_no_timer_has_are_refused() {
    let _turn = turn();
    for frequency in [0, 1001, u32::MAX] {
        let Err(error) = start(frequency) else { panic!("{frequency} Hz was accepted") };
        assert!(matches!(error, Error::Frequency { .. }), "{error}");
        assert!(error.to_string().contains(&frequency.to_string()), "{error}");
    }
    for frequency in [1, 1000] {
        drop(start(frequency).unwrap());
    }
}
