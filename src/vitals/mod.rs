//! Reads the vitals, once a tick.
//!
//! [`Reader`] is the agent's; it alone reads, on the agent's thread. [`Runtimes`] and [`Gauges`]
//! are what the service may touch from its own threads: cheap to clone, and never in the reader's
//! way for longer than it takes to push onto a list.
//!
//! ```text
//! service                                        agent's thread, each tick
//! runtimes.observe(handle) ──> list of handles ──> probe woken on each ──> tasks, lag
//! gauge.set(x) ──────────────> one atomic each ──> copied                   ──> Vitals
//!                              /proc, cgroup   ──> two dozen system calls
//! ```
//!
//! A steady tick allocates nothing. `cargo bench --bench idle` prints what it takes, the waking of
//! the observed runtimes included: 19 to 24 us of CPU without a runtime, 33 us with an idle one of
//! two workers.

mod gauges;
mod late;
mod panics;
mod probe;
mod reader;
mod runtimes;
mod trend;

pub use gauges::{Gauge, Gauges};
pub use panics::count_panics;
pub use reader::Reader;
pub use runtimes::Runtimes;

/// What a service asked for and cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// A gauge's name could not stand in a rule, a file and a URL alike.
    #[error(
        "`{0}` is not a gauge's name: write 1 to 64 lower-case letters, digits, `_` and `.`, \
         such as \"queue.length\""
    )]
    GaugeName(String),
    /// The list of gauges is full.
    #[error(
        "gauge `{0}` is one too many: there are {max} already; make gauges at start, not one for \
         each request or user",
        max = gauges::MAX_GAUGES
    )]
    TooManyGauges(String),
    /// The list of runtimes is full.
    #[error(
        "this runtime is one too many to observe: there are {max} already; runtimes that have shut \
         down leave the list at the next tick",
        max = runtimes::MAX_RUNTIMES
    )]
    TooManyRuntimes,
}
