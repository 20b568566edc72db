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
    /// How long the longest poll of a task has lasted that goes on: `runtime.stall`.
    Stall,
    /// What the working set grows by, in bytes a second: `memory.growth`.
    MemoryGrowth,
    /// Times in a second that the cgroup was above `memory.high`: `memory.high_events`.
    MemoryHigh,
    /// Processes of the cgroup killed in a second for lack of memory: `memory.oom_kills`.
    OomKills,
    /// Share of ten seconds in which something waited for memory: `memory.pressure`.
    MemoryPressure,
    /// Share of the CPU periods in which the quota throttled us: `cpu.throttled`.
    Throttled,
    /// Share of ten seconds in which something waited for a CPU: `cpu.pressure`.
    CpuPressure,
    /// Share of ten seconds in which something waited for input or output: `io.pressure`.
    IoPressure,
    /// What the tasks grow by, in a second: `tasks.growth`.
    TaskGrowth,
    /// Open file descriptors as a share of how many there may be: `fds.share`.
    FdShare,
    /// What 99 of 100 lags of the last minute were below: `runtime.lag_p99`.
    LagP99,
    /// Panics in a second, if they are counted: `panics`.
    Panics,
    /// A number the service reports itself: `gauge.NAME`.
    Gauge(Arc<str>),
}

/// Every metric with a fixed name.
const FIXED: &[(&str, Metric)] = &[
    ("memory", Metric::Memory),
    ("memory.working_set", Metric::WorkingSet),
    ("memory.rss", Metric::Rss),
    ("memory.heap", Metric::Heap),
    ("cpu", Metric::Cpu),
    ("tasks", Metric::Tasks),
    ("threads", Metric::Threads),
    ("fds", Metric::Fds),
    ("runtime.lag", Metric::Lag),
    ("runtime.stall", Metric::Stall),
    ("memory.growth", Metric::MemoryGrowth),
    ("memory.high_events", Metric::MemoryHigh),
    ("memory.oom_kills", Metric::OomKills),
    ("memory.pressure", Metric::MemoryPressure),
    ("cpu.throttled", Metric::Throttled),
    ("cpu.pressure", Metric::CpuPressure),
    ("io.pressure", Metric::IoPressure),
    ("tasks.growth", Metric::TaskGrowth),
    ("fds.share", Metric::FdShare),
    ("runtime.lag_p99", Metric::LagP99),
    ("panics", Metric::Panics),
];

impl Metric {
    /// Every metric that needs no name of the service's own.
    pub fn fixed() -> impl Iterator<Item = Self> {
        FIXED.iter().map(|(_, metric)| metric.clone())
    }

    /// The unit its values and thresholds are in.
    pub const fn unit(&self) -> Unit {
        match self {
            Self::Memory
            | Self::Cpu
            | Self::Throttled
            | Self::FdShare
            | Self::MemoryPressure
            | Self::CpuPressure
            | Self::IoPressure => Unit::Percent,
            Self::WorkingSet | Self::Rss | Self::Heap | Self::MemoryGrowth => Unit::Bytes,
            Self::Tasks
            | Self::TaskGrowth
            | Self::Threads
            | Self::Fds
            | Self::MemoryHigh
            | Self::OomKills
            | Self::Panics
            | Self::Gauge(_) => Unit::Count,
            Self::Lag | Self::LagP99 | Self::Stall => Unit::Seconds,
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
            Self::Stall => vitals.stall.map(|stall| stall.as_secs_f64()),
            Self::MemoryGrowth => vitals.memory_growth,
            Self::MemoryHigh => vitals.memory_high.map(|n| n as f64),
            Self::OomKills => vitals.oom_kills.map(|n| n as f64),
            Self::MemoryPressure => vitals.memory_pressure.map(|percent| percent.get()),
            Self::Throttled => vitals.cpu_throttled.map(|percent| percent.get()),
            Self::CpuPressure => vitals.cpu_pressure.map(|percent| percent.get()),
            Self::IoPressure => vitals.io_pressure.map(|percent| percent.get()),
            Self::TaskGrowth => vitals.task_growth,
            Self::FdShare => vitals.fd_percent().map(|percent| percent.get()),
            Self::LagP99 => vitals.lag_p99.map(|lag| lag.as_secs_f64()),
            Self::Panics => vitals.panics.map(|n| n as f64),
            Self::Gauge(name) => vitals.gauge(name),
        }
    }

    /// Whether its values run up against a limit, where there is one.
    pub const fn has_limit(&self) -> bool {
        matches!(self, Self::Memory | Self::Cpu | Self::FdShare | Self::WorkingSet | Self::Rss)
    }

    /// The limit its value runs up against, in its unit; none for what has none, or none known.
    pub fn limit(&self, vitals: &Vitals) -> Option<f64> {
        match self {
            Self::Memory | Self::Cpu | Self::FdShare => Some(100.0),
            Self::WorkingSet | Self::Rss => {
                vitals.memory_limit.as_ref().map(|limit| limit.value.get() as f64)
            }
            _ => None,
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
    "`{0}` is not a metric: write one of {known}, or \"gauge.NAME\" for one of your own",
    known = known()
)]
pub struct ParseMetricError(String);

/// The names there are, in quotes.
fn known() -> String {
    let names: Vec<String> = FIXED.iter().map(|(name, _)| format!("\"{name}\"")).collect();
    names.join(", ")
}

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
        for (name, metric) in FIXED {
            assert_eq!(name.parse().as_ref(), Ok(metric));
            assert_eq!(metric.to_string(), *name);
        }
        let gauge: Metric = "gauge.queue".parse().unwrap();
        assert_eq!(gauge, Metric::Gauge("queue".into()));
        assert_eq!(gauge.to_string(), "gauge.queue");
        assert!("gauge.".parse::<Metric>().is_err());
    }
}
