//! CPU profiles of this process by the `pprof` crate. SIGPROF belongs to the whole process, so
//! these tests run one at a time.

use std::time::Duration;

use marple::internals::cpu::CpuSession;
use marple::internals::cpu::error::Error;
use marple::internals::model::CpuEngine;
use marple::internals::symbols;

use crate::churn::restart_sessions_under_load;
use crate::support::cpu_load::{
    self, burn, burn_on_threads, check_burners, function_names, serial_guard, sigprof_is_in,
    stated_periods, stop,
};

fn start(frequency: u32) -> Result<CpuSession, Error> {
    cpu_load::start(CpuEngine::Pprof, frequency)
}

#[test]
fn function_times_match_workload() {
    let _serial = serial_guard();
    let session = start(99).unwrap();
    assert_eq!(session.engine(), "pprof");
    burn_on_threads(1, Duration::from_secs(5));
    let mut profile = stop(session);
    let report = symbols::symbolize(&mut profile);
    assert!(report.problems.is_empty(), "{:?}", report.problems);
    check_burners(&profile, "pprof");

    // The innermost frame is the work, not the profiler's signal handler.
    for name in profile
        .samples
        .iter()
        .filter_map(|sample| function_names(&profile, sample).into_iter().next())
    {
        assert!(!name.contains("perf_signal_handler") && !name.starts_with("pprof::"), "{name}");
        assert!(!name.contains("_Unwind") && !name.contains("restore_rt"), "{name}");
    }
}

#[test]
fn profile_declares_sample_types_and_losses() {
    let _serial = serial_guard();
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

    let (expected, got, lost_periods) = stated_periods(&profile);
    let comment_lines = &profile.comments;
    assert_eq!(got, samples, "{comment_lines:?}");
    assert!(expected >= 50, "half a second of CPU time was used: {comment_lines:?}");
    let lost: u64 = profile
        .losses
        .iter()
        .filter(|loss| loss.cause.starts_with("CPU samples missing"))
        .map(|loss| loss.count)
        .sum();
    assert!(lost == 0 || lost as i64 == expected - got, "{comment_lines:?}, {:?}", profile.losses);
    assert_eq!(lost as i64, lost_periods, "{comment_lines:?}");

    assert!(
        profile.samples.iter().all(|sample| sample.labels.len() == 1),
        "a thread's name, no more"
    );
    let mapped = profile.frames.iter().filter(|frame| frame.mapping.is_some()).count();
    assert!(mapped * 10 >= profile.frames.iter().len() * 9, "{mapped} frames have a file");
    assert_eq!(profile.mappings[0].path, std::env::current_exe().unwrap());
}

#[test]
fn second_session_is_rejected_without_affecting_first() {
    let _serial = serial_guard();
    let first = start(99).unwrap();
    assert!(matches!(start(99), Err(Error::Busy)));
    burn(Duration::from_millis(300));
    let profile = stop(first);
    assert!(profile.total("samples").unwrap() > 0, "{:?}", profile.comments);
    drop(start(99).unwrap());
}

#[test]
fn dropped_session_stops_and_leaves_no_handler() {
    let _serial = serial_guard();
    drop(start(99).unwrap());
    assert!(sigprof_is_in("SigIgn"), "the handler was left");
    let profile = stop(start(99).unwrap());
    assert!(profile.total("samples").unwrap() <= 2, "samples of the session before: {profile:?}");
}

#[test]
fn start_and_stop_under_load_does_not_kill_process() {
    let _serial = serial_guard();
    restart_sessions_under_load(CpuEngine::Pprof, 50, || assert!(sigprof_is_in("SigIgn")));
}

#[test]
fn unsupported_timer_frequencies_are_rejected() {
    let _serial = serial_guard();
    for frequency in [0, 1001, u32::MAX] {
        let Err(error) = start(frequency) else { panic!("{frequency} Hz was accepted") };
        assert!(matches!(error, Error::Frequency { .. }), "{error}");
        assert!(error.to_string().contains(&frequency.to_string()), "{error}");
    }
    for frequency in [1, 1000] {
        drop(start(frequency).unwrap());
    }
}
