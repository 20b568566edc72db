//! Shortage of CPU, memory and I/O around the process, and incidents without an explanation.

use jiff::SignedDuration;

use super::{Candidate, cpu};
use crate::analysis::evidence::IncidentEvidence;
use crate::model::{CaptureKind, CaptureRecord, Confidence, FindingKind, Metric, Outcome};

/// Time before the incident that belongs to it: the default rules fire after ten seconds at most.
const SECONDS_BEFORE: i64 = 10;

/// Number of rows over which a level is averaged: one late row is no shortage.
const LEVEL_ROWS: usize = 5;

/// Metrics that rise while the quota throttles the process.
const THROTTLED_REASONS: &[&str] = &[
    "cpu.throttled",
    "cpu.pressure",
    "cpu",
    "cpu.demand",
    "runtime.lag",
    "runtime.lag_p99",
    "runtime.stalled",
];

/// Percentage of throttled periods below which requests are hardly slower: in one of ten periods.
const MIN_THROTTLED_PERCENT: f64 = 10.0;

/// Percentage of throttled periods that a daily peak of a well-sized service does not reach.
const HIGH_THROTTLED_PERCENT: f64 = 25.0;

/// Metrics of the runtime that rise while threads wait for a resource.
const RUNTIME_REASONS: &[&str] = &["runtime.lag", "runtime.lag_p99", "runtime.blocked"];

/// Pressure in percent above which some thread waits for most of the time.
const HIGH_PRESSURE_PERCENT: f64 = 50.0;

/// A resource with pressure information.
#[derive(Debug)]
struct PressuredResource {
    subject: &'static str,
    metric: &'static str,
    reasons: &'static [&'static str],
    /// Pressure in percent that is worth a mention. Healthy services under load reach more for the
    /// CPU than for memory, which is reclaimed from the page cache first.
    min_percent: f64,
}

const RESOURCES: &[PressuredResource] = &[
    PressuredResource {
        subject: "memory",
        metric: "memory.pressure",
        reasons: &["memory.pressure", "memory.high_events"],
        min_percent: 10.0,
    },
    PressuredResource {
        subject: "CPU",
        metric: "cpu.pressure",
        reasons: &["cpu.pressure"],
        min_percent: 50.0,
    },
    PressuredResource {
        subject: "I/O",
        metric: "io.pressure",
        reasons: &["io.pressure"],
        min_percent: 30.0,
    },
];

const HIGH_EVENTS: &str = "memory.high_events";

/// The level of a metric during the incident, in the metric's unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(super) struct Level {
    /// Highest value, including those on which rules fired.
    pub(super) highest: f64,
    /// Highest mean of five rows.
    pub(super) sustained: f64,
}

impl Level {
    /// Returns the level from shortly before the incident on. `None` if it was not measured.
    pub(super) fn of(evidence: &IncidentEvidence<'_>, metric: &str) -> Option<Self> {
        let opened = evidence.manifest.opened;
        let first = SignedDuration::from_secs(-SECONDS_BEFORE);
        let rows = evidence.series(metric).into_iter();
        let rows = rows.filter(|(at, _)| at.duration_since(opened) >= first);
        let values: Vec<f64> = rows.map(|(_, value)| value).collect();
        let reasons = evidence.manifest.reasons.iter().filter_map(|reason| {
            reason.value.filter(|_| reason.metric.as_ref().is_some_and(|m| m.to_string() == metric))
        });
        let highest = values.iter().copied().chain(reasons).reduce(f64::max)?;
        let windows = values.windows(LEVEL_ROWS.min(values.len().max(1)));
        let means = windows.map(|rows| rows.iter().sum::<f64>() / rows.len() as f64);
        Some(Self { highest, sustained: means.reduce(f64::max).unwrap_or(highest) })
    }
}

/// Returns a command that prints the values of a metric in the manifest.
pub(super) fn vitals_command(metric: &str) -> String {
    format!("grep -o '\"{metric}\": [0-9.]*' incident.json")
}

pub(super) fn find(evidence: &IncidentEvidence<'_>) -> Vec<Candidate> {
    let pressure = RESOURCES.iter().filter_map(|resource| find_pressure(evidence, resource));
    find_throttled(evidence).into_iter().chain(pressure).collect()
}

fn find_throttled(evidence: &IncidentEvidence<'_>) -> Option<Candidate> {
    const METRIC: &str = "cpu.throttled";
    let percent = Level::of(evidence, METRIC)?.sustained;
    let has_reason = evidence.has_reason(THROTTLED_REASONS);
    if percent < MIN_THROTTLED_PERCENT {
        return None;
    }
    // The kernel counts every period.
    let confidence = match has_reason || percent >= HIGH_THROTTLED_PERCENT {
        true => Confidence::Certain,
        false => Confidence::Possible,
    };
    let quota = evidence.manifest.limits.cpu_cores;
    let of_quota = quota.map_or(String::new(), |cores| format!(" of {cores:.2} cores"));
    let mut text =
        format!("the CPU quota{of_quota} stopped the process in {percent:.0} % of its periods");
    let mut candidate = Candidate::new(FindingKind::Throttled, confidence, "CPU quota")
        .number("percent", percent)
        .share(percent / 100.0)
        .explains_reason(has_reason)
        .evidence("incident.json", vitals_command(METRIC));
    if let Some(cores) = quota {
        candidate = candidate.number("quota_cores", cores);
    }
    if let Some(consumer) = cpu::top_consumer(evidence) {
        text += &format!(
            "; {} uses most CPU time, {:.2} cores ({:.0} %)",
            consumer.subject,
            consumer.cores,
            consumer.share * 100.0
        );
        candidate = candidate.label("consumer", consumer.subject).number("cores", consumer.cores);
    }
    Some(candidate.text(text))
}

fn find_pressure(
    evidence: &IncidentEvidence<'_>,
    resource: &PressuredResource,
) -> Option<Candidate> {
    let PressuredResource { subject, metric, .. } = resource;
    let has_reason = evidence.has_reason(resource.reasons);
    // The kernel averages it over ten seconds.
    let percent = Level::of(evidence, metric).map(|level| level.highest);
    let events = Level::of(evidence, HIGH_EVENTS).map(|level| level.sustained);
    let events = events.filter(|events| *subject == "memory" && *events > 0.0);
    if !has_reason && percent.is_none_or(|percent| percent < resource.min_percent) {
        return None;
    }
    let waits = percent.map(|percent| {
        format!("some thread waited for {subject} in up to {percent:.0} % of ten seconds")
    });
    let exceeds = events
        .map(|events| format!("the cgroup exceeded `memory.high` {events:.0} times per second"));
    let text = waits.into_iter().chain(exceeds).collect::<Vec<_>>().join(", and ");
    if text.is_empty() {
        return None;
    }
    // Without a rule over it, a large file read or a peak of load fits as well.
    let confidence = if has_reason { Confidence::Certain } else { Confidence::Possible };
    let slows_runtime = evidence.has_reason(RUNTIME_REASONS)
        && percent.is_some_and(|percent| percent >= HIGH_PRESSURE_PERCENT);
    let mut candidate = Candidate::new(FindingKind::Pressure, confidence, *subject)
        .text(text)
        .share(percent.unwrap_or(0.0) / 100.0)
        .explains_reason(has_reason || slows_runtime)
        .evidence("incident.json", vitals_command(metric));
    if let Some(percent) = percent {
        candidate = candidate.number("percent", percent);
    }
    if let Some(events) = events {
        candidate = candidate
            .number("high_events_per_second", events)
            .evidence("incident.json", vitals_command(HIGH_EVENTS));
    }
    Some(candidate)
}

/// Returns a finding that lists the captures which the metrics of the reasons need. Called if no
/// other candidate explains them. Returns nothing for a manual capture, which has no metric, and
/// while a capture is running.
pub(super) fn unexplained(evidence: &IncidentEvidence<'_>) -> Vec<Candidate> {
    let manifest = evidence.manifest;
    let Some(reason) = manifest.reasons.iter().find(|reason| reason.metric.is_some()) else {
        return Vec::new();
    };
    if manifest.captures.iter().any(|record| record.outcome == Outcome::Running) {
        return Vec::new();
    }
    let mut kinds: Vec<CaptureKind> =
        evidence.metrics().flat_map(needed_captures).copied().collect();
    kinds.sort_unstable();
    kinds.dedup();
    let missing: Vec<String> = kinds.iter().filter_map(|kind| missing(evidence, *kind)).collect();
    let names: Vec<&str> = kinds.iter().map(|kind| kind.name()).collect();
    let captures = match missing.is_empty() {
        true => format!("captured: {}", names.join(", ")),
        false => missing.join("; "),
    };
    let subject = reason.metric.as_ref().map(Metric::to_string).unwrap_or_default();
    let text = format!("the captured data does not show the cause ({}); {captures}", reason.text);
    vec![
        Candidate::new(FindingKind::Unexplained, Confidence::Possible, subject)
            .text(text)
            // About the metric of the rule, so it comes before what is merely possible.
            .explains_reason(true)
            .evidence("incident.json", "less incident.json"),
    ]
}

/// Returns a description of a capture that is missing or incomplete, and the reason.
fn missing(evidence: &IncidentEvidence<'_>, kind: CaptureKind) -> Option<String> {
    let records: Vec<&CaptureRecord> =
        evidence.manifest.captures.iter().filter(|record| record.kind == kind).collect();
    if records.iter().any(|record| record.outcome == Outcome::Done) {
        return None;
    }
    let Some(record) = records.last() else { return Some(format!("{kind} was not captured")) };
    let outcome = match record.outcome {
        Outcome::Done | Outcome::Running => return None,
        Outcome::Failed => "failed",
        Outcome::Skipped => "was skipped",
        Outcome::Cut => "is incomplete",
    };
    let error = record.error.as_ref().map_or(String::new(), |error| format!(" ({error})"));
    Some(format!("{kind} {outcome}{error}"))
}

/// Returns the captures that can show the cause of a high metric.
fn needed_captures(metric: &Metric) -> &'static [CaptureKind] {
    use CaptureKind::{Cpu, Descriptors, Heap, Panics, Tasks, Threads};
    match metric {
        Metric::Memory
        | Metric::WorkingSet
        | Metric::Rss
        | Metric::Heap
        | Metric::MemoryGrowth
        | Metric::TimeToLimit
        | Metric::MemoryHigh
        | Metric::MemoryMax
        | Metric::OomKills
        | Metric::MemoryPressure => &[Heap],
        Metric::Cpu | Metric::CpuDemand | Metric::Throttled | Metric::CpuPressure => &[Cpu],
        Metric::Lag | Metric::LagP99 | Metric::Stalled => &[Cpu, Threads],
        Metric::Stall | Metric::Blocked | Metric::BlockingLag | Metric::IoPressure => &[Threads],
        Metric::Tasks | Metric::TaskGrowth | Metric::TaskRise => &[Tasks],
        Metric::Threads | Metric::ThreadRise => &[Threads],
        Metric::Fds | Metric::FdUtilization | Metric::FdRise => &[Descriptors],
        Metric::Panics => &[Panics],
        Metric::Gauge(_) | Metric::Counter(..) | Metric::Histogram(..) => &[Cpu, Threads, Tasks],
    }
}

#[cfg(test)]
mod tests;
