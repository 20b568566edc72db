//! Runtime traces as `marple::trace` records them on stable tokio: polls of wrapped tasks, parks,
//! spans, vitals and process events, and the memory that recording takes.
//!
//! What tokio's hooks record belongs to `tests/trace_hooks`, the file format to `tests/files`. The
//! allocator counts, because recording must not allocate.

#[path = "../support/mod.rs"]
mod support;

mod busy_time;
mod earlier_vitals;
mod load;
mod memory;
mod parks;
mod polls;
mod process_events;
mod spans;

use crate::support::counting::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;
