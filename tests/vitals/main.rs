//! Vitals: what a tick measures of the process, of its cgroup and of observed runtimes, and that
//! measuring allocates nothing.
//!
//! No test here starts an agent; what a service does at the limits of its cgroup belongs to
//! `tests/agent`. The allocator counts. It is not marple's, whose tables would be part of the
//! memory that `process` measures.

#[path = "../support/mod.rs"]
mod support;

#[cfg(target_os = "linux")]
mod allocations;
#[cfg(target_os = "linux")]
mod cgroup;
#[cfg(target_os = "linux")]
mod pressure;
#[cfg(target_os = "linux")]
mod process;
#[cfg(target_os = "linux")]
mod real_cgroup;
mod runtimes;

use crate::support::counting::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;
