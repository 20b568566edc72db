//! An agent in a service: incidents from the rule, signal or call that starts them to the files on
//! disk, stalls, reload and shutdown, and what an agent does where the host lacks something or
//! harms it.
//!
//! Engines, codecs, rules, the store and the endpoint by themselves have binaries of their own. The
//! allocator is marple's, as in a service; an agent in a program without it belongs to
//! `tests/no_allocator`. One agent may run in a process, so each test needs a process of its own
//! (nextest).
#![cfg(all(feature = "cpu", feature = "heap", feature = "trace", feature = "http"))]

#[path = "../support/mod.rs"]
mod support;

mod budget_restarts;
mod callbacks;
#[cfg(target_os = "linux")]
mod cgroup_limits;
mod collectors;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod cpu_samples;
mod custom_metrics;
mod disk_faults;
#[cfg(target_os = "linux")]
mod disk_quota;
mod full_disk;
mod host_code;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod hostile_conditions;
mod incidents;
mod kill;
mod panics;
mod readers;
mod recorded_stalls;
mod reload;
mod shutdown;
mod start;
#[cfg(all(target_os = "linux", target_env = "gnu"))]
mod syscalls;
mod toggle_signal;
mod unrecorded_stalls;

use std::alloc::System;

#[global_allocator]
static ALLOCATOR: marple::Allocator<System> = marple::Allocator::new(System);
