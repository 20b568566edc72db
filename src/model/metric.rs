//! Metrics that rules can watch.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::vitals::Vitals;
use crate::model::custom_metrics::{CounterPart, HistogramPart};

/// The unit of a metric's value.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unit {
    /// Percent of a limit or of a period.
    Percent,
    /// Bytes.
    Bytes,
    /// A plain number.
    Count,
    /// Seconds. Thresholds are written as durations.
    Seconds,
}

/// A measured quantity of the process.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum Metric {
    /// `memory`: working set in percent of the memory limit, or address space in percent of the
    /// limit that applies to it if that is higher.
    Memory,
    /// `memory.working_set`: working set.
    WorkingSet,
    /// `memory.rss`: resident set.
    Rss,
    /// `memory.heap`: live heap, that is bytes allocated and not yet freed.
    Heap,
    /// `cpu`: CPU time in percent of the quota, or of all cores if there is no quota.
    Cpu,
    /// `tasks`: tasks alive on the observed runtimes.
    Tasks,
    /// `threads`: threads of the process.
    Threads,
    /// `fds`: open file descriptors.
    Fds,
    /// `runtime.lag`: scheduling delay of a probe task, on the worst of the observed runtimes.
    Lag,
    /// `runtime.stall`: duration of the longest poll still in progress.
    Stall,
    /// `memory.growth`: growth of the working set in bytes per second.
    MemoryGrowth,
    /// `memory.time_to_limit`: seconds until the working set reaches the limit at its current
    /// growth. Infinite if it would take more than 24 hours or the working set does not grow.
    TimeToLimit,
    /// `memory.high_events`: times per second that the cgroup exceeded `memory.high`.
    MemoryHigh,
    /// `memory.max_events`: times per second that the cgroup reached its memory limit.
    MemoryMax,
    /// `memory.oom_kills`: processes of the cgroup killed per second for lack of memory.
    OomKills,
    /// `memory.pressure`: percentage of the last ten seconds in which some thread waited for
    /// memory.
    MemoryPressure,
    /// `cpu.throttled`: percentage of CPU periods in which the quota throttled the cgroup.
    Throttled,
    /// `cpu.pressure`: percentage of the last ten seconds in which some thread waited for a CPU.
    CpuPressure,
    /// `io.pressure`: percentage of the last ten seconds in which some thread waited for I/O.
    IoPressure,
    /// `tasks.growth`: growth of the number of tasks per second.
    TaskGrowth,
    /// `fds.utilization`: open file descriptors in percent of their limit.
    FdUtilization,
    /// `runtime.lag_p99`: 99th percentile of the lag over the last minute.
    LagP99,
    /// `runtime.stalled`: percentage of the last ten seconds in which a runtime ran ready tasks
    /// more than 100 ms late. The worst of the observed runtimes counts. Start-up and waits for a
    /// core are excluded.
    Stalled,
    /// `runtime.blocking_lag`: delay until work gets a thread of a runtime's blocking pool.
    BlockingLag,
    /// `panics`: panics per second.
    Panics,
    /// `cpu.demand`: the value of `cpu` plus the time threads wait for cores used by other
    /// processes.
    CpuDemand,
    /// `runtime.blocked`: percentage of the workers' time in which a poll neither runs nor waits
    /// for a core.
    Blocked,
    /// `tasks.rise`: increase of the number of tasks while it rises persistently; 0 unless it has
    /// at least doubled.
    TaskRise,
    /// `threads.rise`: the same for threads.
    ThreadRise,
    /// `fds.rise`: the same for open file descriptors.
    FdRise,
    /// `gauge.NAME`: a custom gauge.
    Gauge(Arc<str>),
    /// `counter.NAME.rate`, `counter.NAME.total`: a custom counter.
    Counter(Arc<str>, CounterPart),
    /// `histogram.NAME.p50`, `.p99`, `.max`, `.count`: a custom histogram.
    Histogram(Arc<str>, HistogramPart),
}

/// All metrics with a fixed name.
const BUILT_IN: &[(&str, Metric)] = &[
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
    ("memory.time_to_limit", Metric::TimeToLimit),
    ("memory.high_events", Metric::MemoryHigh),
    ("memory.max_events", Metric::MemoryMax),
    ("memory.oom_kills", Metric::OomKills),
    ("memory.pressure", Metric::MemoryPressure),
    ("cpu.throttled", Metric::Throttled),
    ("cpu.pressure", Metric::CpuPressure),
    ("io.pressure", Metric::IoPressure),
    ("tasks.growth", Metric::TaskGrowth),
    ("fds.utilization", Metric::FdUtilization),
    ("runtime.lag_p99", Metric::LagP99),
    ("runtime.stalled", Metric::Stalled),
    ("runtime.blocking_lag", Metric::BlockingLag),
    ("panics", Metric::Panics),
    ("cpu.demand", Metric::CpuDemand),
    ("runtime.blocked", Metric::Blocked),
    ("tasks.rise", Metric::TaskRise),
    ("threads.rise", Metric::ThreadRise),
    ("fds.rise", Metric::FdRise),
];

impl Metric {
    /// Returns all built-in metrics, that is those without a custom name.
    pub fn built_in() -> impl Iterator<Item = Self> {
        BUILT_IN.iter().map(|(_, metric)| metric.clone())
    }

    /// Returns the unit of its values and thresholds.
    pub const fn unit(&self) -> Unit {
        match self {
            Self::Memory
            | Self::Cpu
            | Self::CpuDemand
            | Self::Blocked
            | Self::Throttled
            | Self::Stalled
            | Self::FdUtilization
            | Self::MemoryPressure
            | Self::CpuPressure
            | Self::IoPressure => Unit::Percent,
            Self::WorkingSet | Self::Rss | Self::Heap | Self::MemoryGrowth => Unit::Bytes,
            Self::Tasks
            | Self::TaskGrowth
            | Self::Threads
            | Self::Fds
            | Self::MemoryHigh
            | Self::MemoryMax
            | Self::OomKills
            | Self::Panics
            | Self::TaskRise
            | Self::ThreadRise
            | Self::FdRise
            | Self::Gauge(_)
            | Self::Counter(..)
            | Self::Histogram(..) => Unit::Count,
            Self::Lag | Self::LagP99 | Self::BlockingLag | Self::Stall | Self::TimeToLimit => {
                Unit::Seconds
            }
        }
    }

    /// Returns the value in `vitals`, or `None` if it could not be measured. Always finite, except
    /// for [`Self::TimeToLimit`].
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
            Self::TimeToLimit => vitals.time_to_limit(),
            Self::MemoryHigh => vitals.memory_high.map(|n| n as f64),
            Self::MemoryMax => vitals.memory_max.map(|n| n as f64),
            Self::OomKills => vitals.oom_kills.map(|n| n as f64),
            Self::MemoryPressure => vitals.memory_pressure.map(|percent| percent.get()),
            Self::Throttled => vitals.cpu_throttled.map(|percent| percent.get()),
            Self::CpuPressure => vitals.cpu_pressure.map(|percent| percent.get()),
            Self::IoPressure => vitals.io_pressure.map(|percent| percent.get()),
            Self::TaskGrowth => vitals.task_growth,
            Self::FdUtilization => vitals.fd_percent().map(|percent| percent.get()),
            Self::LagP99 => vitals.lag_p99.map(|lag| lag.as_secs_f64()),
            Self::Stalled => vitals.stalled.map(|percent| percent.get()),
            Self::BlockingLag => vitals.blocking_lag.map(|lag| lag.as_secs_f64()),
            Self::Panics => vitals.panics.map(|n| n as f64),
            Self::CpuDemand => vitals.cpu_demand_percent().map(|percent| percent.get()),
            Self::Blocked => vitals.blocked.map(|percent| percent.get()),
            Self::TaskRise => vitals.task_rise.map(|n| n as f64),
            Self::ThreadRise => vitals.thread_rise.map(|n| n as f64),
            Self::FdRise => vitals.fd_rise.map(|n| n as f64),
            Self::Gauge(name) => vitals.gauge(name),
            Self::Counter(name, part) => vitals.counter(name)?.part(*part),
            Self::Histogram(name, part) => vitals.histogram(name)?.part(*part),
        }
    }

    /// Returns the custom name, or `None` for a built-in metric.
    pub fn custom_name(&self) -> Option<&str> {
        match self {
            Self::Gauge(name) | Self::Counter(name, _) | Self::Histogram(name, _) => Some(name),
            _ => None,
        }
    }

    /// Returns `true` if smaller values are worse, so that rules over it use `below`.
    pub const fn lower_is_worse(&self) -> bool {
        matches!(self, Self::TimeToLimit)
    }

    /// Returns `true` if its values are bounded by a limit, provided that one is set.
    pub const fn has_limit(&self) -> bool {
        matches!(
            self,
            Self::Memory
                | Self::Cpu
                | Self::CpuDemand
                | Self::FdUtilization
                | Self::WorkingSet
                | Self::Rss
        )
    }

    /// Returns `true` if it measures the memory of the process or its cgroup.
    pub const fn is_memory_metric(&self) -> bool {
        matches!(
            self,
            Self::Memory | Self::WorkingSet | Self::Rss | Self::MemoryGrowth | Self::TimeToLimit
        )
    }

    /// Returns the limit of its values, in its unit. `None` if the metric has no limit or the limit
    /// is unknown.
    pub fn limit(&self, vitals: &Vitals) -> Option<f64> {
        match self {
            Self::Memory | Self::Cpu | Self::CpuDemand | Self::FdUtilization => Some(100.0),
            Self::WorkingSet | Self::Rss => {
                vitals.memory_limit.as_ref().map(|limit| limit.value.get() as f64)
            }
            _ => None,
        }
    }
}

impl Metric {
    /// Returns the limit above [`Self::limit`], in its unit: the one at which the kernel kills, if
    /// the lower one only throttles the process. `None` if there is no such limit.
    pub fn hard_limit(&self, vitals: &Vitals) -> Option<f64> {
        let kill = vitals.kill_limit?.get() as f64;
        let soft = vitals.memory_limit.as_ref()?.value.get() as f64;
        let hard_limit = match self {
            Self::Memory if vitals.nearest_memory_limit()?.limit.value.get() as f64 == soft => {
                kill / soft * 100.0
            }
            Self::WorkingSet | Self::Rss => kill,
            _ => return None,
        };
        (kill > soft && hard_limit.is_finite()).then_some(hard_limit)
    }
}

impl fmt::Display for Metric {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Gauge(name) => return write!(f, "gauge.{name}"),
            Self::Counter(name, part) => return write!(f, "counter.{name}.{}", part.name()),
            Self::Histogram(name, part) => return write!(f, "histogram.{name}.{}", part.name()),
            _ => {}
        }
        let (name, _) = BUILT_IN
            .iter()
            .find(|(_, metric)| metric == self)
            .expect("every fixed metric is listed");
        f.write_str(name)
    }
}

/// An error from parsing a [`Metric`].
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is not a metric: {advice}", advice = advice(.0))]
pub struct ParseMetricError(String);

fn advice(text: &str) -> String {
    if text == "fds.share" {
        return "renamed to \"fds.utilization\"".to_owned();
    }
    let names: Vec<String> = BUILT_IN.iter().map(|(name, _)| format!("\"{name}\"")).collect();
    format!(
        "write one of {}, or for a custom metric \"gauge.NAME\", \"counter.NAME.rate\" (or .total), \
         \"histogram.NAME.p99\" (or .p50, .max, .count)",
        names.join(", ")
    )
}

impl FromStr for Metric {
    type Err = ParseMetricError;

    fn from_str(text: &str) -> Result<Self, Self::Err> {
        let fixed = BUILT_IN.iter().find(|(name, _)| *name == text);
        fixed
            .map(|(_, metric)| metric.clone())
            .or_else(|| parse_custom(text))
            .ok_or_else(|| ParseMetricError(text.to_owned()))
    }
}

/// Parses the name of a custom metric. Names may contain dots; the part is the last component.
fn parse_custom(text: &str) -> Option<Metric> {
    let (kind, rest) = text.split_once('.')?;
    if kind == "gauge" {
        return (!rest.is_empty()).then(|| Metric::Gauge(rest.into()));
    }
    let (name, part) = rest.rsplit_once('.').filter(|(name, _)| !name.is_empty())?;
    match kind {
        "counter" => {
            let part = CounterPart::ALL.into_iter().find(|known| known.name() == part)?;
            Some(Metric::Counter(name.into(), part))
        }
        "histogram" => {
            let part = HistogramPart::ALL.into_iter().find(|known| known.name() == part)?;
            Some(Metric::Histogram(name.into(), part))
        }
        _ => None,
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
    fn metric_names_round_trip() {
        for (name, metric) in BUILT_IN {
            assert_eq!(name.parse().as_ref(), Ok(metric));
            assert_eq!(metric.to_string(), *name);
        }
        for (text, metric) in [
            ("gauge.queue", Metric::Gauge("queue".into())),
            ("gauge.queue.rate", Metric::Gauge("queue.rate".into())),
            ("counter.orders.rate", Metric::Counter("orders".into(), CounterPart::Rate)),
            ("counter.a.b.total", Metric::Counter("a.b".into(), CounterPart::Total)),
            ("histogram.wait.p99", Metric::Histogram("wait".into(), HistogramPart::P99)),
            ("histogram.a.max.max", Metric::Histogram("a.max".into(), HistogramPart::Max)),
        ] {
            assert_eq!(text.parse().as_ref(), Ok(&metric), "{text}");
            assert_eq!(metric.to_string(), text);
        }
        for text in
            ["gauge.", "gauge", "counter.orders", "counter..rate", "histogram.p99", "x.y.p99"]
        {
            let error = text.parse::<Metric>().unwrap_err().to_string();
            assert!(error.contains("counter.NAME.rate"), "{error}");
        }
    }
}
