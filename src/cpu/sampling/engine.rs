//! The choice of the sampling engine.

use super::allotment::Unsampled;
use super::perf::PerfSampler;
use super::sampler::CpuSampler;
use super::timer::TimerSampler;
use crate::base::Hertz;
use crate::cpu::error::Error;
use crate::model::CpuEngine;

/// A sampler and the reason for its selection.
pub(crate) struct SelectedEngine {
    pub(crate) sampler: Box<dyn CpuSampler>,
    pub(crate) description: String,
    /// `true` if time in the kernel is not sampled.
    pub(crate) user_only: bool,
    /// `true` if timers may replace this engine.
    pub(crate) may_switch_to_timer: bool,
}

impl SelectedEngine {
    fn unsampled_threads(&self) -> u64 {
        self.sampler.unsampled().map_or(0, |unsampled| unsampled.threads)
    }
}

/// Starts the requested engine on `tids`. [`CpuEngine::Auto`] selects perf events if every thread
/// can have one, else the engine that covers more threads. So does [`CpuEngine::Pprof`] in a build
/// without that engine.
pub(crate) fn select_engine(
    requested: CpuEngine,
    frequency: Hertz,
    tids: &[u32],
) -> Result<SelectedEngine, Error> {
    if requested == CpuEngine::Timer {
        return start_timer_engine(frequency, tids, "timer: requested".to_owned());
    }
    let auto = requested != CpuEngine::Perf;
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
pub(crate) fn start_perf_engine(
    frequency: Hertz,
    tids: &[u32],
    allow_user_only: bool,
) -> SelectedEngine {
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

/// Starts timers; `description` has the reason. Returns an error if no thread can have one.
pub(crate) fn start_timer_engine(
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

pub(crate) fn perf_paranoid_hint() -> String {
    let level = crate::os::perf_limits::paranoid_level();
    level.map(|level| format!(", perf_event_paranoid {level}")).unwrap_or_default()
}
