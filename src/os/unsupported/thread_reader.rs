//! Stub: thread inspection is Linux-only.

use std::time::Duration;

use super::threads::Thread;

/// Scheduler statistics of a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedStat {
    /// CPU time.
    pub cpu_time: Duration,
    /// Run delay: time spent waiting for a core.
    pub run_delay: Duration,
    /// Number of timeslices on a core.
    pub timeslices: u64,
}

/// Stub of the thread reader; cannot be opened.
pub struct ProcThreadReader;

impl ProcThreadReader {
    /// Returns an error text.
    pub fn open() -> Result<Self, String> {
        Err("threads can be inspected on Linux only".to_owned())
    }

    /// Returns `None`.
    pub fn thread_state(&self, _tid: u32) -> Option<(Thread, SchedStat)> {
        None
    }

    /// Returns `None`.
    pub fn sched_stat(&self, _tid: u32) -> Option<SchedStat> {
        None
    }
}
