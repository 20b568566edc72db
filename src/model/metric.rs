//! What a rule can watch.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::vitals::Vitals;

/// The unit of a metric's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Hundredths of a limit.
    Percent,
    /// Bytes.
    Bytes,
    /// A plain number.
    Count,
    /// Seconds; written as a duration.
    Seconds,
}

/// One measure of the process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub enum Metric {
    /// Working set as a share of the memory limit: `memory`.
    Memory,
    /// Working set: `memory.working_set`.
    WorkingSet,
    /// Resident set: `memory.rss`.
    Rss,
    /// What the program has asked its allocator for and not given back: `memory.heap`.
    Heap,
    /// CPU time as a share of the quota, or of all cores: `cpu`.
    Cpu,
    /// Tasks alive on the observed runtimes: `tasks`.
    Tasks,
    /// Threads of the process: `threads`.
    Threads,
    /// Open file descriptors: `fds`.
    Fds,
    /// How late a probe task ran, on the worst of the observed runtimes: `runtime.lag`.
    Lag,
    /// A number the service reports itself: `gauge.NAME`.
    Gauge(Arc<str>),
}

/// Every metric with a fixed name.
const FIXED: [(&str, Metric); 9] = [
    ("memory", Metric::Memory),
    ("memory.working_set", Metric::WorkingSet),
    ("memory.rss", Metric::Rss),
    ("memory.heap", Metric::Heap),
    ("cpu", Metric::Cpu),
    ("tasks", Metric::Tasks),
    ("threads", Metric::Threads),
    ("fds", Metric::Fds),
    ("runtime.lag", Metric::Lag),
];

impl Metric {
    /// Every metric that needs no name of the service's own.
    pub fn fixed() -> impl Iterator<Item = Self> {
        FIXED.into_iter().map(|(_, metric)| metric)
    }

    /// The unit its values and thresholds are in.
    pub const fn unit(&self) -> Unit {
        match self {
            Self::Memory | Self::Cpu => Unit::Percent,
            Self::WorkingSet | Self::Rss | Self::Heap => Unit::Bytes,
            Self::Tasks | Self::Threads | Self::Fds | Self::Gauge(_) => Unit::Count,
            Self::Lag => Unit::Seconds,
        }
    }

    /// Its value in `vitals`; none when it could not be measured.
    pub fn value(&self, vitals: &Vitals) -> Option<f64> {
        match self {
            Self::Memory => vitals.memory_percent().map(|percent| percent.get()),
            Self::WorkingSet => vitals.working_set.map(|bytes| bytes.get() as f64),
            Self::Rss => vitals.rss.map(|bytes| bytes.get() as f64),
            Self::Heap => vitals.heap.map(|bytes| bytes.get() as f64),
            Self::Cpu => vitals.cpu_percent().map(|percent| percent.get()),
            Self::Tasks => vitals.tasks.map(|n| n as f64),
            Self::Threads => vitals.threads.map(|n| n as f64),
            Self::Fds => vitals.fds.map(|n| n as f64),
            Self::Lag => vitals.lag.map(|lag| lag.as_secs_f64()),
            Self::Gauge(name) => vitals.gauge(name),
        }
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Self::Gauge(name) = self {
            return write!(f, "gauge.{name}");
        }
        let (name, _) =
            FIXED.iter().find(|(_, metric)| metric == self).expect("every fixed metric is listed");
        f.write_str(name)
    }
}

/// Why a text is not a metric.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a metric: write one of \"memory\", \"memory.working_set\", \"memory.rss\", \
     \"memory.heap\", \"cpu\", \"tasks\", \"threads\", \"fds\", \"runtime.lag\", or \"gauge.NAME\" for one \
     of your own"
)]
pub struct ParseMetricError(String);

impl FromStr for Metric {
    type Err = ParseMetricError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        if let Some(name) = text.strip_prefix("gauge.").filter(|name| !name.is_empty()) {
            return Ok(Self::Gauge(name.into()));
        }
        FIXED
            .iter()
            .find(|(name, _)| *name == text)
            .map(|(_, metric)| metric.clone())
            .ok_or_else(|| ParseMetricError(text.to_owned()))
    }
}

impl Serialize for Metric {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_str(self)
    }
}

impl<'de> Deserialize<'de> for Metric {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        String::deserialize(deserializer)?.parse().map_err(serde::de::Error::custom)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_read_back_as_themselves() {
        for (name, metric) in &FIXED {
            assert_eq!(name.parse().as_ref(), Ok(metric));
            assert_eq!(metric.to_string(), *name);
        }
        let gauge: Metric = "gauge.queue".parse().unwrap();
        assert_eq!(gauge, Metric::Gauge("queue".into()));
        assert_eq!(gauge.to_string(), "gauge.queue");
        assert!("gauge.".parse::<Metric>().is_err());
    }
}
