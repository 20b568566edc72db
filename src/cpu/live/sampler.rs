//! What the two engines have in common, and the choice between them.

use std::time::Duration;

use super::allotment::Unsampled;
use super::perf::PerfSampler;
use super::timer::TimerSampler;
use crate::base::{Hertz, Moment};
use crate::cpu::Error;
use crate::model::CpuEngine;
use crate::os::copied::Copied;

/// What came of a sample, as the engine should know it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// The stack was walked as far as it goes.
    Walked,
    /// The copy was too short.
    TooShort,
}

/// The extent of a drain.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Drain<'t> {
    /// All threads.
    All,
    /// The threads whose rings fill up, and these. What the others have stays in their rings.
    Filled(&'t [u32]),
}

/// Threads being sampled. Dropping it ends that.
pub(super) trait Sampler: Send {
    /// Begins to sample these threads. Those for which there is no room in a quota wait for it.
    fn attach(&mut self, tids: &[u32]);

    /// Lets go of a thread that has ended.
    fn detach(&mut self, tid: u32);

    /// CPU time of a thread by the kernel's count, since always the same time before it was attached to;
    /// none when nobody can tell. The kernel may count what is not sampled.
    fn counted(&mut self, tid: u32) -> Option<Duration>;

    /// Samples so often from here on.
    fn set_frequency(&mut self, frequency: Hertz);

    /// Hands over what was sampled since the last time, and when, and says how much weight was lost.
    fn drain(&mut self, extent: Drain<'_>, take: &mut dyn FnMut(&Copied, Moment) -> Verdict)
    -> u64;

    /// Gives back what is more than the quotas allow, and lets waiting threads have what is free. To be called
    /// after [`Sampler::drain`], at each turn; looks at all threads at most once in `pause`.
    fn review(&mut self, now: Moment, pause: Duration);

    /// The threads that wait, if some do.
    fn unsampled(&self) -> Option<Unsampled>;

    /// Whether the waiting threads wait for a permission that user code alone does not need.
    fn wants_permission(&self) -> bool {
        false
    }

    /// Why nothing comes any more, if that is so.
    fn broken(&mut self) -> Option<String>;
}

/// A sampler and the words for why it is this one.
pub(super) struct Chosen {
    pub(super) sampler: Box<dyn Sampler>,
    pub(super) words: String,
    /// Whether time in the kernel is not seen.
    pub(super) user_only: bool,
    /// Whether timers may take its place.
    pub(super) may_change: bool,
}

impl Chosen {
    fn unsampled(&self) -> u64 {
        self.sampler.unsampled().map_or(0, |unsampled| unsampled.threads)
    }
}

/// The engine that is asked for, sampling `tids`. For [`CpuEngine::Auto`] perf events if all threads can have one, else
/// what more threads can have.
pub(super) fn choose(asked: CpuEngine, frequency: Hertz, tids: &[u32]) -> Result<Chosen, Error> {
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
    // Its descriptors are free again before anything else is taken.
    drop(chosen);
    match timer(frequency, tids, format!("timer: {why}")) {
        Ok(timer) if has_none || timer.unsampled() <= threads => Ok(timer),
        Err(error) if has_none => Err(error),
        _ => Ok(perf_of()),
    }
}

/// Time in the kernel is half of what many services use, so that perf events without it are taken only by
/// those who ask for them.
fn perf(frequency: Hertz, tids: &[u32], even_user_only: bool) -> Chosen {
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
    Chosen { sampler: Box::new(sampler), words, user_only, may_change: false }
}

/// Timers, in these words; an error if no thread can have one.
pub(super) fn timer(frequency: Hertz, tids: &[u32], words: String) -> Result<Chosen, Error> {
    let failed = |why: String| Error::Refused { engine: "timer", why };
    let mut sampler = TimerSampler::new(frequency).map_err(|error| failed(error.to_string()))?;
    sampler.attach(tids);
    match sampler.unsampled() {
        // None now, and some as soon as the quota allows it.
        Some(Unsampled { threads, why }) if threads == tids.len() as u64 && !sampler.may_yet() => {
            Err(failed(why))
        }
        _ => Ok(Chosen { sampler: Box::new(sampler), words, user_only: false, may_change: false }),
    }
}

fn paranoia() -> String {
    let level = crate::os::perf::paranoid();
    level.map(|level| format!(", perf_event_paranoid {level}")).unwrap_or_default()
}

/// How long an engine of this frequency may go without being drained: four samples' time, within bounds
/// that keep wake-ups rare (five a second at 19 Hz) and what is under way small.
pub(super) fn drain_interval(frequency: Hertz) -> Duration {
    let four = Duration::from_secs(4) / frequency.get().max(1);
    four.clamp(Duration::from_millis(10), Duration::from_millis(200))
}
