//! What a rule can watch.

use std::fmt;
use std::str::FromStr;
use std::sync::Arc;

use serde::{Deserialize, Deserializer, Serialize, Serializer};

use super::own::{CounterPart, HistogramPart};
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
    /// Working set as a share of the memory limit, or address space as a share of its own if that is more: `memory`.
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
    /// Seconds until the working set is at the limit, as it grows: `memory.time_to_limit`. Endless when no
    /// limit is in sight.
    TimeToLimit,
    /// Times in a second that the cgroup was above `memory.high`: `memory.high_events`.
    MemoryHigh,
    /// Times in a second that the cgroup was at its memory limit: `memory.max_events`.
    MemoryMax,
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
    /// Share of the last ten seconds in which a runtime ran what was ready more than 100 ms late, the worst of the
    /// observed runtimes: `runtime.stalled`. Start-up and waits for a core do not count.
    Stalled,
    /// How long work waits for a thread of a runtime's blocking pool: `runtime.blocking_lag`.
    BlockingLag,
    /// Panics in a second: `panics`.
    Panics,
    /// CPU time as `cpu`, and with it the time that threads wait for cores which other processes have: `cpu.demand`.
    CpuDemand,
    /// Share of the workers' time in which they poll, and neither run nor wait for a core: `runtime.blocked`.
    Blocked,
    /// What the tasks have risen by without a pause, if they have doubled: `tasks.rise`.
    TaskRise,
    /// What the threads have risen by, likewise: `threads.rise`.
    ThreadRise,
    /// What the open file descriptors have risen by, likewise: `fds.rise`.
    FdRise,
    /// A number the service sets itself: `gauge.NAME`.
    Gauge(Arc<str>),
    /// A number the service adds to: `counter.NAME.rate`, `counter.NAME.total`.
    Counter(Arc<str>, CounterPart),
    /// Values the service records: `histogram.NAME.p50`, `.p99`, `.max`, `.count`.
    Histogram(Arc<str>, HistogramPart),
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
    ("memory.time_to_limit", Metric::TimeToLimit),
    ("memory.high_events", Metric::MemoryHigh),
    ("memory.max_events", Metric::MemoryMax),
    ("memory.oom_kills", Metric::OomKills),
    ("memory.pressure", Metric::MemoryPressure),
    ("cpu.throttled", Metric::Throttled),
    ("cpu.pressure", Metric::CpuPressure),
    ("io.pressure", Metric::IoPressure),
    ("tasks.growth", Metric::TaskGrowth),
    ("fds.share", Metric::FdShare),
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
    /// Every metric that needs no name of the service's own.
    pub fn fixed() -> impl Iterator<Item = Self> {
        FIXED.iter().map(|(_, metric)| metric.clone())
    }

    /// The unit its values and thresholds are in.
    pub const fn unit(&self) -> Unit {
        match self {
            Self::Memory
            | Self::Cpu
            | Self::CpuDemand
            | Self::Blocked
            | Self::Throttled
            | Self::Stalled
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

    /// Its value in `vitals`; none when it could not be measured. Finite, but for
    /// [`Self::TimeToLimit`].
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
            Self::FdShare => vitals.fd_percent().map(|percent| percent.get()),
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

    /// What the service calls it, if it is a number of the service's own.
    pub fn own_name(&self) -> Option<&str> {
        match self {
            Self::Gauge(name) | Self::Counter(name, _) | Self::Histogram(name, _) => Some(name),
            _ => None,
        }
    }

    /// Whether less of it is worse, so that rules over it have `below`.
    pub const fn is_scarce(&self) -> bool {
        matches!(self, Self::TimeToLimit)
    }

    /// Whether its values run up against a limit, where there is one.
    pub const fn has_limit(&self) -> bool {
        matches!(
            self,
            Self::Memory
                | Self::Cpu
                | Self::CpuDemand
                | Self::FdShare
                | Self::WorkingSet
                | Self::Rss
        )
    }

    /// Whether it is about the memory of the process or its cgroup.
    pub const fn is_of_memory(&self) -> bool {
        matches!(
            self,
            Self::Memory | Self::WorkingSet | Self::Rss | Self::MemoryGrowth | Self::TimeToLimit
        )
    }

    /// The limit its value runs up against, in its unit; none for what has none, or none known.
    pub fn limit(&self, vitals: &Vitals) -> Option<f64> {
        match self {
            Self::Memory | Self::Cpu | Self::CpuDemand | Self::FdShare => Some(100.0),
            Self::WorkingSet | Self::Rss => {
                vitals.memory_limit.as_ref().map(|limit| limit.value.get() as f64)
            }
            _ => None,
        }
    }
}

impl Metric {
    /// Returns the limit behind [`Self::limit`] in its unit: that at which the kernel kills, if the nearer one only slows
    /// the process down. `None` if there is no such limit.
    pub fn limit_behind(&self, vitals: &Vitals) -> Option<f64> {
        let kill = vitals.kill_limit?.get() as f64;
        let soft = vitals.memory_limit.as_ref()?.value.get() as f64;
        let behind = match self {
            Self::Memory if vitals.memory_wall()?.limit.value.get() as f64 == soft => {
                kill / soft * 100.0
            }
            Self::WorkingSet | Self::Rss => kill,
            _ => return None,
        };
        (kill > soft && behind.is_finite()).then_some(behind)
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
        let (name, _) =
            FIXED.iter().find(|(_, metric)| metric == self).expect("every fixed metric is listed");
        f.write_str(name)
    }
}

/// Why a text is not a metric.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error(
    "`{0}` is not a metric: write one of {known}, or for one of your own \"gauge.NAME\", \
     \"counter.NAME.rate\" (or .total), \"histogram.NAME.p99\" (or .p50, .max, .count)",
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
        let fixed = FIXED.iter().find(|(name, _)| *name == text);
        fixed
            .map(|(_, metric)| metric.clone())
            .or_else(|| own(text))
            .ok_or_else(|| ParseMetricError(text.to_owned()))
    }
}

/// The metric of the service's own that `text` is. A name may have dots: the part is the last word.
fn own(text: &str) -> Option<Metric> {
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
    fn names_read_back_as_themselves() {
        for (name, metric) in FIXED {
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
            let told = text.parse::<Metric>().unwrap_err().to_string();
            assert!(told.contains("counter.NAME.rate"), "{told}");
        }
    }
}
