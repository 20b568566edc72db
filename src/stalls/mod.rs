//! Stall detection: polls that last longer than a threshold, found while they are in progress, and
//! the stack of their thread.
//!
//! ```text
//! trace rings ──► poll_watch ─────► recorded_polls ──────────────┐
//!                 (open polls)      (exact times,                │
//!                                    waits excluded)             ├─► detector ─► recent
//! runtime     ──► worker_samples ─► unrecorded_polls ────────────┘   (dump of    (`stall` metric,
//! counters        (thread_probe,    (suspicion, confirmed             the thread) log, dump for
//!                  poll_roles)       by stacks)                                   an incident)
//! ```
//!
//! Recorded polls are timed exactly by the trace's hooks or task wrapper. Unrecorded polls are
//! inferred: a worker whose counters stand still is sampled, and its stack shows whether it is in
//! a poll. The decisions (`recorded_polls`, `unrecorded_polls`, `workers`, the budgets) are pure
//! and tested by table; `poll_watch` and `worker_samples` read the process for them.
//!
//! A stop of the whole process (SIGSTOP, a frozen cgroup, a suspended machine) is no stall:
//! `standstill` measures it, and every duration here excludes it.

#[cfg(feature = "trace")]
pub(crate) mod detector;
#[cfg(not(feature = "trace"))]
#[path = "unsupported.rs"]
pub(crate) mod detector;
#[cfg(feature = "trace")]
mod in_place;
#[cfg(feature = "trace")]
mod poll_roles;
#[cfg(feature = "trace")]
mod poll_watch;
pub(crate) mod recent;
#[cfg(feature = "trace")]
mod recorded_polls;
#[cfg(feature = "trace")]
mod search_budget;
#[cfg(feature = "trace")]
mod stack_budget;
mod stall_log;
pub(crate) mod standstill;
#[cfg(feature = "trace")]
mod thread_probe;
#[cfg(feature = "trace")]
mod unrecorded_polls;
#[cfg(feature = "trace")]
mod waits;
#[cfg(feature = "trace")]
mod worker_samples;
#[cfg(feature = "trace")]
mod workers;
