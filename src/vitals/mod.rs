//! Vitals of the process, read once per tick.
//!
//! [`Reader`] belongs to the agent and reads on the agent's thread only. [`Runtimes`] and
//! [`Numbers`] are for the service's threads: they are cheap to clone, and block the reader no
//! longer than a push onto a list.
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

/// Reason for refusing a metric or a runtime.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Error {
    /// The name of a gauge, a counter or a histogram is not usable in a rule, a file and a URL
    /// alike.
    #[error(
        "`{name}` is not a {what}'s name: write 1 to 64 lower-case letters, digits, `_` and `.`, \
         such as \"queue.length\""
    )]
    Name {
        /// Kind of metric: `gauge`, `counter` or `histogram`.
        what: &'static str,
        /// The name, cut if it is very long.
        name: String,
    },
    /// The maximum number of metrics of this kind is reached.
    #[error(
        "{what} `{name}` is one too many: there are {most} already; make them at start, not one for \
         each request or user"
    )]
    TooMany {
        /// Kind of metric: `gauge`, `counter` or `histogram`.
        what: &'static str,
        /// Name of the refused metric.
        name: String,
        /// Maximum number of metrics of this kind.
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
