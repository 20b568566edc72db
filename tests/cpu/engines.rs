//! Samples of each engine in threads with a known workload.

use std::time::Duration;

use marple::internals::base::{Clock, Hertz, SystemClock};
use marple::internals::cpu::CpuSession;
use marple::internals::cpu::error::Error;
use marple::internals::symbols;

use crate::support::cpu_load::{
    burn, burn_on_threads, check_burners, cpu_periods, engines, function_names, label,
    serial_guard, start, stated_periods, stop,
};

#[test]
fn function_times_match_workload_for_any_thread_count() {
    let _serial = serial_guard();
    for engine in engines() {
        for threads in [1, 2, 8] {
            let context = format!("{engine}, {threads} threads");
            let session = start(engine, 250).unwrap();
            burn_on_threads(threads, Duration::from_millis(2400) / threads as u32);
            let mut profile = stop(session);
            let report = symbols::symbolize(&mut profile);
            assert!(report.problems.is_empty(), "{:?}", report.problems);
            println!("{context}: {:?} {:?}", profile.comments, profile.losses);
            check_burners(&profile, &context);
            let cut = profile.samples.iter().filter(|s| label(&profile, s, "stack").is_some());
            let cut: i64 = cut.map(|sample| sample.values[0]).sum();
            assert!(cut * 20 <= profile.total("samples").unwrap(), "{context}: {cut} cut");
        }
    }
}

#[test]
fn sampled_plus_lost_time_equals_cpu_time() {
    let _serial = serial_guard();
    for engine in engines() {
        for (frequency, threads) in [(99, 2), (1000, 1), (1000, 8)] {
            let session = start(engine, frequency).unwrap();
            burn_on_threads(threads, Duration::from_secs(3) / threads as u32);
            let profile = stop(session);
            let (expected, got, lost) = stated_periods(&profile);
            let context =
                format!("{engine} {frequency} Hz {threads} threads: {:?}", profile.comments);
            println!("{context} {:?}", profile.losses);
            assert_eq!(got, cpu_periods(&profile), "{context}");
            let of = |n: i64| n as f64 / expected as f64;
            assert!((of(got + lost) - 1.0).abs() <= 0.02, "{context}");
            assert!(of(got) > 0.9, "{context}");
        }
    }
}

#[test]
fn profile_declares_sample_types_and_units() {
    let _serial = serial_guard();
    for engine in engines() {
        let session = start(engine, 100).unwrap();
        burn(Duration::from_millis(500));
        let mut profile = stop(session);
        let types: Vec<_> = profile.sample_types.iter().map(|t| (t.name, t.unit)).collect();
        assert_eq!(types, [("samples", "count"), ("cpu", "nanoseconds")]);
        assert_eq!(profile.default_sample_type, "cpu");
        assert_eq!((profile.period_type.name, profile.period), ("cpu", 10_000_000));
        assert!(profile.duration > Duration::ZERO);
        for expected in ["recorded by the engine", "standard error of a share", "phase: "] {
            assert!(
                profile.comments.iter().any(|c| c.contains(expected)),
                "{:?}",
                profile.comments
            );
        }
        let mapped = profile.frames.iter().filter(|frame| frame.mapping.is_some()).count();
        assert!(mapped * 10 >= profile.frames.iter().len() * 9, "{mapped} frames have a file");
        assert_eq!(profile.mappings[0].path, std::env::current_exe().unwrap());
        symbols::symbolize(&mut profile);
        // The innermost frame is the work, not the profiler's signal handler.
        for sample in &profile.samples {
            let function_names = function_names(&profile, sample);
            assert!(
                !function_names.iter().any(|name| name.contains("signal::handler")),
                "{function_names:?}"
            );
        }
    }
}

#[test]
fn second_session_is_rejected_without_affecting_first() {
    let _serial = serial_guard();
    for engine in engines() {
        let first = start(engine, 99).unwrap();
        assert!(matches!(start(engine, 99), Err(Error::Busy)));
        burn(Duration::from_millis(300));
        assert!(stop(first).total("samples").unwrap() > 0);
        drop(start(engine, 99).unwrap());
    }
}

#[test]
fn out_of_range_frequencies_are_rejected() {
    let _serial = serial_guard();
    for frequency in [0, 1001, u32::MAX] {
        let refused = CpuSession::start(Hertz(frequency), SystemClock.anchor()).map(drop);
        let Err(Error::Frequency { asked, .. }) = refused else { panic!("{frequency} Hz") };
        assert_eq!(asked, Hertz(frequency));
    }
    for frequency in [1, 1000] {
        drop(CpuSession::start(Hertz(frequency), SystemClock.anchor()).unwrap());
    }
}

/// Two threads of 256 do all the work, so dividing rings or slots equally among threads must not
/// lose their samples.
#[test]
fn busy_threads_among_many_idle_ones_lose_no_samples() {
    let _serial = serial_guard();
    for engine in engines() {
        let (rest, wait) = std::sync::mpsc::channel::<()>();
        let wait = std::sync::Mutex::new(wait);
        std::thread::scope(|scope| {
            for _ in 0..254 {
                scope.spawn(|| wait.lock().unwrap().recv());
            }
            let session = start(engine, 99).unwrap();
            burn_on_threads(2, Duration::from_secs(2));
            let profile = stop(session);
            drop(rest);
            let (expected, got, _) = stated_periods(&profile);
            println!("{engine}: {:?} {:?}", profile.comments, profile.losses);
            assert!(got * 100 >= expected * 90, "{engine}: {:?}", profile.comments);
        });
    }
}
