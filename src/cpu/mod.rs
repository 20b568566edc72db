//! CPU profiles of this process.
//!
//! A [`CpuSession`] samples the process until it is stopped and returns a [`Profile`] of addresses,
//! not yet symbolized. At most one session runs at a time. A [`Lookback`] always samples, at a low
//! rate, into a window of the last seconds. A session that starts while a look-back runs takes the
//! window's content ([`CpuSession::take_lookback`]); the window stays empty until the session
//! stops.
//!
//! ```text
//! engine  how it samples                                       where
//! perf    one perf event per thread, no signal                 Linux that allows perf_event_open
//! timer   one CPU-clock timer per thread, which sends SIGPROF  other Linux: most containers
//! pprof   the `pprof` crate: one timer for the process         other systems; Linux with the
//!                                                              feature `pprof`, for comparison
//! ```
//!
//! `perf` and `timer` share the module `sampling`, which unwinds and counts stacks outside of the
//! sampled threads. The header of each file gives its cost. The engine is selected when the first
//! look-back or session starts; [`CpuSession::engine`] returns it with the reason.
//!
//! In [`CpuMode::Wall`] a session samples all threads by wall time, running or not, to find hangs
//! (`sampling/wall.rs`). Its samples also have the labels `state` (running, sleeping, ...) and
//! `wait`, the kernel function in which the thread waits. The look-back of such a session still
//! holds CPU time.
//!
//! The value `samples` is the number of samples taken. The value `cpu` is the CPU time they stand
//! for: the samples of all threads with one name add up to the CPU time that the kernel charged to
//! those threads (`sampling/scaling.rs`). Without such a charge, each sample stands for one period.
//!
//! # New threads
//!
//! The recorder compares the kernel's thread count whenever it reads samples: every four sample
//! periods, within 10 ms to 200 ms (40 ms at 99 Hz, 0.2 s in a look-back at 19 Hz). A thread-start
//! hook of tokio (`trace::Hooks::notify_thread_starts`) triggers the check at once.
//!
//! # Threads that use less than a period
//!
//! With `perf`, a thread that uses less than one period (10 ms at 99 Hz) in a session mostly has no
//! sample: the kernel counts the first period from zero and offers no random start. With `timer`,
//! the probability of a sample is the used fraction of the period. If 256 threads use 3 ms each,
//! most of their CPU time has no sample.
//!
//! That time is reported as a loss under the names of the threads. The existing samples are scaled
//! up to three times their weight and no further. They come from the few threads that ran longer
//! and show nothing about the others. The amount is exact; only the stacks are unknown. At 1000 Hz,
//! 1 ms of CPU time is enough for a sample.
//!
//! # Labels on samples
//!
//! `thread` is the name of the thread. `stack = cut` marks a stack whose outer end is missing. In
//! an incident with a runtime trace, samples have two more labels. `task` is the name or spawn site
//! of the task being polled at that moment; `span` is the innermost `tracing` span entered then.
//!
//! Sampled threads do no work for these labels. The profile keeps the thread and time of each
//! sample ([`Profile::timed_samples`]; the first 65,536 samples of a session, 8,192 of each sixth
//! of the look-back). The agent joins them with the polls and spans of the trace
//! (`capture/worker/labels.rs`). The labels are missing:
//!
//! - if tasks are not recorded (see [`task`](crate::task)) or the `tracing` layer is not installed;
//! - if the trace's ring was overwritten by then;
//! - `span` only: on samples from before the capture;
//! - in wall mode;
//! - on a profile that does not end together with the trace.

mod accounting;
pub mod error;
#[cfg(any(not(target_os = "linux"), feature = "pprof"))]
mod itimer;
pub mod options;
#[cfg(target_os = "linux")]
mod sampling;
#[cfg(not(target_os = "linux"))]
#[path = "unsupported.rs"]
mod sampling;

use crate::base::sync::Mutex;
pub use error::Error;
pub use options::Options;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, Weak};

use crate::base::{Bytes, Hertz, Moment, ProcessBound, TimeAnchor};
use crate::model::{CpuEngine, CpuMode, Profile};
#[cfg(any(not(target_os = "linux"), feature = "pprof"))]
use itimer::ItimerEngine;
use sampling::{CpuRecorder, WallRecorder};

/// The running recorder, if any. Its users keep it alive.
static RECORDER: Mutex<Weak<CpuRecorder>> = Mutex::new(Weak::new());

/// Shared ownership of the recorder. The last owner drops it while it holds the lock, so that the
/// next recorder starts only after this one has ended: two would compete for the signal.
///
/// A forked child has no recorder: the recording thread does not exist there and its lock may stay
/// locked forever.
struct RecorderHandle(ProcessBound<Arc<CpuRecorder>>);

impl RecorderHandle {
    fn get_or_start(options: &Options) -> Result<Self, Error> {
        let mut recorder_slot = RECORDER.lock().unwrap_or_else(PoisonError::into_inner);
        let recorder = match recorder_slot.upgrade() {
            Some(recorder) if !recorder.is_inherited() => recorder,
            inherited => {
                std::mem::forget(inherited);
                Arc::new(CpuRecorder::start(options)?)
            }
        };
        *recorder_slot = Arc::downgrade(&recorder);
        Ok(Self(ProcessBound::new(recorder)))
    }

    /// Returns a handle to the running recorder, or `None`.
    fn existing() -> Option<Self> {
        let recorder_slot = RECORDER.lock().unwrap_or_else(PoisonError::into_inner);
        let recorder = recorder_slot.upgrade()?;
        if recorder.is_inherited() {
            std::mem::forget(recorder);
            return None;
        }
        Some(Self(ProcessBound::new(recorder)))
    }

    fn recorder(&self) -> Option<&CpuRecorder> {
        self.0.get().map(|recorder| &**recorder)
    }
}

impl Drop for RecorderHandle {
    fn drop(&mut self) {
        if self.0.is_inherited() {
            return;
        }
        let _lock = RECORDER.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.0.take());
    }
}

/// A low-rate CPU profile of the last seconds. Dropping it stops the sampling.
#[must_use = "a dropped look-back records nothing"]
pub struct Lookback(RecorderHandle);

impl Lookback {
    /// Starts sampling at `options.lookback_frequency`. Takes a few milliseconds.
    ///
    /// Returns `None` if the frequency or `options.lookback` is 0, if the engine is the `pprof`
    /// crate, which is not suited to run always, and on systems other than Linux.
    ///
    /// # Errors
    ///
    /// If no engine can run on this system.
    pub fn start(options: &Options) -> Result<Option<Self>, Error> {
        options.validate()?;
        let is_off = options.lookback_frequency == Hertz(0) || options.lookback.is_zero();
        if is_off || uses_itimer(options.engine) {
            return Ok(None);
        }
        Ok(Some(Self(RecorderHandle::get_or_start(options)?)))
    }

    /// Returns the engine and the reason for its selection: `timer: perf_event_open refused
    /// (EACCES, ...)`.
    pub fn engine(&self) -> String {
        self.0.recorder().map(CpuRecorder::engine).unwrap_or_default()
    }
}

/// A running CPU profile. Dropping it stops the recording and discards the samples.
#[must_use = "a dropped session records nothing"]
pub struct CpuSession {
    running: ProcessBound<RunningSampler>,
    engine: String,
    lookback: Option<Box<Profile>>,
    // Declared after `running`: the token is released only when the engine has stopped.
    _token: SessionToken,
}

enum RunningSampler {
    Recorder(RecorderHandle),
    #[cfg(any(not(target_os = "linux"), feature = "pprof"))]
    Itimer(ItimerEngine),
    Wall(WallRecorder),
}

impl CpuSession {
    /// Returns the free memory that a session of `engine` needs to be harmless.
    pub const fn required_memory(engine: CpuEngine) -> Bytes {
        #[cfg(any(not(target_os = "linux"), feature = "pprof"))]
        if uses_itimer(engine) {
            return itimer::REQUIRED_MEMORY;
        }
        let _ = engine;
        // Rings, table and the resulting profile, all full. Typical use is a tenth of it.
        Bytes::mib(16)
    }

    /// Starts recording the whole process with the best available engine, `frequency` times per
    /// second of CPU time. `anchor` is the current time.
    ///
    /// # Errors
    ///
    /// Same as [`CpuSession::start_with_options`].
    pub fn start(frequency: Hertz, anchor: TimeAnchor) -> Result<Self, Error> {
        Self::start_with_options(&Options { frequency, ..Options::default() }, anchor)
    }

    /// Starts recording the whole process with `options`. Blocks the caller, not the process, for
    /// some milliseconds. If a look-back runs, the session uses its engine.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] if another session runs; other errors if no engine can run on this system.
    pub fn start_with_options(options: &Options, anchor: TimeAnchor) -> Result<Self, Error> {
        options.validate()?;
        let token = SessionToken::try_acquire().ok_or(Error::Busy)?;
        let session = |running, engine, lookback: Option<Profile>| Self {
            running: ProcessBound::new(running),
            engine,
            lookback: lookback.map(Box::new),
            _token: token,
        };
        if options.mode == CpuMode::Wall {
            // The look-back continues: it samples CPU time with its own engine.
            let recorder = WallRecorder::start(options, anchor)?;
            let window = |handle: RecorderHandle| handle.recorder()?.take_window(anchor);
            let lookback = RecorderHandle::existing().and_then(window);
            let engine = WallRecorder::engine(options);
            return Ok(session(RunningSampler::Wall(recorder), engine, lookback));
        }
        #[cfg(any(not(target_os = "linux"), feature = "pprof"))]
        if uses_itimer(options.engine) {
            let itimer = ItimerEngine::start(options.frequency, anchor)?;
            let engine = itimer::ENGINE_NAME.to_owned();
            return Ok(session(RunningSampler::Itimer(itimer), engine, None));
        }
        let session_options = Options { lookback_frequency: Hertz(0), ..options.clone() };
        let handle = RecorderHandle::get_or_start(&session_options)?;
        let recorder = handle.recorder().ok_or(Error::Busy)?;
        let lookback = recorder.begin_session(options.frequency, anchor)?;
        let engine = recorder.engine();
        Ok(session(RunningSampler::Recorder(handle), engine, lookback))
    }

    /// Returns the engine and the reason for its selection.
    pub fn engine(&self) -> &str {
        &self.engine
    }

    /// Takes the look-back's profile from before this session. Returns `None` if there was no
    /// look-back, and on every call after the first.
    pub fn take_lookback(&mut self) -> Option<Profile> {
        self.lookback.take().map(|profile| *profile)
    }

    /// Stops the recording at `now` and returns the profile: addresses with their mappings, to be
    /// symbolized by `symbols`.
    ///
    /// # Errors
    ///
    /// If the engine cannot report its samples.
    pub fn stop(mut self, now: Moment) -> Result<Profile, Error> {
        if self.running.is_inherited() {
            return Err(Error::Forked);
        }
        match self.running.take() {
            #[cfg(any(not(target_os = "linux"), feature = "pprof"))]
            Some(RunningSampler::Itimer(itimer)) => itimer.stop(now),
            Some(RunningSampler::Wall(wall)) => wall.stop(now),
            Some(RunningSampler::Recorder(handle)) => {
                handle.recorder().and_then(|recorder| recorder.end_session(now)).ok_or(Error::Busy)
            }
            None => Err(Error::Busy),
        }
    }
}

impl Drop for CpuSession {
    fn drop(&mut self) {
        if let Some(RunningSampler::Recorder(handle)) = self.running.take() {
            let _ = handle.recorder().and_then(|recorder| recorder.end_session(Moment::default()));
        }
    }
}

/// Returns `true` if sessions with `engine` use the `pprof` crate. On Linux without the feature
/// `pprof`, its name means the best engine, as `auto` does.
const fn uses_itimer(engine: CpuEngine) -> bool {
    cfg!(not(target_os = "linux")) || cfg!(feature = "pprof") && matches!(engine, CpuEngine::Pprof)
}

/// Exclusive permission to run a session in this process.
struct SessionToken(());

static SESSION_RUNNING: AtomicBool = AtomicBool::new(false);

impl SessionToken {
    fn try_acquire() -> Option<Self> {
        // Not `then_some`, whose argument would be made and dropped in any case.
        if SESSION_RUNNING.swap(true, Ordering::Acquire) { None } else { Some(Self(())) }
    }
}

impl Drop for SessionToken {
    fn drop(&mut self) {
        SESSION_RUNNING.store(false, Ordering::Release);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn failed_acquire_does_not_release_session_token() {
        let token = SessionToken::try_acquire();
        assert!(token.is_some());
        assert!(SessionToken::try_acquire().is_none());
        assert!(SessionToken::try_acquire().is_none());
        drop(token);
        assert!(SessionToken::try_acquire().is_some());
    }
}
