//! CPU profiles of this process by the `pprof` crate. SIGPROF is the process', so these tests take turns.
#![cfg(all(feature = "cpu", target_os = "linux", target_env = "gnu"))]

use std::fs;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use marple::base::{Clock, Hertz, SystemClock};
use marple::cpu::{Error, Options, Session};
use marple::model::{CpuEngine, LabelValue, Profile};
use marple::symbols;
use rustix::time::{ClockId, clock_gettime};

static TURN: Mutex<()> = Mutex::new(());

fn turn() -> MutexGuard<'static, ()> {
    TURN.lock().unwrap_or_else(PoisonError::into_inner)
}

fn start(frequency: u32) -> Result<Session, Error> {
    let engine = CpuEngine::Pprof;
    let options = Options { engine, frequency: Hertz(frequency), ..Options::default() };
    Session::with(&options, SystemClock.anchor())
}

fn cpu_time(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Work that costs the same wherever it is done; the caller passes which it is, so that two functions
/// that do it are not folded into one.
#[inline(always)]
fn work(seed: u64, until: Duration) -> u64 {
    let mut state = seed;
    while cpu_time(ClockId::ThreadCPUTime) < until {
        for _ in 0..20_000 {
            state = black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed));
        }
    }
    state
}

#[inline(never)]
fn burn_seventy(until: Duration) -> u64 {
    work(7, until)
}

#[inline(never)]
fn burn_thirty(until: Duration) -> u64 {
    work(3, until)
}

/// Uses `total` of CPU time of the calling thread, 70 % in one function and 30 % in another, turn by
/// turn so that no phase of the machine meets only one of them.
fn burn(total: Duration) {
    let end = cpu_time(ClockId::ThreadCPUTime) + total;
    loop {
        let now = cpu_time(ClockId::ThreadCPUTime);
        if now >= end {
            return;
        }
        black_box(burn_seventy(now + Duration::from_millis(70)));
        let now = cpu_time(ClockId::ThreadCPUTime);
        black_box(burn_thirty(now + Duration::from_millis(30)));
    }
}

/// The samples under each of the functions that `marks` name, of those of thread `thread`.
fn samples_under<const N: usize>(profile: &Profile, thread: &str, marks: [&str; N]) -> [i64; N] {
    marks.map(|mark| {
        let is_marked = |name: &str| name.ends_with(mark);
        profile
            .samples
            .iter()
            .filter(|sample| thread_of(profile, sample) == thread)
            .filter(|sample| {
                let frames = profile.stacks.frames(sample.stack);
                frames
                    .flat_map(|frame| &profile.frames.get(frame).lines)
                    .filter_map(|line| profile.functions.get(line.function.index()))
                    .any(|function| is_marked(profile.strings.get(function.name)))
            })
            .map(|sample| sample.values[0])
            .sum()
    })
}

fn thread_of<'a>(profile: &'a Profile, sample: &marple::model::Sample) -> &'a str {
    let [label] = &sample.labels[..] else { panic!("one label: {sample:?}") };
    assert_eq!(profile.strings.get(label.key), "thread");
    match label.value {
        LabelValue::Text(name) => profile.strings.get(name),
        LabelValue::Number(..) => panic!("a thread's name is a text"),
    }
}

fn innermost_names(profile: &Profile) -> Vec<String> {
    let innermost = |sample: &marple::model::Sample| profile.stacks.frames(sample.stack).next();
    profile
        .samples
        .iter()
        .filter_map(innermost)
        .filter_map(|frame| profile.frames.get(frame).lines.first())
        .filter_map(|line| profile.functions.get(line.function.index()))
        .map(|function| profile.strings.get(function.name).to_owned())
        .collect()
}

#[test]
fn the_time_of_two_functions_is_theirs() {
    let _turn = turn();
    let session = start(99).unwrap();
    assert_eq!(session.engine(), "pprof");
    thread::Builder::new()
        .name("burner".into())
        .spawn(|| burn(Duration::from_secs(5)))
        .unwrap()
        .join()
        .unwrap();
    let mut profile = session.stop(SystemClock.now()).unwrap();
    let report = symbols::name_functions(&mut profile);
    assert!(report.problems.is_empty(), "{:?}", report.problems);

    let [seventy, thirty] = samples_under(&profile, "burner", ["::burn_seventy", "::burn_thirty"]);
    let both = seventy + thirty;
    let of_burner: i64 = profile
        .samples
        .iter()
        .filter(|sample| thread_of(&profile, sample) == "burner")
        .map(|sample| sample.values[0])
        .sum();
    assert!(both > 50, "too few samples to tell: {both}; {:?}", profile.comments);
    // Nearly everything that thread does lies under one of the two: whole stacks, and named.
    assert!(both * 100 >= of_burner * 95, "{both} of {of_burner}");
    // Four standard errors of the binomial over the samples that were got: one run in 16,000 is beyond.
    let share = seventy as f64 / both as f64;
    let bound = 4.0 * (0.7 * 0.3 / both as f64).sqrt();
    assert!((share - 0.7).abs() <= bound, "share {share:.3}, bound {bound:.3}, {both} samples");

    // What is innermost is the work, not the profiler looking at it.
    for name in innermost_names(&profile) {
        assert!(!name.contains("perf_signal_handler") && !name.starts_with("pprof::"), "{name}");
        assert!(!name.contains("_Unwind") && !name.contains("restore_rt"), "{name}");
    }
}

#[test]
fn a_profile_says_what_its_numbers_are_and_what_is_missing() {
    let _turn = turn();
    let session = start(100).unwrap();
    burn(Duration::from_millis(500));
    let now = SystemClock.now();
    let profile = session.stop(now).unwrap();
    let types: Vec<_> = profile.sample_types.iter().map(|kind| (kind.name, kind.unit)).collect();
    assert_eq!(types, [("samples", "count"), ("cpu", "nanoseconds")]);
    assert_eq!(profile.default_sample_type, "cpu");
    assert_eq!((profile.period_type.name, profile.period), ("cpu", 10_000_000));
    let (samples, cpu) = (profile.total("samples").unwrap(), profile.total("cpu").unwrap());
    assert_eq!(cpu, samples * profile.period);
    assert!(profile.duration > Duration::ZERO && profile.duration < Duration::from_secs(600));

    let said = profile.comments.iter().find(|text| text.starts_with("expected ")).unwrap();
    let numbers: Vec<i64> = said.split([' ', ',']).filter_map(|word| word.parse().ok()).collect();
    let [.., got, told] = numbers[..] else { panic!("{said}") };
    let expected = numbers[0];
    assert_eq!(got, samples, "{said}");
    assert!(expected >= 50, "half a second of CPU time was used: {said}");
    let lost: u64 = profile
        .losses
        .iter()
        .filter(|loss| loss.cause.starts_with("CPU samples missing"))
        .map(|loss| loss.count)
        .sum();
    assert!(lost == 0 || lost as i64 == expected - got, "{said}, {:?}", profile.losses);
    assert_eq!(lost as i64, told, "{said}");

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
    let profile = first.stop(SystemClock.now()).unwrap();
    assert!(profile.total("samples").unwrap() > 0, "{:?}", profile.comments);
    drop(start(99).unwrap());
}

#[test]
fn a_dropped_session_stops() {
    let _turn = turn();
    drop(start(99).unwrap());
    assert!(sigprof_is_ignored(), "the handler was left");
    let profile = start(99).unwrap().stop(SystemClock.now()).unwrap();
    assert!(profile.total("samples").unwrap() <= 2, "samples of the session before: {profile:?}");
}

/// Lets the burning threads of a scope end, also when the test fails.
struct StopOnDrop<'a>(&'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Signals are under way whenever a session stops here, and the default action of SIGPROF kills.
#[test]
fn starting_and_stopping_under_load_does_not_kill_the_process() {
    let _turn = turn();
    let stop = AtomicBool::new(false);
    thread::scope(|scope| {
        let _stop = StopOnDrop(&stop);
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Ordering::Relaxed) {
                    burn(Duration::from_millis(1));
                }
            });
        }
        let mut samples = 0;
        for _ in 0..50 {
            let session = start(1000).unwrap();
            thread::yield_now();
            samples += session.stop(SystemClock.now()).unwrap().total("samples").unwrap();
            assert!(sigprof_is_ignored());
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

fn sigprof_is_ignored() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let mask = status.lines().find_map(|line| line.strip_prefix("SigIgn:")).unwrap();
    u64::from_str_radix(mask.trim(), 16).unwrap() >> (libc::SIGPROF - 1) & 1 == 1
}
