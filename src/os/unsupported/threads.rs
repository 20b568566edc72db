//! Stub: the threads of the process are listed only on Linux.

use std::time::Duration;

use crate::base::{Clock, Moment, SystemClock};
pub use crate::os::proc::thread::Thread;

/// An error while listing threads.
#[derive(Debug, thiserror::Error)]
#[error("threads can be listed on Linux only")]
pub struct Error;

impl Error {
    /// Creates the error.
    pub fn no_readable_thread() -> Self {
        Self
    }
}

/// Stub of a selection of threads; cannot be created.
#[derive(Debug)]
pub struct Threads {
    /// Thread IDs.
    pub tids: Vec<u32>,
}

impl Threads {
    /// Returns an error.
    pub fn all() -> Result<Self, Error> {
        Err(Error)
    }

    /// Returns an error.
    pub fn with_tids(_tids: Vec<u32>) -> Result<Self, Error> {
        Err(Error)
    }

    /// Returns `None`.
    pub fn thread_state(&self, _tid: u32) -> Option<Thread> {
        None
    }
}

/// Returns an error.
pub fn list() -> Result<Vec<Thread>, Error> {
    Err(Error)
}

/// Returns a number for the calling thread, never 0.
pub fn current_tid() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};

    static NEXT: AtomicU32 = AtomicU32::new(1);
    thread_local! {
        static OWN: u32 = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    OWN.try_with(|own| *own).unwrap_or(u32::MAX)
}

/// Returns the name given to the calling thread at its creation, or an empty string.
pub fn current_name() -> String {
    std::thread::current().name().unwrap_or_default().to_owned()
}

/// Returns 0: not available on this platform.
pub fn cpu_time() -> Duration {
    Duration::ZERO
}

/// Returns the current time.
pub fn coarse_now() -> Moment {
    SystemClock.now()
}
