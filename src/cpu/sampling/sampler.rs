//! The interface of the `perf` and `timer` engines and the choice between them.

use std::time::Duration;

use super::allotment::Unsampled;
use super::perf::PerfSampler;
use super::timer::TimerSampler;
use crate::base::{Hertz, Moment};
use crate::cpu::Error;
use crate::model::CpuEngine;
use crate::os::stack_snapshot::StackSnapshot;

/// Result of unwinding a sample, as far as the engine needs it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum UnwindOutcome {
    /// The copied stack was sufficient.
    Walked,
    /// The copied stack was too short.
    TooShort,
}

/// Set of threads that a drain reads.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum DrainScope<'t> {
    /// All threads.
    All,
    /// Threads whose rings are filling up, and those given. Samples of other threads stay in their
    /// rings.
    Filled(&'t [u32]),
}

/// A set of threads being sampled. Dropping it stops the sampling.
pub(super) trait CpuSampler: Send {
    /// Starts sampling these threads. Threads beyond a quota wait.
    fn attach(&mut self, tids: &[u32]);

    /// Releases a thread that has ended.
    fn detach(&mut self, tid: u32);

    /// Returns the CPU time of a thread by the kernel's count, up to a constant offset per thread,
    /// or `None` if unknown. The count may include time that is not sampled.
    fn thread_cpu_time(&mut self, tid: u32) -> Option<Duration>;

    /// Sets the sampling frequency.
    fn set_frequency(&mut self, frequency: Hertz);

    /// Passes each sample since the last call and its time to `take`. Returns the lost weight.
    fn drain(
        &mut self,
        scope: DrainScope<'_>,
        on_sample: &mut dyn FnMut(&StackSnapshot, Moment) -> UnwindOutcome,
    ) -> u64;

    /// Releases samplers beyond the quotas and assigns free ones to waiting threads. Called after
    /// [`CpuSampler::drain`] in each pass; examines all threads at most once per `pause`.
    fn rebalance(&mut self, now: Moment, min_interval: Duration);

    /// Returns the number of waiting threads and the reason, or `None` if all are sampled.
    fn unsampled(&self) -> Option<Unsampled>;

    /// Returns `true` if threads wait for a permission that is not needed to sample user code.
    fn lacks_permission(&self) -> bool {
        false
    }

    /// Returns the reason if sampling has failed permanently.
    fn check_failure(&mut self) -> Option<String>;
}

/// A sampler and the reason for its selection.
pub(super) struct SelectedEngine {
    pub(super) sampler: Box<dyn CpuSampler>,
    pub(super) description: String,
    /// `true` if time in the kernel is not sampled.
    pub(super) user_only: bool,
    /// `true` if timers may replace this engine.
    pub(super) may_switch_to_timer: bool,
}

impl SelectedEngine {
    fn unsampled_threads(&self) -> u64 {
        self.sampler.unsampled().map_or(0, |unsampled| unsampled.threads)
    }
}

/// Starts the requested engine on `tids`. [`CpuEngine::Auto`] selects perf events if every thread
/// can have one, else the engine that covers more threads.
pub(super) fn select_engine(
    requested: CpuEngine,
    frequency: Hertz,
    tids: &[u32],
) -> Result<SelectedEngine, Error> {
    if requested == CpuEngine::Timer {
        return start_timer_engine(frequency, tids, "timer: requested".to_owned());
    }
    let auto = requested == CpuEngine::Auto;
    let start_perf = || {
        let mut engine = start_perf_engine(frequency, tids, !auto);
        engine.may_switch_to_timer = auto;
        engine
    };
    let engine = start_perf();
    let Some(Unsampled { threads, reason }) = engine.sampler.unsampled() else { return Ok(engine) };
    let none_sampled = threads == tids.len() as u64;
    if !auto {
        return match none_sampled {
            true => Err(Error::EngineUnavailable { engine: "perf", why: reason }),
            false => Ok(engine),
        };
    }
    // Frees the descriptors of the events before the timers need any.
    drop(engine);
    match start_timer_engine(frequency, tids, format!("timer: {reason}")) {
        Ok(timer) if none_sampled || timer.unsampled_threads() <= threads => Ok(timer),
        Err(error) if none_sampled => Err(error),
        _ => Ok(start_perf()),
    }
}

/// Starts perf events. Falls back to user code only if `allow_user_only` is set, that is, if the
/// user requested `perf`: many services spend half of their time in the kernel.
fn start_perf_engine(frequency: Hertz, tids: &[u32], allow_user_only: bool) -> SelectedEngine {
    let mut description = "perf: software cpu-clock".to_owned();
    let mut user_only = false;
    let mut sampler = PerfSampler::new(frequency, user_only);
    sampler.attach(tids);
    if allow_user_only && sampler.lacks_permission() {
        user_only = true;
        sampler = PerfSampler::new(frequency, user_only);
        sampler.attach(tids);
        description = format!("{description}, user code only{}", perf_paranoid_hint());
    }
    SelectedEngine {
        sampler: Box::new(sampler),
        description,
        user_only,
        may_switch_to_timer: false,
    }
}

/// Starts timers, with `words` as the reason. Returns an error if no thread can have one.
pub(super) fn start_timer_engine(
    frequency: Hertz,
    tids: &[u32],
    description: String,
) -> Result<SelectedEngine, Error> {
    let unavailable = |reason: String| Error::EngineUnavailable { engine: "timer", why: reason };
    let mut sampler =
        TimerSampler::new(frequency).map_err(|error| unavailable(error.to_string()))?;
    sampler.attach(tids);
    match sampler.unsampled() {
        // The timers start as soon as the quota allows it.
        Some(Unsampled { threads, reason })
            if threads == tids.len() as u64 && !sampler.waits_for_quota() =>
        {
            Err(unavailable(reason))
        }
        _ => Ok(SelectedEngine {
            sampler: Box::new(sampler),
            description,
            user_only: false,
            may_switch_to_timer: false,
        }),
    }
}

fn perf_paranoid_hint() -> String {
    let level = crate::os::perf_limits::paranoid_level();
    level.map(|level| format!(", perf_event_paranoid {level}")).unwrap_or_default()
}

/// Returns the maximum interval between two drains: four sample periods, within 10 ms to 200 ms.
/// The bounds limit wake-ups (five per second at 19 Hz) and the number of samples in flight.
pub(super) fn drain_interval(frequency: Hertz) -> Duration {
    let four_periods = Duration::from_secs(4) / frequency.get().max(1);
    four_periods.clamp(Duration::from_millis(10), Duration::from_millis(200))
}
