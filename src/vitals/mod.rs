//! Reads the vitals, once a tick.
//!
//! [`Reader`] is the agent's; it alone reads, on the agent's thread. [`Runtimes`] and [`Numbers`]
//! are what the service may touch from its own threads: cheap to clone, and never in the reader's
//! way for longer than it takes to push onto a list.
//!
//! ```text
//! service                                        agent's thread, each tick
//! runtimes.observe(handle) ──> list of handles ──> probe woken on each ──> tasks, lag
//! gauge.set(x) ──────────────> one atomic each ──> copied                   ──> Vitals
//! counter.add(n) ────────────> one atomic each ──> less what it was a second ago
//! histogram.record(x) ───────> one of 1922     ──> likewise, each
//!                              /proc, cgroup   ──> two dozen system calls
//! ```
//!
//! A steady tick allocates nothing. `cargo bench --bench idle` prints what it takes, the waking of
//! the observed runtimes included: 19 to 24 us of CPU without a runtime, 33 us with an idle one of
//! two workers.

mod absent;
mod blocking;
mod contention;
mod counters;
mod gauges;
mod histograms;
mod late;
mod named;
mod numbers;
mod panics;
mod probe;
mod reader;
mod rise;
mod runtimes;
mod stalled;
mod trend;

pub use counters::{Counter, Counters};
pub use gauges::{Gauge, Gauges};
pub use histograms::{Bucket, Distribution, Histogram, Histograms};
pub use numbers::Numbers;
pub use panics::count_panics;
pub use reader::Reader;
pub use runtimes::Runtimes;

/// What a service asked for and cannot have.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The name of a gauge, a counter or a histogram could not stand in a rule, a file and a URL alike.
    #[error(
        "`{name}` is not a {what}'s name: write 1 to 64 lower-case letters, digits, `_` and `.`, \
         such as \"queue.length\""
    )]
    Name {
        /// What was to be called so.
        what: &'static str,
        /// The name, cut when it is very long.
        name: String,
    },
    /// There are as many of them as there may be.
    #[error(
        "{what} `{name}` is one too many: there are {most} already; make them at start, not one for \
         each request or user"
    )]
    TooMany {
        /// What it would have been.
        what: &'static str,
        /// Its name.
        name: String,
        /// How many there may be.
        most: usize,
    },
    /// The list of runtimes is full.
    #[error(
        "this runtime is one too many to observe: there are {max} already; runtimes that have shut \
         down leave the list at the next tick",
        max = runtimes::MAX_RUNTIMES
    )]
    TooManyRuntimes,
}
