//! Metrics of the service itself: gauges, counters, histograms, and panics of its tasks.
//!
//! Each handle is cheap to clone and may be used from any thread. Setting a gauge, adding to a
//! counter and recording a value are one or a few atomic operations. The agent copies all values
//! once a tick.

pub(crate) mod counters;
pub(crate) mod gauges;
pub(crate) mod histograms;
mod panics;
pub(crate) mod reader;
mod registry;

pub use counters::Counter;
pub use gauges::Gauge;
pub(crate) use histograms::Distribution;
pub use histograms::Histogram;
pub use panics::count_panics;
pub(crate) use reader::Metrics;
pub(crate) use reader::MetricsReader;

/// An error of registering a metric.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum Error {
    /// The name cannot be used in a rule, a file and a URL alike.
    #[error(
        "`{name}` is not a valid {kind} name: write 1 to 64 lower-case letters, digits, `_` and `.`, \
         such as \"queue.length\""
    )]
    Name {
        /// The kind of metric: `gauge`, `counter` or `histogram`.
        kind: &'static str,
        /// The name, truncated if it is very long.
        name: String,
    },
    /// The limit of metrics of this kind is reached.
    #[error(
        "cannot register {kind} `{name}`: the limit of {limit} is reached; register metrics at \
         start, not one per request or user"
    )]
    TooMany {
        /// The kind of metric: `gauge`, `counter` or `histogram`.
        kind: &'static str,
        /// The name.
        name: String,
        /// The limit.
        limit: usize,
    },
}
