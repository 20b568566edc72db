//! Stub: these times are read only on Linux.

use std::path::Path;
use std::time::Duration;

use super::{MachineTime, RunDelay};

/// Stub of the run delay reader.
#[derive(Debug)]
pub(crate) struct RunDelays;

impl RunDelays {
    /// Returns `None`: not available on this platform.
    pub(crate) fn open() -> Option<Self> {
        None
    }

    /// Returns `None`.
    pub(crate) fn take_delta(&mut self, _elapsed: Duration) -> Option<RunDelay> {
        None
    }
}

/// Stub of the reader of the machine's CPU time.
#[derive(Debug)]
pub(crate) struct MachineCpu;

impl MachineCpu {
    /// Returns `None`: not available on this platform.
    pub(crate) fn open(_root: &Path) -> Option<Self> {
        None
    }

    /// Returns `None`.
    pub(crate) fn read(&self) -> Option<MachineTime> {
        None
    }
}
