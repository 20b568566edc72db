//! Samples of each engine in threads with a known workload.
#![cfg(all(feature = "cpu", target_os = "linux", target_env = "gnu"))]

mod cpu_support;

use std::time::Duration;

use cpu_support::{
    account, burn, burn_on, check_burners, engines, label, names, start, stop, turn, weight,
};
use marple::base::{Clock, Hertz, SystemClock};
use marple::cpu::{CpuSession, Error};
use marple::symbols;

#[test]
fn the_time_of_functions_is_theirs_on_any_number_of_threads() {
    let _turn = turn();
    for engine in engines() {
        for threads in [1, 2, 8] {
            let told = format!("{engine}, {threads} threads");
            let session = start(engine, 250).unwrap();
            burn_on(threads, Duration::from_millis(2400) / threads as u32);
            let mut profile = stop(session);
            let report = symbols::name_functions(&mut profile);
            assert!(report.problems.is_empty(), "{:?}", report.problems);
            println!("{told}: {:?} {:?}", profile.comments, profile.losses);
            check_burners(&profile, &told);
            let cut = profile.samples.iter().filter(|s| label(&profile, s, "stack").is_some());
            let cut: i64 = cut.map(|sample| sample.values[0]).sum();
            assert!(cut * 20 <= profile.total("samples").unwrap(), "{told}: {cut} cut");
        }
    }
}

#[test]
fn what_was_got_and_what_was_lost_is_the_cpu_time() {
    let _turn = turn();
    for engine in engines() {
        for (frequency, threads) in [(99, 2), (1000, 1), (1000, 8)] {
            let session = start(engine, frequency).unwrap();
            burn_on(threads, Duration::from_secs(3) / threads as u32);
            let profile = stop(session);
            let (expected, got, lost) = account(&profile);
            let told = format!("{engine} {frequency} Hz {threads} threads: {:?}", profile.comments);
            println!("{told} {:?}", profile.losses);
            assert_eq!(got, weight(&profile), "{told}");
            let of = |n: i64| n as f64 / expected as f64;
            assert!((of(got + lost) - 1.0).abs() <= 0.02, "{told}");
            assert!(of(got) > 0.9, "{told}");
        }
    }
}

#[test]
fn a_profile_says_what_its_numbers_are() {
    let _turn = turn();
    for engine in engines() {
        let session = start(engine, 100).unwrap();
        burn(Duration::from_millis(500));
        let mut profile = stop(session);
        let types: Vec<_> = profile.sample_types.iter().map(|t| (t.name, t.unit)).collect();
        assert_eq!(types, [("samples", "count"), ("cpu", "nanoseconds")]);
        assert_eq!(profile.default_sample_type, "cpu");
        assert_eq!((profile.period_type.name, profile.period), ("cpu", 10_000_000));
        assert!(profile.duration > Duration::ZERO);
        for said in ["recorded by the engine", "standard error of a share", "part: "] {
            assert!(profile.comments.iter().any(|c| c.contains(said)), "{:?}", profile.comments);
        }
        let mapped = profile.frames.iter().filter(|frame| frame.mapping.is_some()).count();
        assert!(mapped * 10 >= profile.frames.iter().len() * 9, "{mapped} frames have a file");
        assert_eq!(profile.mappings[0].path, std::env::current_exe().unwrap());
        symbols::name_functions(&mut profile);
        // The innermost frame is the work, not the profiler's signal handler.
        for sample in &profile.samples {
            let names = names(&profile, sample);
            assert!(!names.iter().any(|name| name.contains("signal::handler")), "{names:?}");
        }
    }
}

#[test]
fn a_second_session_is_refused_and_leaves_the_first_alone() {
    let _turn = turn();
    for engine in engines() {
        let first = start(engine, 99).unwrap();
        assert!(matches!(start(engine, 99), Err(Error::Busy)));
        burn(Duration::from_millis(300));
        assert!(stop(first).total("samples").unwrap() > 0);
        drop(start(engine, 99).unwrap());
    }
}

#[test]
fn frequencies_that_nobody_should_ask_for_are_refused() {
    let _turn = turn();
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
fn the_busy_among_many_are_seen_as_well_as_if_they_were_alone() {
    let _turn = turn();
    for engine in engines() {
        let (rest, wait) = std::sync::mpsc::channel::<()>();
        let wait = std::sync::Mutex::new(wait);
        std::thread::scope(|scope| {
            for _ in 0..254 {
                scope.spawn(|| wait.lock().unwrap().recv());
            }
            let session = start(engine, 99).unwrap();
            burn_on(2, Duration::from_secs(2));
            let profile = stop(session);
            drop(rest);
            let (expected, got, _) = account(&profile);
            println!("{engine}: {:?} {:?}", profile.comments, profile.losses);
            assert!(got * 100 >= expected * 90, "{engine}: {:?}", profile.comments);
        });
    }
}
