//! Where CPU time goes.
//!
//! A [`Session`] is one engine started; stopping it gives a [`Profile`] of addresses, without names.
//! There is one session at a time: the signal and the timer below belong to the process.
//!
//! An engine is what implements `Engine` and has a function that starts it or says why it cannot; the
//! choice between engines is made in [`Session::start`] and nowhere else.

mod account;
mod itimer;

use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::base::{Anchor, Bytes, Hertz, Moment};
use crate::model::Profile;
use crate::os;

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
    /// The engine failed.
    #[error("the CPU profiler `{engine}` failed: {source}")]
    Engine {
        /// Which one.
        engine: &'static str,
        /// What it said.
        source: Box<dyn std::error::Error + Send + Sync>,
    },
}

/// A way to see where CPU time goes, running. Dropping it stops it.
trait Engine: Send {
    /// Its name, as a manifest shows it.
    fn name(&self) -> &'static str;

    /// Ends the recording at `now` and reports it.
    fn stop(self: Box<Self>, now: Moment) -> Result<Profile, Error>;
}

/// A CPU profile being recorded. Dropping it ends the recording and throws it away.
#[must_use = "a session that is dropped records nothing"]
pub struct Session {
    engine: Box<dyn Engine>,
    // After the engine: the place is free once the engine has stopped.
    _place: Place,
}

impl Session {
    /// The memory that should be free for a session to do no harm: what the dearest engine may take.
    pub const MEMORY: Bytes = itimer::MEMORY;

    /// Starts recording the whole process, `frequency` times per second of CPU time. `anchor`: the
    /// present.
    ///
    /// Blocks the caller, not the process, for some 0.2 s at the first call and less later; the engine's
    /// header has its cost in memory.
    ///
    /// # Errors
    ///
    /// [`Error::Busy`] while another session runs; otherwise why no engine can run here.
    pub fn start(frequency: Hertz, anchor: Anchor) -> Result<Self, Error> {
        let place = Place::claim().ok_or(Error::Busy)?;
        let engine = Box::new(itimer::Itimer::start(frequency, anchor)?);
        Ok(Self { engine, _place: place })
    }

    /// The name of the engine that records.
    pub fn engine(&self) -> &'static str {
        self.engine.name()
    }

    /// Ends the recording at `now` and reports it: addresses with their mappings, to be named by
    /// `symbols`.
    pub fn stop(self, now: Moment) -> Result<Profile, Error> {
        self.engine.stop(now)
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
