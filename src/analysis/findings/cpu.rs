//! Functions that use much CPU time, or much more than before.

use jiff::SignedDuration;

use super::{Candidate, confidence_above_zero};
use crate::analysis::evidence::{IncidentEvidence, Tabulated};
use crate::analysis::{ProfileTable, SubjectTotal, Symbol, is_idle};
use crate::model::{Confidence, FindingKind};

/// Metrics that rise with the CPU time of the process.
const REASONS: &[&str] = &[
    "cpu",
    "cpu.demand",
    "cpu.throttled",
    "cpu.pressure",
    "runtime.lag",
    "runtime.lag_p99",
    "runtime.stalled",
];

const LOOKBACK_PHASE: &str = "lookback";

/// Minimum CPU time of a hot function: half of a core, or of the quota if that is smaller. Less
/// keeps no worker from its tasks.
const MIN_HOT_CORES: f64 = 0.5;

/// Minimum share of a hot function. Below it, five functions can be as large.
const MIN_HOT_SHARE: f64 = 0.2;

/// Share from which no other function can be as large.
const LARGE_SHARE: f64 = 0.5;

/// CPU utilization in percent above which the CPU is scarce: the default rule clears at 70 and
/// fires at 90.
const SCARCE_PERCENT: f64 = 80.0;

/// Minimum ratio of a function's CPU time to that of the look-back. A daily peak rises by less
/// within the length of a look-back.
const MIN_CHANGE_FACTOR: f64 = 1.5;

/// Minimum increase: a fifth of a core, or of the quota if that is smaller. Single requests cause
/// smaller ones.
const MIN_CHANGED_CORES: f64 = 0.2;

/// Minimum length of a look-back, in seconds. A shorter one shows single requests, or the start of
/// the process.
const MIN_LOOKBACK_SECONDS: f64 = 5.0;

/// Maximum number of functions that changed.
const MAX_CHANGED: usize = 3;

/// The function that uses most CPU time.
#[derive(Clone, Debug)]
pub(super) struct CpuConsumer {
    pub(super) subject: String,
    pub(super) cores: f64,
    /// Part of the CPU time of the process.
    pub(super) share: f64,
}

/// CPU time per second, in cores.
#[derive(Clone, Copy, Debug, Default)]
struct CpuRate {
    cores: f64,
    /// Square of the standard error of `cores`.
    variance: f64,
}

pub(super) fn find(evidence: &IncidentEvidence<'_>) -> Vec<Candidate> {
    let Some(capture) = busiest_capture(evidence) else { return Vec::new() };
    let mut candidates: Vec<Candidate> = find_hot(evidence, capture).into_iter().collect();
    candidates.extend(find_changed(evidence, capture));
    candidates
}

/// Returns the function that uses most CPU time in the incident's CPU profile.
pub(super) fn top_consumer(evidence: &IncidentEvidence<'_>) -> Option<CpuConsumer> {
    let table = &busiest_capture(evidence)?.table;
    let top = active_subjects(table).into_iter().next().filter(|top| top.value > 0)?;
    let cores = CpuRate::of(table, top.value, top.variance).cores;
    Some(CpuConsumer { cores, share: share_of(top.value, table.total), subject: top.subject })
}

fn find_hot(
    evidence: &IncidentEvidence<'_>,
    capture: &Tabulated<ProfileTable>,
) -> Option<Candidate> {
    let Tabulated { file, table, .. } = capture;
    let subjects = active_subjects(table);
    let top = subjects.first()?;
    let rate = CpuRate::of(table, top.value, top.variance);
    let share = share_of(top.value, table.total);
    if rate.cores < MIN_HOT_CORES * part_of_core(evidence) || share < MIN_HOT_SHARE {
        return None;
    }
    let second = subjects.get(1).filter(|second| second.value > 0);
    let lead = top.value - second.map_or(0, |second| second.value);
    let lead_variance = top.variance + second.map_or(0.0, |second| second.variance);
    let largest = if share >= LARGE_SHARE { Confidence::Certain } else { Confidence::Likely };
    let confidence = confidence_above_zero(lead as f64, lead_variance)
        .unwrap_or(Confidence::Possible)
        .min(largest)
        .min(highest_confidence(evidence, capture));

    let standard_error = rate.variance.sqrt();
    let mut candidate = Candidate::new(FindingKind::CpuHot, confidence, &top.subject)
        .number("cores", rate.cores)
        .number("seconds", top.value as f64 / 1e9)
        .number("standard_error", standard_error)
        .stack(&top.stack)
        .share(share)
        .explains_reason(evidence.has_reason(REASONS))
        .evidence(file, format!("go tool pprof -top -sample_index=cpu {file}"));
    let mut place = String::new();
    for key in ["thread", "span", "task"] {
        if let Some(label) = dominating_label(table, key, top.value) {
            candidate = candidate.label(key, label);
            place = format!(", mostly in the {key} {label}");
        }
    }
    Some(candidate.text(format!(
        "{} uses {:.2} cores ({:.0} % of the CPU time of the process), +- {standard_error:.2} \
         cores{place}",
        top.subject,
        rate.cores,
        share * 100.0,
    )))
}

fn find_changed(
    evidence: &IncidentEvidence<'_>,
    capture: &Tabulated<ProfileTable>,
) -> Vec<Candidate> {
    let Some(lookback) = lookback_of(evidence, capture) else { return Vec::new() };
    let earlier = active_subjects(&lookback.table);
    let change_of = |now: SubjectTotal| {
        let before = earlier.iter().find(|before| before.subject == now.subject);
        SubjectChange::new(&capture.table, now, &lookback.table, before)
    };
    let min_increase = MIN_CHANGED_CORES * part_of_core(evidence);
    let mut changes: Vec<SubjectChange> = active_subjects(&capture.table)
        .into_iter()
        .map(change_of)
        .filter(|change| {
            change.increase() >= min_increase
                && change.now.cores >= change.before.cores * MIN_CHANGE_FACTOR
        })
        .collect();
    changes.sort_by(|a, b| b.increase().total_cmp(&a.increase()));
    changes.truncate(MAX_CHANGED);
    let total_increase = total_rate(&capture.table) - total_rate(&lookback.table);
    changes
        .iter()
        .filter_map(|change| {
            let confidence = confidence_above_zero(change.increase(), change.variance())?
                .min(highest_confidence(evidence, capture));
            // Without an increase in total, the time moved from other functions.
            let share = if total_increase > 0.0 { change.increase() / total_increase } else { 0.0 };
            let explains = share >= MIN_HOT_SHARE && evidence.has_reason(REASONS);
            let candidate = Candidate::new(FindingKind::CpuChanged, confidence, &change.subject)
                .text(change.text(lookback.table.duration.as_secs_f64()))
                .number("cores", change.now.cores)
                .number("cores_before", change.before.cores)
                .number("factor", change.now.cores / change.before.cores)
                .number("standard_error", change.variance().sqrt())
                .stack(&change.stack)
                .share(share)
                .explains_reason(explains);
            let files = [&capture.file, &lookback.file];
            Some(files.into_iter().fold(candidate, |candidate, file| {
                candidate.evidence(file, format!("go tool pprof -top -sample_index=cpu {file}"))
            }))
        })
        .collect()
}

/// The CPU time of a function in a capture and in the look-back.
#[derive(Debug)]
struct SubjectChange {
    subject: String,
    now: CpuRate,
    before: CpuRate,
    stack: Vec<Symbol>,
}

impl SubjectChange {
    fn new(
        table: &ProfileTable,
        now: SubjectTotal,
        earlier_table: &ProfileTable,
        before: Option<&SubjectTotal>,
    ) -> Self {
        let before = match before {
            Some(before) => CpuRate::of(earlier_table, before.value, before.variance),
            // The error of no sample is at least that of one.
            None => {
                let period = earlier_table.variance / (earlier_table.total as f64).max(1.0);
                CpuRate::of(earlier_table, 0, period * period)
            }
        };
        let SubjectTotal { subject, value, variance, stack } = now;
        Self { subject, now: CpuRate::of(table, value, variance), before, stack }
    }

    fn increase(&self) -> f64 {
        self.now.cores - self.before.cores
    }

    fn variance(&self) -> f64 {
        self.now.variance + self.before.variance
    }

    fn text(&self, lookback_seconds: f64) -> String {
        let Self { subject, now, before, .. } = self;
        let standard_error = self.variance().sqrt();
        let ratio = match before.cores > 0.0 {
            true => format!(" ({:.1} times as much)", now.cores / before.cores),
            false => String::new(),
        };
        format!(
            "{subject} uses {:.2} cores, and used {:.2} in the {lookback_seconds:.0} s before the \
             profile{ratio}; the difference is {:.2} +- {standard_error:.2} cores",
            now.cores,
            before.cores,
            self.increase(),
        )
    }
}

impl CpuRate {
    /// Returns the rate of `value` nanoseconds in the time that `table` covers.
    fn of(table: &ProfileTable, value: i64, variance: f64) -> Self {
        let nanos = table.duration.as_nanos() as f64;
        if nanos == 0.0 {
            return Self::default();
        }
        Self { cores: value as f64 / nanos, variance: variance / (nanos * nanos) }
    }
}

fn total_rate(table: &ProfileTable) -> f64 {
    CpuRate::of(table, table.total, table.variance).cores
}

/// Returns the CPU profile of the incident with the largest CPU time per second.
fn busiest_capture<'a>(evidence: &IncidentEvidence<'a>) -> Option<&'a Tabulated<ProfileTable>> {
    let captures = evidence.tables.cpu.iter().filter(|capture| {
        capture.phase.as_deref() != Some(LOOKBACK_PHASE)
            && !capture.table.duration.is_zero()
            && capture.table.total > 0
    });
    captures.max_by(|a, b| total_rate(&a.table).total_cmp(&total_rate(&b.table)))
}

/// Returns the first look-back profile: a later one can contain the incident itself.
fn lookback_of<'a>(
    evidence: &IncidentEvidence<'a>,
    capture: &Tabulated<ProfileTable>,
) -> Option<&'a Tabulated<ProfileTable>> {
    let lookbacks = evidence.tables.cpu.iter().filter(|lookback| {
        lookback.phase.as_deref() == Some(LOOKBACK_PHASE)
            && lookback.taken <= capture.taken
            && lookback.table.duration.as_secs_f64() >= MIN_LOOKBACK_SECONDS
    });
    lookbacks.min_by_key(|lookback| lookback.taken)
}

/// Returns the CPU time by function, without that of threads that go to sleep or wake up for work.
fn active_subjects(table: &ProfileTable) -> Vec<SubjectTotal> {
    let mut subjects = table.by_subject();
    subjects.retain(|subject| !is_idle(&subject.stack));
    subjects
}

/// Returns 1, or the CPU limit if that is less than a core.
fn part_of_core(evidence: &IncidentEvidence<'_>) -> f64 {
    let limit = evidence.manifest.limits.cpu_cores.filter(|cores| *cores > 0.0);
    limit.map_or(1.0, |cores| cores.min(1.0))
}

/// Returns `Possible` if no rule over CPU time fired and the CPU was not scarce either: a healthy
/// service has a largest function too.
fn highest_confidence(
    evidence: &IncidentEvidence<'_>,
    capture: &Tabulated<ProfileTable>,
) -> Confidence {
    let is_within = |at: jiff::Timestamp| {
        let offset = at.duration_since(capture.taken);
        let length = SignedDuration::try_from(capture.table.duration).unwrap_or_default();
        offset >= SignedDuration::ZERO && offset <= length
    };
    let rows = evidence.series("cpu").into_iter().filter(|(at, _)| is_within(*at));
    let percents: Vec<f64> = rows.map(|(_, percent)| percent).collect();
    let mean = percents.iter().sum::<f64>() / percents.len() as f64;
    if evidence.has_reason(REASONS) || mean >= SCARCE_PERCENT {
        Confidence::Certain
    } else {
        Confidence::Possible
    }
}

/// Returns the label if at least half of the CPU time `value` of a function must have it, because
/// the other samples are too few.
fn dominating_label<'a>(table: &'a ProfileTable, key: &str, value: i64) -> Option<&'a str> {
    let (label, labelled) = table.top_label(key)?;
    let overlap = labelled + value - table.total;
    (overlap * 2 >= value && !label.is_empty()).then_some(&**label)
}

fn share_of(value: i64, total: i64) -> f64 {
    value as f64 / (total as f64).max(1.0)
}

#[cfg(test)]
mod tests;
