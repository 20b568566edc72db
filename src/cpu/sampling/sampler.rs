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
    fn counted(&mut self, tid: u32) -> Option<Duration>;

    /// Sets the sampling frequency.
    fn set_frequency(&mut self, frequency: Hertz);

    /// Passes each sample since the last call and its time to `take`. Returns the lost weight.
    fn drain(
        &mut self,
        extent: DrainScope<'_>,
        take: &mut dyn FnMut(&StackSnapshot, Moment) -> UnwindOutcome,
    ) -> u64;

    /// Releases samplers beyond the quotas and assigns free ones to waiting threads. Called after
    /// [`CpuSampler::drain`] in each pass; examines all threads at most once per `pause`.
    fn review(&mut self, now: Moment, pause: Duration);

    /// Returns the number of waiting threads and the reason, or `None` if all are sampled.
    fn unsampled(&self) -> Option<Unsampled>;

    /// Returns `true` if threads wait for a permission that is not needed to sample user code.
    fn wants_permission(&self) -> bool {
        false
    }

    /// Returns the reason if sampling has failed permanently.
    fn broken(&mut self) -> Option<String>;
}

/// A sampler and the reason for its selection.
pub(super) struct SelectedEngine {
    pub(super) sampler: Box<dyn CpuSampler>,
    pub(super) words: String,
    /// `true` if time in the kernel is not sampled.
    pub(super) user_only: bool,
    /// `true` if timers may replace this engine.
    pub(super) may_change: bool,
}

impl SelectedEngine {
    fn unsampled(&self) -> u64 {
        self.sampler.unsampled().map_or(0, |unsampled| unsampled.threads)
    }
}

/// Starts the requested engine on `tids`. [`CpuEngine::Auto`] selects perf events if every thread
/// can have one, else the engine that covers more threads.
pub(super) fn choose(
    asked: CpuEngine,
    frequency: Hertz,
    tids: &[u32],
) -> Result<SelectedEngine, Error> {
    if asked == CpuEngine::Timer {
        return timer(frequency, tids, "timer: asked for".to_owned());
    }
    let auto = asked == CpuEngine::Auto;
    let perf_of = || {
        let mut chosen = perf(frequency, tids, !auto);
        chosen.may_change = auto;
        chosen
    };
    let chosen = perf_of();
    let Some(Unsampled { threads, why }) = chosen.sampler.unsampled() else { return Ok(chosen) };
    let has_none = threads == tids.len() as u64;
    if !auto {
        return match has_none {
            true => Err(Error::Refused { engine: "perf", why }),
            false => Ok(chosen),
        };
    }
    // Frees the descriptors of the events before the timers need any.
    drop(chosen);
    match timer(frequency, tids, format!("timer: {why}")) {
        Ok(timer) if has_none || timer.unsampled() <= threads => Ok(timer),
        Err(error) if has_none => Err(error),
        _ => Ok(perf_of()),
    }
}

/// Starts perf events. Falls back to user code only if `even_user_only` is set, that is, if the
/// user requested `perf`: many services spend half of their time in the kernel.
fn perf(frequency: Hertz, tids: &[u32], even_user_only: bool) -> SelectedEngine {
    let mut words = "perf: software cpu-clock".to_owned();
    let mut user_only = false;
    let mut sampler = PerfSampler::new(frequency, user_only);
    sampler.attach(tids);
    if even_user_only && sampler.wants_permission() {
        user_only = true;
        sampler = PerfSampler::new(frequency, user_only);
        sampler.attach(tids);
        words = format!("{words} of user code only{}", paranoia());
    }
    SelectedEngine { sampler: Box::new(sampler), words, user_only, may_change: false }
}

/// Starts timers, with `words` as the reason. Returns an error if no thread can have one.
pub(super) fn timer(
    frequency: Hertz,
    tids: &[u32],
    words: String,
) -> Result<SelectedEngine, Error> {
    let failed = |why: String| Error::Refused { engine: "timer", why };
    let mut sampler = TimerSampler::new(frequency).map_err(|error| failed(error.to_string()))?;
    sampler.attach(tids);
    match sampler.unsampled() {
        // The timers start as soon as the quota allows it.
        Some(Unsampled { threads, why }) if threads == tids.len() as u64 && !sampler.may_yet() => {
            Err(failed(why))
        }
        _ => Ok(SelectedEngine {
            sampler: Box::new(sampler),
            words,
            user_only: false,
            may_change: false,
        }),
    }
}

fn paranoia() -> String {
    let level = crate::os::perf::paranoid();
    level.map(|level| format!(", perf_event_paranoid {level}")).unwrap_or_default()
}

/// Returns the maximum interval between two drains: four sample periods, within 10 ms to 200 ms.
/// The bounds limit wake-ups (five per second at 19 Hz) and the number of samples in flight.
pub(super) fn drain_interval(frequency: Hertz) -> Duration {
    let four = Duration::from_secs(4) / frequency.get().max(1);
    four.clamp(Duration::from_millis(10), Duration::from_millis(200))
}
