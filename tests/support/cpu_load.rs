//! Workloads with a known distribution of CPU time, and checks of the profiles of them.

use std::fs;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use marple::internals::base::{Clock, Hertz, SystemClock};
use marple::internals::cpu::CpuSession;
use marple::internals::cpu::error::Error;
use marple::internals::cpu::options::Options;
use marple::internals::model::{CpuEngine, LabelValue, Profile, Sample};
use rustix::time::{ClockId, clock_gettime};

/// Sessions are unique in a process, so the tests of a program run one at a time.
pub(crate) fn serial_guard() -> MutexGuard<'static, ()> {
    static SERIAL: Mutex<()> = Mutex::new(());
    SERIAL.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Returns the engines that this machine allows, `perf` first.
pub(crate) fn engines() -> Vec<CpuEngine> {
    [CpuEngine::Perf, CpuEngine::Timer]
        .into_iter()
        .filter(|&engine| match start(engine, 99) {
            Ok(session) => {
                assert!(session.engine().starts_with(engine.name()), "{}", session.engine());
                true
            }
            Err(Error::EngineUnavailable { engine: "perf", why }) => {
                println!("perf is refused here: {why}");
                false
            }
            Err(error) => panic!("{engine}: {error}"),
        })
        .collect()
}

pub(crate) fn start(engine: CpuEngine, frequency: u32) -> Result<CpuSession, Error> {
    let options = Options { engine, frequency: Hertz(frequency), ..Options::default() };
    CpuSession::start_with_options(&options, SystemClock.anchor())
}

pub(crate) fn stop(session: CpuSession) -> Profile {
    session.stop(SystemClock.now()).unwrap()
}

pub(crate) fn cpu_time(clock: ClockId) -> Duration {
    let time = clock_gettime(clock);
    Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
}

/// Uses CPU time at the same cost in every caller. Callers pass different seeds, so that the
/// optimizer does not merge them.
#[inline(always)]
fn burn_until(seed: u64, until: Duration) -> u64 {
    let mut state = seed;
    while cpu_time(ClockId::ThreadCPUTime) < until {
        for _ in 0..20_000 {
            state = black_box(state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(seed));
        }
    }
    state
}

#[inline(never)]
pub(crate) fn burn_fifty(until: Duration) -> u64 {
    burn_until(5, until)
}

#[inline(never)]
pub(crate) fn burn_thirty(until: Duration) -> u64 {
    burn_until(3, until)
}

#[inline(never)]
pub(crate) fn burn_twenty(until: Duration) -> u64 {
    burn_until(2, until)
}

pub(crate) const BURN_FUNCTIONS: [&str; 3] = ["::burn_fifty", "::burn_thirty", "::burn_twenty"];
pub(crate) const SHARES: [f64; 3] = [0.5, 0.3, 0.2];

/// Uses `total` of CPU time of the calling thread: 50, 30 and 20 % of it in three functions. They
/// alternate, so that a slow phase of the machine affects all of them.
pub(crate) fn burn(total: Duration) {
    let end = cpu_time(ClockId::ThreadCPUTime) + total;
    let now = || cpu_time(ClockId::ThreadCPUTime);
    while now() < end {
        black_box(burn_fifty(end.min(now() + Duration::from_millis(50))));
        black_box(burn_thirty(end.min(now() + Duration::from_millis(30))));
        black_box(burn_twenty(end.min(now() + Duration::from_millis(20))));
    }
}

/// Starts threads called `burner`, each of which uses `total` of CPU time.
pub(crate) fn burn_on_threads(threads: usize, total: Duration) {
    thread::scope(|scope| {
        for _ in 0..threads {
            let burner = thread::Builder::new().name("burner".into());
            burner.spawn_scoped(scope, move || burn(total)).unwrap();
        }
    });
}

/// Guard that lets the threads of a scope end, even if the test panics.
pub(crate) struct StopOnDrop<'a>(pub(crate) &'a AtomicBool);

impl Drop for StopOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

/// Returns the sum of `column` below each of the functions in `marks`, over the threads called
/// `thread`.
pub(crate) fn sums_below<const N: usize>(
    profile: &Profile,
    thread: &str,
    functions: [&str; N],
    column: usize,
) -> [i64; N] {
    functions.map(|mark| {
        let samples =
            profile.samples.iter().filter(|sample| thread_name(profile, sample) == thread);
        samples
            .filter(|sample| {
                function_names(profile, sample).iter().any(|name| name.ends_with(mark))
            })
            .map(|sample| sample.values[column])
            .sum()
    })
}

/// Checks the burner threads' time in the three functions. Each fraction must be within four
/// standard errors, which one run in 16,000 exceeds. Nearly all time must be below the three
/// functions, which proves complete and named stacks.
#[track_caller]
pub(crate) fn check_burners(profile: &Profile, context: &str) {
    let by_weight = sums_below(profile, "burner", BURN_FUNCTIONS, 1);
    let named_weight: i64 = by_weight.iter().sum();
    let sample_count: i64 = sums_below(profile, "burner", BURN_FUNCTIONS, 0).iter().sum();
    assert!(sample_count > 50, "{context}: {sample_count} samples; {:?}", profile.comments);
    for (share, cpu) in SHARES.into_iter().zip(by_weight) {
        let found = cpu as f64 / named_weight as f64;
        let bound = 4.0 * (share * (1.0 - share) / sample_count as f64).sqrt();
        assert!((found - share).abs() <= bound, "{context}: {found:.3} of {share}, +-{bound:.3}");
    }
    let all: i64 = profile
        .samples
        .iter()
        .filter(|sample| thread_name(profile, sample) == "burner")
        .map(|sample| sample.values[1])
        .sum();
    assert!(named_weight * 100 >= all * 95, "{context}: {named_weight} of {all}");
}

/// Returns the function names of a sample, innermost first.
pub(crate) fn function_names(profile: &Profile, sample: &Sample) -> Vec<String> {
    let frames = profile.stacks.frames(sample.stack);
    frames
        .flat_map(|frame| &profile.frames.get(frame).lines)
        .filter_map(|line| profile.functions.get(line.function.index()))
        .map(|function| profile.strings.get(function.name).to_owned())
        .collect()
}

pub(crate) fn thread_name<'a>(profile: &'a Profile, sample: &Sample) -> &'a str {
    label(profile, sample, "thread").expect("every sample has the name of its thread")
}

pub(crate) fn label<'a>(profile: &'a Profile, sample: &Sample, key: &str) -> Option<&'a str> {
    let label = sample.labels.iter().find(|label| profile.strings.get(label.key) == key)?;
    match label.value {
        LabelValue::Text(text) => Some(profile.strings.get(text)),
        LabelValue::Number(..) => None,
    }
}

/// Returns `true` if SIGPROF is in this set of `/proc/self/status`: `SigCgt` for caught signals,
/// `SigIgn` for ignored ones.
pub(crate) fn sigprof_is_in(set: &str) -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix(set)?.strip_prefix(':'));
    u64::from_str_radix(line.unwrap().trim(), 16).unwrap() >> (libc::SIGPROF - 1) & 1 == 1
}

/// Returns the periods that a profile states as expected, recorded and lost.
pub(crate) fn stated_periods(profile: &Profile) -> (i64, i64, i64) {
    let comment = profile.comments.iter().find(|text| text.starts_with("expected ")).unwrap();
    let words: Vec<&str> = comment.split([' ', ',']).collect();
    let after = |word: &str| {
        let at = words.iter().rposition(|other| *other == word).unwrap();
        words[at + 1].parse().unwrap()
    };
    (after("expected"), after("got"), after("lost"))
}

/// Returns the CPU time in `profile`, in periods.
pub(crate) fn cpu_periods(profile: &Profile) -> i64 {
    profile.total("cpu").unwrap() / profile.period
}
