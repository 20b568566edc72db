//! Measures no contention.

use std::path::Path;
use std::time::Duration;

/// Waits for a core in a period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct RunDelay {
    /// Of all threads.
    pub total: Duration,
    /// Of threads that ran or waited nearly all the time.
    pub of_computing: Duration,
}

/// What cannot be read.
#[derive(Debug)]
pub struct RunDelays;

impl RunDelays {
    /// None: nobody tells.
    pub fn open() -> Option<Self> {
        None
    }

    /// None.
    pub fn take_delta(&mut self, _elapsed: Duration) -> Option<RunDelay> {
        None
    }
}

/// CPU time of the whole machine so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct MachineTime {
    /// Time in which cores did anything.
    pub busy: Duration,
    /// Time in which they did nothing.
    pub idle: Duration,
}

/// What cannot be read.
#[derive(Debug)]
pub struct MachineCpu;

impl MachineCpu {
    /// None: nobody tells.
    pub fn open(_root: &Path) -> Option<Self> {
        None
    }

    /// None.
    pub fn read(&self) -> Option<MachineTime> {
        None
    }
}
