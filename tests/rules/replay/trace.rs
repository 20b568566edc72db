//! Histories of one metric: a few points, straight lines between them, and deterministic noise.

use std::path::Path;
use std::time::Duration;

use marple::internals::base::{Bytes, Moment};
use marple::internals::model::{Limit, Vitals};

/// Metric of a trace.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum TraceMetric {
    /// Per cent of the memory limit.
    Memory,
    /// Per cent of the CPU limit.
    Cpu,
    /// Seconds.
    Lag,
    /// Tasks.
    Count,
}

#[derive(Clone, Debug)]
pub(crate) struct Trace {
    pub(crate) name: String,
    pub(crate) metric: TraceMetric,
    /// Pairs of seconds and value, ordered by time.
    points: Vec<(f64, f64)>,
    /// Amplitude of the noise.
    noise: f64,
}

impl Trace {
    pub(crate) fn new(name: &str, metric: TraceMetric, points: Vec<(f64, f64)>) -> Self {
        Self { name: name.to_owned(), metric, points, noise: 0.0 }
    }

    pub(crate) fn with_noise(self, noise: f64) -> Self {
        Self { noise, ..self }
    }

    /// Reads a trace from a file: one point per line as `seconds,percent`; `#` starts a comment.
    /// The values are memory unless a comment says `of cpu`.
    pub(crate) fn read(path: &Path) -> Self {
        let text = std::fs::read_to_string(path)
            .unwrap_or_else(|error| panic!("{}: {error}", path.display()));
        let point = |line: &str| {
            let (seconds, percent) = line.split_once(',')?;
            Some((seconds.trim().parse().ok()?, percent.trim().parse().ok()?))
        };
        let lines = text.lines().map(|line| line.split('#').next().unwrap_or("").trim());
        let points = lines.filter(|line| !line.is_empty()).map(|line| {
            point(line)
                .unwrap_or_else(|| panic!("{}: not `seconds,percent`: {line}", path.display()))
        });
        let of = if text.contains("# of cpu") { TraceMetric::Cpu } else { TraceMetric::Memory };
        Self::new(&path.file_stem().unwrap().to_string_lossy(), of, points.collect())
    }

    pub(crate) fn end_seconds(&self) -> f64 {
        self.points.last().map_or(0.0, |point| point.0)
    }

    pub(crate) fn value_at(&self, seconds: f64) -> f64 {
        let next = self.points.partition_point(|point| point.0 <= seconds);
        let line = match (next.checked_sub(1).map(|at| self.points[at]), self.points.get(next)) {
            (Some(a), Some(b)) => a.1 + (b.1 - a.1) * (seconds - a.0) / (b.0 - a.0),
            (Some(only), None) | (None, Some(&only)) => only.1,
            (None, None) => 0.0,
        };
        (line + self.noise * noise((seconds * 20.0) as u64)).max(0.0)
    }

    /// Returns the vitals of every tick at this interval.
    pub(crate) fn ticks(&self, interval: Duration) -> impl Iterator<Item = Vitals> {
        let ticks = (self.end_seconds() / interval.as_secs_f64()) as u32;
        (0..=ticks).map(move |tick| self.tick(interval * tick))
    }

    /// Returns the vitals at this time.
    pub(crate) fn tick(&self, at: Duration) -> Vitals {
        let mut vitals = Vitals {
            at: Moment::from_nanos(at.as_nanos() as u64),
            memory_limit: Some(Limit { value: Bytes(1 << 30), source: "trace".into() }),
            cpu_limit: Some(Limit { value: 100.0, source: "trace".into() }),
            ..Vitals::default()
        };
        let value = self.value_at(at.as_secs_f64());
        match self.metric {
            TraceMetric::Memory => {
                vitals.working_set = Some(Bytes((value / 100.0 * (1_u64 << 30) as f64) as u64));
            }
            TraceMetric::Cpu => vitals.cpu_cores = Some(value),
            TraceMetric::Lag => vitals.lag = Some(Duration::from_secs_f64(value)),
            TraceMetric::Count => vitals.tasks = Some(value as u64),
        }
        vitals
    }
}

/// Returns a number between -1 and 1 derived from `n` (SplitMix64).
fn noise(n: u64) -> f64 {
    let mut z = n.wrapping_add(1).wrapping_mul(0x9e37_79b9_7f4a_7c15);
    z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    (z ^ (z >> 31)) as f64 / u64::MAX as f64 * 2.0 - 1.0
}

/// Repeats `shape` until `end`. The last point of the shape is the first of the next repetition.
pub(crate) fn repeat(shape: &[(f64, f64)], end: f64) -> Vec<(f64, f64)> {
    let period = shape.last().map_or(1.0, |point| point.0);
    (0..(end / period) as usize)
        .flat_map(|n| shape[..shape.len() - 1].iter().map(move |p| (p.0 + n as f64 * period, p.1)))
        .chain([(end, shape[0].1)])
        .collect()
}
