//! Stub: CPU contention is measured only on Linux.

use std::path::Path;
use std::time::Duration;

/// Time that threads waited for a core in a period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunDelay {
    /// Wait of all threads.
    pub total: Duration,
    /// Wait of threads that ran or waited nearly all the time.
    pub of_busy_threads: Duration,
}

/// Stub of the run delay reader.
#[derive(Debug)]
pub struct RunDelays;

impl RunDelays {
    /// Returns `None`: not available on this platform.
    pub fn open() -> Option<Self> {
        None
    }

    /// Returns `None`.
    pub fn take_delta(&mut self, _elapsed: Duration) -> Option<RunDelay> {
        None
    }
}

/// Cumulative CPU time of the whole machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineTime {
    /// Time in which cores were busy.
    pub busy: Duration,
    /// Time in which cores were idle.
    pub idle: Duration,
}

/// Stub of the reader of the machine's CPU time.
#[derive(Debug)]
pub struct MachineCpu;

impl MachineCpu {
    /// Returns `None`: not available on this platform.
    pub fn open(_root: &Path) -> Option<Self> {
        None
    }

    /// Returns `None`.
    pub fn read(&self) -> Option<MachineTime> {
        None
    }
}
