//! CPU profiles as `marple::cpu` takes them, each engine and wall mode: what they attribute, what
//! they lose and say about it, what they leave of the host's signals, descriptors and timers, and
//! what they survive (`stress`). The crate `pprof` is one of the engines, hence its feature.
//!
//! Samples in the traces and profiles of an incident belong to `tests/agent`. The allocator counts,
//! because the signal handler must not allocate. Signals, filters and limits are those of the
//! process, so each test needs a process of its own (nextest).
#![cfg(all(feature = "pprof", target_os = "linux"))]

#[path = "../support/mod.rs"]
mod support;

#[cfg(target_env = "gnu")]
mod alternate_stack;
#[cfg(all(target_env = "gnu", target_arch = "x86_64"))]
mod builds;
#[cfg(target_env = "gnu")]
mod charged_time;
#[cfg(target_env = "gnu")]
mod churn;
#[cfg(target_env = "gnu")]
mod denied_perf_events;
#[cfg(target_env = "gnu")]
mod engines;
mod fork;
#[cfg(target_env = "gnu")]
mod host_handler;
#[cfg(target_env = "gnu")]
mod lookback;
#[cfg(all(target_env = "gnu", target_arch = "x86_64"))]
mod odd_stacks;
#[cfg(target_env = "gnu")]
mod page_faults;
#[cfg(target_env = "gnu")]
mod pprof;
#[cfg(target_env = "gnu")]
mod replaced_handler;
#[cfg(target_env = "gnu")]
mod resource_limits;
mod stress;
#[cfg(target_env = "gnu")]
mod unloaded_library;
#[cfg(target_env = "gnu")]
mod wall;

use crate::support::counting::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;
