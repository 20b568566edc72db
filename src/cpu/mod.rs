//! Where CPU time goes.
//!
//! A [`Session`] samples the process until it is stopped and gives a [`Profile`] of addresses, without
//! names. There is one session at a time. A [`Lookback`] samples always, rarely, into a window of the
//! last seconds; a session that starts meanwhile gets what the window holds as its
//! [`before`](Session::take_before), and the window rests until it is stopped.
//!
//! ```text
//! perf    an event of the kernel for each thread; no signal       where perf_event_open is allowed
//! timer   a CPU-clock timer for each thread, SIGPROF to it        elsewhere on Linux: most containers
//! pprof   the `pprof` crate: one timer for the process            other systems, and for comparison
//! ```
//!
//! The first two share `live`, where stacks are unwound and counted outside of the threads that run;
//! the header of each file says what it costs. The choice is made when the first of a look-back and a
//! session starts, and [`Session::engine`] has it with its reason.
//!
//! In [`CpuMode::Wall`] a session samples all threads by time, running or not, for hangs (`live/wall.rs`);
//! its samples bear `state` (running, sleeping, …) and `wait`, the kernel's function they wait in, too. What
//! the look-back saw is of CPU time then as ever.
//!
//! `samples` is the number of samples really taken. `cpu` is the CPU time they stand for: of threads of one
//! name together what the kernel charged to them (`live/strata.rs`), else a period each.
//!
//! # New threads
//!
//! They are found by the kernel's count of threads each time samples are read (10 to 40 ms apart in a session,
//! 0.2 s in the look-back), and at once where tokio's hook tells of them (`trace::Hooks::tell_of_threads`).
//!
//! # Threads of less than a period each
//!
//! A thread that uses less than a period (10 ms at 99 Hz) in a session mostly has no sample by `perf`: the
//! kernel counts the first period from zero and lets nobody choose where in it to begin. By `timer` it has one
//! as likely as its share of the period. So where 256 threads use 3 ms each, most of that CPU time has no sample.
//! It is told as lost, under the threads' names, and is not handed to the samples there are, beyond three
//! times their weight: those are of the few threads that ran longer, and what the others did nobody knows.
//! How much it was is certain, and that the losses say. At 1000 Hz a thread needs 1 ms to be seen.
//!
//! # Labels on samples
//!
//! `thread`, its name; `stack = cut`, when its outer end is missing. In an incident with a runtime trace also
//! `task`, the name or the place of spawning of the task that the thread polled at that moment, and `span`,
//! the innermost of `tracing`'s spans that it was in. Nothing is asked of the thread for these: a sample's
//! thread and moment are kept ([`Profile::timed`]; the first 65,536 samples of a session, 8,192 of each sixth
//! of the look-back), and the agent joins them with the polls and spans of the trace (`agent/capture/labels.rs`).
//! There is no such label where tasks are not recorded (see [`task`](crate::task)), where the layer is not
//! installed, where the trace's ring was written over by then, on samples of the time before the capture as
//! for spans, in wall mode, and on a profile that does not end together with the trace.

mod account;
mod itimer;
#[cfg(target_os = "linux")]
mod live;
#[cfg(not(target_os = "linux"))]
#[path = "elsewhere.rs"]
mod live;

use crate::base::sync::Mutex;
use std::any::Any;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, PoisonError, Weak};
use std::time::Duration;

use crate::base::{Anchor, Bytes, Hertz, Moment, OfProcess};
use crate::model::{CpuEngine, CpuMode, Profile};
use crate::os;
use itimer::Itimer;
use live::{Recorder, Wall};

/// Why there is no CPU profile.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// A session is running.
    #[error("a CPU profile is being taken already; stop it or wait until it ends")]
    Busy,
    /// No engine samples that often.
    #[error("cannot sample at {asked}: choose from {lowest} to {highest}")]
    Frequency {
        /// What was asked for.
        asked: Hertz,
        /// The lowest there is.
        lowest: Hertz,
        /// The highest there is.
        highest: Hertz,
    },
    /// The machine does not allow the engine.
    #[error("the CPU engine `{engine}` cannot run here: {why}")]
    Refused {
        /// Which one.
        engine: &'static str,
        /// What the system said.
        why: String,
    },
    /// The process's threads are unknown.
    #[error("cannot list /proc/self/task: {source}; CPU profiles need a mounted /proc")]
    Tasks {
        /// What the system said.
        source: std::io::Error,
    },
    /// There is no thread to record on.
    #[error("cannot start the thread `marple-cpu`: {source}")]
    Thread {
        /// What the system said.
        source: std::io::Error,
    },
    /// The loaded files are unknown.
    #[error(transparent)]
    Images(#[from] os::images::Error),
    /// SIGPROF belongs to somebody else in this process.
    #[error(
        "this process handles SIGPROF itself (another profiler?); \
         its handler would be lost, so no CPU profile is taken"
    )]
    SignalTaken,
    /// Walking a stack in a signal handler could hang the process.
    #[error(
        "the unwinder of this process takes locks, so that a profile could hang it; \
         CPU profiles need glibc 2.35 or later and a dynamically linked libgcc_s"
    )]
    UnsafeUnwinder,
    /// The engine cannot put its scratch file anywhere.
    #[error("{path}: the CPU profiler cannot make its scratch file here: {source}; set TMPDIR")]
    Scratch {
        /// The directory.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The process could not be asked what it allows.
    #[error(transparent)]
    Process(#[from] os::sigprof::Error),
    /// The recording is another process's.
    #[error("this process was forked from the one that records; start another session in it")]
    Forked,
    /// The engine failed.
    #[error("the CPU profiler `{engine}` failed: {source}")]
    Engine {
        /// Which one.
        engine: &'static str,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// Below, a session is over before the first sample; above, the samples' own time shows in the profile.
const LOWEST: Hertz = Hertz(1);
const HIGHEST: Hertz = Hertz(1000);

/// How to sample.
#[derive(Clone, Debug)]
pub struct Options {
    /// What is sampled by a session; a look-back is always of CPU time.
    pub mode: CpuMode,
    /// Whether threads may be sent a signal to show their stacks, in [`CpuMode::Wall`].
    pub signals: bool,
    /// By what means, in [`CpuMode::Cpu`].
    pub engine: CpuEngine,
    /// Samples a second in a session: of CPU time, or of each thread's time.
    pub frequency: Hertz,
    /// Samples a second of CPU time between sessions; 0: no look-back.
    pub lookback_frequency: Hertz,
    /// How far the look-back reaches.
    pub lookback: Duration,
    /// Called by the thread that records, first thing; what it gives is dropped at its end.
    pub guard: fn() -> Box<dyn Any>,
}

impl Default for Options {
    /// 99 Hz by the best engine there is, without a look-back.
    fn default() -> Self {
        Self {
            mode: CpuMode::Cpu,
            signals: true,
            engine: CpuEngine::Auto,
            frequency: Hertz(99),
            lookback_frequency: Hertz(0),
            lookback: Duration::from_secs(30),
            guard: || Box::new(()),
        }
    }
}

impl Options {
    fn check(&self) -> Result<(), Error> {
        for asked in [self.frequency, self.lookback_frequency.max(LOWEST)] {
            if !(LOWEST..=HIGHEST).contains(&asked) {
                return Err(Error::Frequency { asked, lowest: LOWEST, highest: HIGHEST });
            }
        }
        Ok(())
    }
}

/// The recorder that runs, if one does. Whoever needs it keeps it alive.
static RECORDER: Mutex<Weak<Recorder>> = Mutex::new(Weak::new());

/// A share in the recorder. The last that goes ends it under the lock, so that another begins only when
/// it is gone: two would fight over the signal.
///
/// In a forked child there is none: the thread of the recorder is not there, and its lock may be held for ever.
struct Share(OfProcess<Arc<Recorder>>);

impl Share {
    fn of(options: &Options) -> Result<Self, Error> {
        let mut place = RECORDER.lock().unwrap_or_else(PoisonError::into_inner);
        let recorder = match place.upgrade() {
            Some(recorder) if !recorder.is_inherited() => recorder,
            inherited => {
                std::mem::forget(inherited);
                Arc::new(Recorder::start(options)?)
            }
        };
        *place = Arc::downgrade(&recorder);
        Ok(Self(OfProcess::new(recorder)))
    }

    /// One in the recorder that runs, if one does.
    fn existing() -> Option<Self> {
        let place = RECORDER.lock().unwrap_or_else(PoisonError::into_inner);
        let recorder = place.upgrade()?;
        if recorder.is_inherited() {
            std::mem::forget(recorder);
            return None;
        }
        Some(Self(OfProcess::new(recorder)))
    }

    fn recorder(&self) -> Option<&Recorder> {
        self.0.get().map(|recorder| &**recorder)
    }
}

impl Drop for Share {
    fn drop(&mut self) {
        if self.0.is_inherited() {
            return;
        }
        let _turn = RECORDER.lock().unwrap_or_else(PoisonError::into_inner);
        drop(self.0.take());
    }
}

/// The window of the last seconds. Dropping it ends the sampling.
#[must_use = "a look-back that is dropped sees nothing"]
pub struct Lookback(Share);

impl Lookback {
    /// Begins to sample at `options.lookback_frequency`; none when that is 0 or the engine, being the
    /// `pprof` crate, is none to run always. Takes a few milliseconds.
    ///
    /// # Errors
    ///
    /// Why no engine can run here.
    pub fn start(options: &Options) -> Result<Option<Self>, Error> {
        options.check()?;
        let is_off = options.lookback_frequency == Hertz(0) || options.lookback.is_zero();
        if is_off || options.engine == CpuEngine::Pprof || cfg!(not(target_os = "linux")) {
            return Ok(None);
        }
        Ok(Some(Self(Share::of(options)?)))
    }

    /// The engine and why it is that one: `timer: perf_event_open refused (EACCES, …)`.
    pub fn engine(&self) -> String {
        self.0.recorder().map(Recorder::engine).unwrap_or_default()
    }
}

/// A CPU profile being recorded. Dropping it ends the recording and throws it away.
#[must_use = "a session that is dropped records nothing"]
pub struct Session {
    running: OfProcess<Running>,
    engine: String,
    before: Option<Box<Profile>>,
    // After the engine: the place is free once the engine has stopped.
    _place: Place,
}

enum Running {
    Live(Share),
    Itimer(Itimer),
    Wall(Wall),
}

impl Session {
    /// The memory that should be free for a session of `engine` to do no harm.
    pub const fn memory(engine: CpuEngine) -> Bytes {
        match engine {
            CpuEngine::Pprof => itimer::MEMORY,
            _ if cfg!(not(target_os = "linux")) => itimer::MEMORY,
            // The rings, the table and the profile made of it, full; mostly a tenth of it is used.
            _ => Bytes::mib(16),
        }
    }

    /// Starts recording the whole process, `frequency` times per second of CPU time, by the best engine
    /// there is. `anchor`: the present.
    ///
    /// # Errors
    ///
    /// As [`Session::with`].
    pub fn start(frequency: Hertz, anchor: Anchor) -> Result<Self, Error> {
        Self::with(&Options { frequency, ..Options::default() }, anchor)
    }

    /// Starts recording the whole process as `options` say. Blocks the caller, not the process, for some
    /// milliseconds. While a look-back runs, its engine records.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] while another session runs; otherwise why no engine can run here.
    pub fn with(options: &Options, anchor: Anchor) -> Result<Self, Error> {
        options.check()?;
        let place = Place::claim().ok_or(Error::Busy)?;
        let (engine, before, running);
        if options.mode == CpuMode::Wall {
            // The look-back goes on: it samples CPU time, by other means.
            let wall = Wall::start(options, anchor)?;
            let window = |share: Share| share.recorder()?.take_window(anchor);
            before = Share::existing().and_then(window).map(Box::new);
            engine = Wall::engine(options);
            running = Running::Wall(wall);
        } else if options.engine == CpuEngine::Pprof || cfg!(not(target_os = "linux")) {
            running = Running::Itimer(Itimer::start(options.frequency, anchor)?);
            (engine, before) = (itimer::NAME.to_owned(), None);
        } else {
            let alone = Options { lookback_frequency: Hertz(0), ..options.clone() };
            let share = Share::of(&alone)?;
            let recorder = share.recorder().ok_or(Error::Busy)?;
            before = recorder.begin(options.frequency, anchor)?.map(Box::new);
            engine = recorder.engine();
            running = Running::Live(share);
        }
        Ok(Self { running: OfProcess::new(running), engine, before, _place: place })
    }

    /// The engine that records, and why it is that one.
    pub fn engine(&self) -> &str {
        &self.engine
    }

    /// What the look-back saw before this session started; none when there was none, and at the second
    /// call.
    pub fn take_before(&mut self) -> Option<Profile> {
        self.before.take().map(|profile| *profile)
    }

    /// Ends the recording at `now` and reports it: addresses with their mappings, to be named by
    /// `symbols`.
    ///
    /// # Errors
    ///
    /// If the engine cannot report what it has.
    pub fn stop(mut self, now: Moment) -> Result<Profile, Error> {
        if self.running.is_inherited() {
            return Err(Error::Forked);
        }
        match self.running.take() {
            Some(Running::Itimer(itimer)) => itimer.stop(now),
            Some(Running::Wall(wall)) => wall.stop(now),
            Some(Running::Live(share)) => {
                share.recorder().and_then(|recorder| recorder.end(now)).ok_or(Error::Busy)
            }
            None => Err(Error::Busy),
        }
    }
}

impl Drop for Session {
    fn drop(&mut self) {
        if let Some(Running::Live(share)) = self.running.take() {
            let _ = share.recorder().and_then(|recorder| recorder.end(Moment::default()));
        }
    }
}

/// The one place for a session in this process.
struct Place(());

static TAKEN: AtomicBool = AtomicBool::new(false);

impl Place {
    fn claim() -> Option<Self> {
        (!TAKEN.swap(true, Ordering::Acquire)).then_some(Self(()))
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        TAKEN.store(false, Ordering::Release);
    }
}
