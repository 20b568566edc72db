//! Records of the runtime, without an agent:
//!
//! - `leaves`, `tasks` and `threads`: dumps as `marple::stacks` takes them. Which tasks and threads
//!   they have, in which state, and how complete their stacks are.
//! - The other modules: traces as `marple::trace` records them on stable tokio. Polls of wrapped
//!   tasks, parks, spans, vitals and process events, and the memory that recording takes.
//!
//! What tokio's hooks record belongs to `tests/trace_hooks`, the file format to `tests/files`, and
//! stalls, which take dumps in an agent, to `tests/agent`. The allocator counts, because recording
//! must not allocate. Tasks, threads and sessions are those of the process, so each test needs a
//! separate one (nextest).

#[path = "../support/mod.rs"]
mod support;

#[cfg(feature = "trace")]
mod busy_time;
#[cfg(feature = "trace")]
mod earlier_vitals;
mod leaves;
#[cfg(feature = "trace")]
mod load;
#[cfg(feature = "trace")]
mod memory;
#[cfg(feature = "trace")]
mod parks;
#[cfg(feature = "trace")]
mod polls;
#[cfg(feature = "trace")]
mod process_events;
#[cfg(feature = "trace")]
mod spans;
mod tasks;
mod threads;

use crate::support::counting::Counting;

#[global_allocator]
static ALLOCATOR: Counting = Counting;
