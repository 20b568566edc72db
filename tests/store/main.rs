//! The incident directory: what is written into it and when, its limits, and what is left after a
//! kill, on a full disk, or on a file system that lacks something.
//!
//! Most tests use `marple::store` alone. What an agent does about such failures belongs to
//! `tests/agent`. The allocator counts, because a large store must be served in bounded memory.

#[path = "../support/mod.rs"]
mod support;

#[cfg(target_os = "linux")]
mod features;
mod fork;
mod full;
mod hostile;
mod kill;
mod kill_agent;
mod manifest;
#[cfg(all(feature = "http", target_os = "linux"))]
mod memory;
mod removed;
#[cfg(target_os = "linux")]
mod volume;

use crate::support::counting::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;
