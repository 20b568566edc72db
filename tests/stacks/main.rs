//! Dumps of threads and tasks, as `marple::stacks` takes them: which threads and tasks they have,
//! in which state, and how complete their stacks are.
//!
//! Stalls, which take such dumps in an agent, belong to `tests/agent`. The allocator is the
//! system's.

#[path = "../support/mod.rs"]
mod support;

mod leaves;
mod tasks;
mod threads;
