//! `heap-growth`: functions that hold more memory than before, or most of it.

use std::cmp;
use std::fmt;

use super::{
    confidence_limit, has_memory_reason, heap_series, is_near_limit, level_confidence_limit,
    process_series, to_bytes, value_at,
};
use crate::analysis::evidence::{IncidentEvidence, Tabulated};
use crate::analysis::findings::{Candidate, confidence_above_zero};
use crate::analysis::{ProfileTable, SubjectTotal};
use crate::base::Bytes;
use crate::model::{Confidence, FindingKind};

/// Minimum growth of a function: the live heap of an idle service varies by some MiB.
const MIN_GROWTH_BYTES: f64 = (8 << 20) as f64;

/// Minimum part of the growth of the process: a smaller one does not explain it.
const MIN_GROWTH_SHARE: f64 = 0.1;

/// Minimum growth of the whole heap, compared with that of the function. If it grew less, other
/// functions freed as much: memory changed its owner.
const MIN_NET_GROWTH: f64 = 0.5;

/// Minimum growth, compared with the live heap before, of a finding that is more than possible: a
/// service under load varies by some percent.
pub(super) const MIN_GROWTH_OF_HEAP: f64 = 0.05;

/// Minimum part of the live heap of its main holder.
const MIN_HELD_SHARE: f64 = 0.5;

/// Minimum part of the process's memory that the live heap has. Below it, the heap is not the
/// problem.
const MIN_HEAP_OF_PROCESS: f64 = 0.5;

/// Time from the start of the incident to its first heap profile.
const MAX_START_SECONDS: f64 = 5.0;

/// The growth of a function between two heap profiles.
pub(super) struct SubjectGrowth {
    pub(super) total: SubjectTotal,
    /// Part of the growth of the process.
    pub(super) share: f64,
    pub(super) confidence: Confidence,
}

pub(super) fn find(evidence: &IncidentEvidence<'_>) -> Vec<Candidate> {
    let mut candidates = Vec::new();
    if let Some((first, last)) = first_and_last(evidence) {
        let growth = grown(evidence);
        candidates
            .extend(growth.iter().map(|growth| growth_candidate(evidence, first, last, growth)));
    }
    let is_known =
        |held: &Candidate| candidates.iter().any(|candidate| candidate.subject == held.subject);
    let held = held(evidence).filter(|held| !is_known(held));
    candidates.extend(held);
    candidates
}

fn first_and_last<'a>(
    evidence: &IncidentEvidence<'a>,
) -> Option<(&'a Tabulated<ProfileTable>, &'a Tabulated<ProfileTable>)> {
    match evidence.tables.heap.as_slice() {
        [first, .., last] => Some((first, last)),
        _ => None,
    }
}

/// Returns the functions whose live heap grew between the first and the last heap profile.
pub(super) fn grown(evidence: &IncidentEvidence<'_>) -> Vec<SubjectGrowth> {
    let Some((first, last)) = first_and_last(evidence) else { return Vec::new() };
    let growth = last.table.growth_since(&first.table);
    let heap_growth = (last.table.total - first.table.total) as f64;
    let sum: f64 = growth.iter().map(|total| total.value.max(0) as f64).sum();
    let process = process_series(evidence);
    let process_growth = match (value_at(&process, first.taken), value_at(&process, last.taken)) {
        (Some(before), Some(after)) => after - before,
        _ => 0.0,
    };
    let whole = sum.max(process_growth);
    let limit = confidence_limit(evidence, &heap_series(evidence));
    let significant = |total: SubjectTotal| {
        let value = total.value as f64;
        let share = value / whole;
        let is_large = value >= MIN_GROWTH_BYTES
            && share >= MIN_GROWTH_SHARE
            && heap_growth >= MIN_NET_GROWTH * value;
        let confidence = confidence_above_zero(value, total.variance).filter(|_| is_large)?;
        let is_small = value < MIN_GROWTH_OF_HEAP * first.table.total as f64;
        let limit = if is_small { Confidence::Possible } else { limit };
        Some(SubjectGrowth { total, share, confidence: cmp::min(confidence, limit) })
    };
    growth.into_iter().filter_map(significant).collect()
}

fn growth_candidate(
    evidence: &IncidentEvidence<'_>,
    first: &Tabulated<ProfileTable>,
    last: &Tabulated<ProfileTable>,
    growth: &SubjectGrowth,
) -> Candidate {
    let SubjectGrowth { total, share, confidence } = growth;
    let SubjectTotal { subject, value, .. } = total;
    let since_opening = first.taken.duration_since(evidence.manifest.opened).as_secs_f64();
    let start = if since_opening <= MAX_START_SECONDS {
        "at the start of the incident"
    } else {
        "in its first heap profile"
    };
    let standard_error = total.variance.sqrt();
    let text = format!(
        "{subject} holds {} more than {start} ({:.0} % of the growth){}",
        to_bytes(*value as f64),
        share * 100.0,
        StatedError(standard_error),
    );
    let seconds = last.taken.duration_since(first.taken).as_secs_f64();
    let candidate = Candidate::new(FindingKind::HeapGrowth, *confidence, subject)
        .text(text)
        .number("bytes", *value as f64)
        .number("standard_error", standard_error)
        .number("seconds", seconds)
        .share(*share)
        .stack(&total.stack)
        .evidence(&last.file, compare_command(&first.file, &last.file))
        .explains_reason(has_memory_reason(evidence));
    let live = last.table.by_subject().into_iter().find(|live| live.subject == *subject);
    match live {
        Some(live) => with_labels(candidate, &last.table, live.value),
        None => candidate,
    }
}

/// A standard error at the end of a sentence. Nothing if every block was counted.
struct StatedError(f64);

impl fmt::Display for StatedError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match to_bytes(self.0) {
            Bytes(0) => Ok(()),
            error => write!(f, ", +- {error}"),
        }
    }
}

/// Returns the function that holds most of the live heap, if memory is near its limit.
fn held(evidence: &IncidentEvidence<'_>) -> Option<Candidate> {
    let last = evidence.tables.heap.last()?;
    if !has_memory_reason(evidence) || !is_near_limit(evidence) {
        return None;
    }
    let process = process_series(evidence);
    let heap = last.table.total as f64;
    let used = value_at(&process, last.taken).unwrap_or(heap);
    if heap < MIN_GROWTH_BYTES || heap < MIN_HEAP_OF_PROCESS * used {
        return None;
    }
    let total = last.table.by_subject().into_iter().next()?;
    let value = total.value as f64;
    let confidence = confidence_above_zero(value - MIN_HELD_SHARE * heap, total.variance)?;
    let limit = level_confidence_limit(evidence, &heap_series(evidence));
    let standard_error = total.variance.sqrt();
    let text = format!(
        "{} holds {} of {} live heap ({:.0} %){}",
        total.subject,
        to_bytes(value),
        to_bytes(heap),
        value / heap * 100.0,
        StatedError(standard_error),
    );
    let candidate =
        Candidate::new(FindingKind::HeapGrowth, cmp::min(confidence, limit), &total.subject)
            .text(text)
            .number("bytes", value)
            .number("standard_error", standard_error)
            .number("heap_bytes", heap)
            .share(value / heap.max(used))
            .stack(&total.stack)
            .evidence(
                &last.file,
                format!("go tool pprof -top -sample_index=inuse_space {}", last.file),
            )
            .explains_reason(true);
    Some(with_labels(candidate, &last.table, total.value))
}

/// Adds the task and the span to which at least half of `value`, a part of the table, belongs. The
/// table has sums by label and not by label and function, hence the part that must overlap.
pub(super) fn with_labels(mut candidate: Candidate, table: &ProfileTable, value: i64) -> Candidate {
    for key in ["task", "span"] {
        if let Some((label, labelled)) = table.top_label(key)
            && (labelled + value - table.total) * 2 >= value
        {
            candidate = candidate.label(key, &**label);
        }
    }
    candidate
}

pub(super) fn compare_command(first: &str, last: &str) -> String {
    format!("go tool pprof -top -sample_index=inuse_space -base {first} {last}")
}
