//! Stub: thread inspection is Linux-only.

pub use crate::os::proc::thread::SchedStat;
use crate::os::proc::thread::Thread;

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
