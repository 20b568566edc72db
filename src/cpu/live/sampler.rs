//! What the two engines have in common, and the choice between them.

use std::io;
use std::time::Duration;

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

/// Threads being sampled. Dropping it ends that.
pub(super) trait Sampler: Send {
    /// Begins to sample these threads; says how many it could not. One that has ended meanwhile is none
    /// of them.
    fn attach(&mut self, tids: &[u32]) -> Refused;

    /// Lets go of a thread that has ended.
    fn detach(&mut self, tid: u32);

    /// CPU time of a thread by the kernel's count, since always the same time before it was attached to;
    /// none when nobody can tell. The kernel may count what is not sampled.
    fn counted(&mut self, tid: u32) -> Option<Duration>;

    /// Samples so often from here on.
    fn set_frequency(&mut self, frequency: Hertz);

    /// Hands over what was sampled since the last time, and when, and says how much weight was lost.
    fn drain(&mut self, take: &mut dyn FnMut(&Copied, Moment) -> Verdict) -> u64;

    /// Why nothing comes any more, if that is so.
    fn broken(&mut self) -> Option<&'static str>;
}

/// Threads that cannot be sampled.
#[derive(Debug, Default)]
pub(super) struct Refused {
    pub(super) threads: u64,
    pub(super) last: Option<io::Error>,
}

impl Refused {
    pub(super) fn add(&mut self, error: io::Error) {
        // A thread that ended between the list and the call is no failure.
        if error.raw_os_error() != Some(libc_esrch()) && error.kind() != io::ErrorKind::InvalidInput
        {
            self.threads += 1;
            self.last = Some(error);
        }
    }
}

fn libc_esrch() -> i32 {
    rustix::io::Errno::SRCH.raw_os_error()
}

/// A sampler and the words for why it is this one.
pub(super) struct Chosen {
    pub(super) sampler: Box<dyn Sampler>,
    pub(super) words: String,
    /// Whether time in the kernel is not seen.
    pub(super) user_only: bool,
}

/// The engine that is asked for, sampling `tids`; for [`CpuEngine::Auto`] the first that takes them all.
pub(super) fn choose(asked: CpuEngine, frequency: Hertz, tids: &[u32]) -> Result<Chosen, Error> {
    if asked == CpuEngine::Timer {
        return timer(frequency, tids, "timer: asked for".to_owned());
    }
    let why_not = match perf(frequency, tids, asked == CpuEngine::Perf) {
        Ok(chosen) => return Ok(chosen),
        Err(why_not) if asked == CpuEngine::Perf => {
            return Err(Error::Refused { engine: "perf", why: why_not });
        }
        Err(why_not) => why_not,
    };
    timer(frequency, tids, format!("timer: {why_not}"))
}

/// The sampler, or why not. Time in the kernel is half of what many services use, so that perf events
/// without it are taken only by those who ask for them.
fn perf(frequency: Hertz, tids: &[u32], even_user_only: bool) -> Result<Chosen, String> {
    let mut words = "perf: software cpu-clock".to_owned();
    let mut user_only = false;
    let mut sampler = PerfSampler::new(frequency, tids.len(), false)?;
    let mut refused = sampler.attach(tids);
    if even_user_only && refused.threads > 0 {
        user_only = true;
        sampler = PerfSampler::new(frequency, tids.len(), true)?;
        refused = sampler.attach(tids);
        words = format!("{words} of user code only{}", paranoia());
    }
    match refused.last {
        None => Ok(Chosen { sampler: Box::new(sampler), words, user_only }),
        Some(error) => Err(format!("perf_event_open refused ({}{})", name_of(&error), paranoia())),
    }
}

fn timer(frequency: Hertz, tids: &[u32], words: String) -> Result<Chosen, Error> {
    let failed = |error: io::Error| Error::Refused { engine: "timer", why: error.to_string() };
    let mut sampler = TimerSampler::new(frequency).map_err(failed)?;
    let refused = sampler.attach(tids);
    match refused.last {
        Some(error) if refused.threads == tids.len() as u64 => Err(failed(error)),
        _ => Ok(Chosen { sampler: Box::new(sampler), words, user_only: false }),
    }
}

fn paranoia() -> String {
    let level = crate::os::perf::paranoid();
    level.map(|level| format!(", perf_event_paranoid {level}")).unwrap_or_default()
}

/// `EACCES` says more to whoever has to allow it than `Permission denied`.
fn name_of(error: &io::Error) -> String {
    use rustix::io::Errno;
    let names = [
        (Errno::ACCESS, "EACCES"),
        (Errno::PERM, "EPERM"),
        (Errno::NOSYS, "ENOSYS"),
        (Errno::NOENT, "ENOENT"),
        (Errno::MFILE, "EMFILE"),
        (Errno::NOMEM, "ENOMEM"),
    ];
    let errno = error.raw_os_error();
    let name = names.iter().find(|(known, _)| Some(known.raw_os_error()) == errno);
    name.map_or_else(|| error.to_string(), |(_, name)| (*name).to_owned())
}

/// How long an engine of this frequency may go without being drained: four samples' time, within bounds
/// that keep wake-ups rare (five a second at 19 Hz) and what is under way small.
pub(super) fn drain_interval(frequency: Hertz) -> Duration {
    let four = Duration::from_secs(4) / frequency.get().max(1);
    four.clamp(Duration::from_millis(10), Duration::from_millis(200))
}
