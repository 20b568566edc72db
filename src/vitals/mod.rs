//! Vitals of the process, read once per tick.
//!
//! [`Reader`] belongs to the agent and reads on the agent's thread only. [`Runtimes`] and
//! [`Metrics`](crate::metrics::Metrics) are for the service's threads: they are cheap to clone, and
//! block the reader no longer than a push onto a list.
//!
//! ```text
//! service                                        agent's thread, each tick
//! runtimes.observe(handle) ──> list of handles ──> probe woken on each ──> tasks, lag
//! gauge.set(x) ──────────────> one atomic each ──> copied                   ──> Vitals
//! counter.add(n) ────────────> one atomic each ──> minus its value a second ago
//! histogram.record(x) ───────> one of 1922     ──> likewise, each
//!                              /proc, cgroup   ──> two dozen system calls
//! ```
//!
//! A tick does not allocate in steady state. `cargo bench --bench idle` prints its cost, including
//! the wake-ups of the observed runtimes: 19 to 24 us of CPU without a runtime, 33 us with an idle
//! one of two workers.

mod blocking;
pub mod cgroup;
mod contention;
mod cpu_times;
mod intervals;
mod lag_percentile;
mod limits;
mod probe;
mod reader;
mod rise;
mod run_time;
mod runtimes;
mod slow_readings;
mod stalled;
mod trend;
mod unavailable;

#[cfg(feature = "trace")]
pub(crate) use blocking::thread_name_stem;
pub use reader::Reader;
pub use runtimes::Runtimes;

/// An error of watching a runtime.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The list of runtimes is full.
    #[error(
        "{max} runtimes are already observed, which is the limit; runtimes that have shut down are \
         removed at the next tick",
        max = runtimes::MAX_RUNTIMES
    )]
    TooManyRuntimes,
}
