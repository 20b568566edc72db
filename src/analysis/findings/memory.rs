//! Rules about memory: growth of the heap, blocks that are not freed, memory outside the heap.
//!
//! A rule states what the values show; its error gives the confidence. [`confidence_limit`] lowers
//! it if memory was not the reason of the incident, or if the growth ended: a cache that fills up
//! looks like a leak until then.

mod growth;
mod leak;
mod outside;
#[cfg(test)]
mod tests;

use jiff::{SignedDuration, Timestamp};

use super::Candidate;
use crate::analysis::evidence::IncidentEvidence;
use crate::base::Bytes;
use crate::model::{Confidence, VitalsRow};

/// Metrics of rules that are explained by the memory of the process.
const MEMORY_METRICS: [&str; 9] = [
    "memory",
    "memory.working_set",
    "memory.rss",
    "memory.heap",
    "memory.growth",
    "memory.time_to_limit",
    "memory.high_events",
    "memory.max_events",
    "memory.oom_kills",
];

/// Memory in percent of the limit from which its owner matters even if nothing grows: the default
/// rule ends an incident there.
const NEAR_LIMIT_PERCENT: f64 = 70.0;

/// Memory in percent of the limit from which a growth that ended is a problem as well: `critical`
/// of the default rule.
const CRITICAL_PERCENT: f64 = 90.0;

/// Part of the rise of a series that counts as its top: noise of the estimate and of page counts.
const TOP: f64 = 0.98;

/// Minimum number of values for a statement about their course: two for each quarter.
const MIN_VALUES: usize = 8;

/// Minimum rise in the last quarter of the time, compared with the median of the other quarters. An
/// exponential approach, such as that of a cache, falls below it; a constant rate has 1.
const MIN_LAST_QUARTER: f64 = 0.5;

/// Minimum rise in the last quarter, compared with the whole: less is noise after a step.
const MIN_LAST_RISE: f64 = 0.05;

pub(super) fn find(evidence: &IncidentEvidence<'_>) -> Vec<Candidate> {
    let mut candidates = growth::find(evidence);
    candidates.extend(leak::find(evidence));
    candidates.extend(outside::find(evidence));
    candidates
}

fn has_memory_reason(evidence: &IncidentEvidence<'_>) -> bool {
    evidence.has_reason(&MEMORY_METRICS)
}

/// Returns the maximum confidence of the conclusion that the rise of `series` is the problem.
fn confidence_limit(evidence: &IncidentEvidence<'_>, series: &[(Timestamp, f64)]) -> Confidence {
    if is_critical(evidence) {
        Confidence::Certain
    } else if !has_memory_reason(evidence) || keeps_rising(series) == Some(false) {
        Confidence::Possible
    } else {
        Confidence::Certain
    }
}

/// Returns the maximum confidence of the conclusion that a large part of the memory, which need not
/// grow, is the problem.
fn level_confidence_limit(
    evidence: &IncidentEvidence<'_>,
    series: &[(Timestamp, f64)],
) -> Confidence {
    if is_critical(evidence) || keeps_rising(series) == Some(true) {
        Confidence::Likely
    } else {
        Confidence::Possible
    }
}

/// Returns the highest memory usage of the incident in percent of the limit.
fn highest_percent(evidence: &IncidentEvidence<'_>) -> Option<f64> {
    // The row of the tick that opened the incident is slightly older.
    let start = evidence.manifest.opened - SignedDuration::from_secs(1);
    let values = evidence.series("memory").into_iter().filter(|(at, _)| *at >= start);
    values.map(|(_, value)| value).max_by(f64::total_cmp)
}

fn is_critical(evidence: &IncidentEvidence<'_>) -> bool {
    highest_percent(evidence).is_some_and(|percent| percent >= CRITICAL_PERCENT)
}

/// Returns true if memory is near its limit, or if no limit is known.
fn is_near_limit(evidence: &IncidentEvidence<'_>) -> bool {
    highest_percent(evidence).is_none_or(|percent| percent >= NEAR_LIMIT_PERCENT)
}

/// Returns the index of the last value at the top of a series.
fn last_top(series: &[(Timestamp, f64)]) -> Option<usize> {
    let values = || series.iter().map(|(_, value)| *value);
    let low = values().min_by(f64::total_cmp)?;
    let high = values().max_by(f64::total_cmp)?;
    values().rposition(|value| value >= low + TOP * (high - low))
}

/// Returns true if a series rises in the last quarter of the time before it leaves its top at about
/// the rate of the time before. `None` if there are not enough values.
fn keeps_rising(series: &[(Timestamp, f64)]) -> Option<bool> {
    let last = last_top(series).filter(|last| last + 1 >= MIN_VALUES)?;
    let value = |quarter: usize| series[last * quarter / 4].1;
    let rise = |quarter: usize| value(quarter) - value(quarter - 1);
    let mut before = [rise(1), rise(2), rise(3)];
    before.sort_unstable_by(f64::total_cmp);
    let [_, median, _] = before;
    let total = value(4) - value(0);
    Some(rise(4) > 0.0 && rise(4) >= (MIN_LAST_QUARTER * median).max(MIN_LAST_RISE * total))
}

/// Returns the live heap by time, or the memory of the process if the heap is not measured.
fn heap_series(evidence: &IncidentEvidence<'_>) -> Vec<(Timestamp, f64)> {
    let names = ["memory.heap", "memory.working_set", "memory.rss"];
    let mut series = names.iter().map(|name| evidence.series(name));
    series.find(|series| !series.is_empty()).unwrap_or_default()
}

/// Returns the memory of the process by time: its resident set, without the file pages that the
/// kernel can reclaim. The working set of a cgroup contains other processes, but no page cache;
/// the resident set contains mapped files, but no other process. The smaller one excludes both.
fn process_series(evidence: &IncidentEvidence<'_>) -> Vec<(Timestamp, f64)> {
    let is_about_rss = evidence.has_reason(&["memory.rss"]);
    let used = |row: &VitalsRow| {
        let rss = *row.values.get("memory.rss")?;
        let working_set = row.values.get("memory.working_set").filter(|_| !is_about_rss);
        Some((row.at, working_set.map_or(rss, |working_set| rss.min(*working_set))))
    };
    evidence.vitals().iter().filter_map(used).collect()
}

/// Returns the last value at or before `time`, or the first one.
fn value_at(series: &[(Timestamp, f64)], time: Timestamp) -> Option<f64> {
    let before = series.iter().rev().find(|(at, _)| *at <= time);
    before.or(series.first()).map(|(_, value)| *value)
}

fn to_bytes(value: f64) -> Bytes {
    Bytes(value.max(0.0).round() as u64)
}
