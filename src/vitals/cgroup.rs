//! Limits of the process's cgroup and its ancestors, v1 and v2, and the usage charged to them.
//!
//! A limit applies to a cgroup and all its descendants. The effective limit is the smallest one
//! between the process's own cgroup and the highest visible ancestor. Memory use is that of the
//! cgroup *with the limit*, other processes included, because that usage is what reaches the limit.
//! Of two equal limits the higher cgroup counts, because its usage is never less.
//!
//! | | v1 | v2 |
//! |---|---|---|
//! | limit that kills | `memory.limit_in_bytes` (huge: none) | `memory.max` (`max`: none) |
//! | limit that throttles | none: `memory.soft_limit_in_bytes` does not | `memory.high` |
//! | memory used | `memory.usage_in_bytes` | `memory.current` |
//! | reclaimable | `memory.stat`, see below | `memory.stat`, see below |
//! | CPU quota | `cpu.cfs_quota_us` / `cpu.cfs_period_us`; -1 is no quota | both in `cpu.max` |
//!
//! # Working set
//!
//! ```text
//! working set = usage - reclaimable
//! reclaimable = inactive_file + active_file + slab_reclaimable              (v2)
//!             = total_inactive_file + total_active_file                     (v1)
//! ```
//!
//! The kernel reclaims file pages before it kills, whether they were read or mapped, used once or
//! often. Both lists of file pages are therefore reclaimable. Dirty pages and pages under writeback
//! count too, as in the kernel's own estimate `MemAvailable` (Documentation/filesystems/proc.rst):
//! they can be reclaimed once written. So do dentries and inodes (`slab_reclaimable`). Not
//! reclaimable without swap, and on neither list: heap, shared memory and tmpfs files (on the
//! anonymous lists), and locked pages (`unevictable`).
//!
//! Reclaimable cache is not free: a service that needs it again at once, such as its own code,
//! becomes slow before it is killed. `memory.pressure`, `memory.high_events` and
//! `memory.max_events` measure that.
//!
//! **Cost.** [`Cgroup::memory_use`], called at each tick: two reads, 1.3 and 7 us on v1. Reading
//! v2's `memory.stat` first collects per-CPU counts, which takes longer on machines with many CPUs.
//! It is still read each time together with the usage: if cache is traded for heap at the limit,
//! only the split between them changes, and that is when the value matters most.
//! [`Cgroup::refresh`], called each second: one open and read of 4 us for each ancestor and limit,
//! 30 to 60 us in all. Neither allocates while nothing changes. No descriptor is held per ancestor,
//! so deeply nested cgroups use no more descriptors.
//!
//! **Not visible**: ancestors above the root of the process's cgroup namespace (a pod's limit from
//! inside its container), and swap limits. [`Cgroup::problem`] reports this if no other limit is
//! known.

#[cfg(target_os = "linux")]
mod levels;
#[cfg(target_os = "linux")]
mod limits;
#[cfg(target_os = "linux")]
mod memory;
#[cfg(target_os = "linux")]
mod path;
#[cfg(target_os = "linux")]
mod pressure;
#[cfg(not(target_os = "linux"))]
mod unsupported;

#[cfg(not(target_os = "linux"))]
pub use self::unsupported::{Cgroup, LimitProblem};
#[cfg(target_os = "linux")]
pub use self::{limits::Cgroup, memory::LimitProblem};

use crate::base::{Bytes, Percent};

/// Memory charged to a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemoryUse {
    /// Charged memory less reclaimable memory.
    pub working_set: Bytes,
    /// File and kernel caches that the kernel reclaims before it kills or throttles.
    pub reclaimable: Bytes,
}

/// Pressure counters and averages of the kernel. A field is `None` if its file cannot be read.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct ResourcePressure {
    /// CPU periods in which the cgroup with the effective quota ran.
    pub cpu_periods: Option<u64>,
    /// CPU periods in which that cgroup was throttled.
    pub throttled_periods: Option<u64>,
    /// Index of the memory limit to which `memory_high` and `memory_max` belong.
    pub memory_level: Option<usize>,
    /// Number of reclaims because usage exceeded `memory.high`.
    pub memory_high_events: Option<u64>,
    /// Number of reclaims because usage reached the limit.
    pub memory_max_events: Option<u64>,
    /// Number of processes killed for lack of memory.
    pub oom_kills: Option<u64>,
    /// Percentage of the last ten seconds in which a thread waited for memory.
    pub memory_pressure: Option<Percent>,
    /// Percentage of the last ten seconds in which a thread waited for a CPU.
    pub cpu_pressure: Option<Percent>,
    /// Percentage of the last ten seconds in which a thread waited for I/O.
    pub io_pressure: Option<Percent>,
}
