//! The kernel's values of one thread.

use std::time::Duration;

/// State of a thread, as reported by the kernel.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Thread {
    /// Thread ID.
    pub tid: u32,
    /// Thread name: at most 15 bytes.
    pub name: String,
    /// State: `R`, `S`, `D`, …
    pub state: char,
    /// Kernel function that the thread waits in; empty if it does not wait, or if the kernel hides
    /// it.
    pub wait_channel: String,
    /// CPU time, in the kernel's ticks of 10 ms.
    pub cpu_time: Duration,
    /// Blocked signals up to 31; bit n - 1 stands for signal n.
    pub blocked: u64,
}

/// Scheduler statistics of a thread.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SchedStat {
    /// CPU time, as of the kernel's last update.
    pub cpu_time: Duration,
    /// Run delay: time spent waiting for a core.
    pub run_delay: Duration,
    /// Number of timeslices on a core.
    pub timeslices: u64,
}
