//! The threads of the process, which only Linux lists.

use std::time::Duration;

use crate::base::{Clock, Moment, SystemClock};

/// What the kernel tells about a thread.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Its id.
    pub tid: u32,
    /// Its name.
    pub name: String,
    /// What it does.
    pub state: char,
    /// The function of the kernel it waits in.
    pub wait_channel: String,
    /// CPU time.
    pub cpu_time: Duration,
    /// The signals it blocks.
    pub blocked: u64,
}

/// Why the threads are unknown.
#[derive(Debug, thiserror::Error)]
#[error("threads can be listed on Linux only")]
pub struct Error;

impl Error {
    /// The error.
    pub fn none_can_be_read() -> Self {
        Self
    }
}

/// Threads that cannot be looked at.
#[derive(Debug)]
pub struct Threads {
    /// Their ids.
    pub tids: Vec<u32>,
}

impl Threads {
    /// None.
    pub fn all() -> Result<Self, Error> {
        Err(Error)
    }

    /// None.
    pub fn of(_tids: Vec<u32>) -> Result<Self, Error> {
        Err(Error)
    }

    /// None.
    pub fn look(&self, _tid: u32) -> Option<Thread> {
        None
    }
}

/// None.
pub fn list() -> Result<Vec<Thread>, Error> {
    Err(Error)
}

/// A number for the calling thread that is not 0.
pub fn current() -> u32 {
    use std::sync::atomic::{AtomicU32, Ordering};

    static NEXT: AtomicU32 = AtomicU32::new(1);
    thread_local! {
        static OWN: u32 = NEXT.fetch_add(1, Ordering::Relaxed);
    }
    OWN.try_with(|own| *own).unwrap_or(u32::MAX)
}

/// The name the calling thread was given when it was made; empty where it has none.
pub fn current_name() -> String {
    std::thread::current().name().unwrap_or_default().to_owned()
}

/// Nobody tells.
pub fn cpu_time() -> Duration {
    Duration::ZERO
}

/// The present.
pub fn recently() -> Moment {
    SystemClock.now()
}
