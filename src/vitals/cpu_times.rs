//! Time that threads wait for a core, and the utilization of the machine.
//!
//! | | file | cost |
//! |---|---|---|
//! | run delay of a runnable thread | `task/TID/schedstat`, field 2 | 4 us per thread |
//! | idle time of all cores | `/proc/stat`, first line | 30 us, more on large machines |
//!
//! A steady tick reads neither: see `contention`.

#[cfg(target_os = "linux")]
mod linux;
#[cfg(not(target_os = "linux"))]
mod unsupported;

#[cfg(target_os = "linux")]
pub(super) use linux::{MachineCpu, RunDelays};
#[cfg(not(target_os = "linux"))]
pub(super) use unsupported::{MachineCpu, RunDelays};

use std::time::Duration;

/// Time that threads waited for a core in a period.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct RunDelay {
    /// Wait of all threads.
    pub(crate) total: Duration,
    /// Wait of threads that ran or waited nearly all the time. Each would use a whole core if it
    /// were alone on the machine.
    pub(crate) of_busy_threads: Duration,
}

/// Cumulative CPU time of the whole machine.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct MachineTime {
    /// Time in which cores were busy.
    pub(crate) busy: Duration,
    /// Time in which cores were idle or waited for a disk.
    pub(crate) idle: Duration,
}
