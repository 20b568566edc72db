//! `leak-suspect`: functions whose live heap grows from each heap profile to the next.
//!
//! The age of a block is not recorded, so a block that lives long cannot be told from one that was
//! replaced. The conclusion is therefore never certain.

use std::cmp;
use std::collections::HashMap;

use super::growth::{SubjectGrowth, compare_command, grown, with_labels};
use super::{has_memory_reason, to_bytes};
use crate::analysis::evidence::{IncidentEvidence, Tabulated};
use crate::analysis::findings::{Candidate, confidence_above_zero};
use crate::analysis::{ProfileTable, SubjectTotal};
use crate::model::{Confidence, FindingKind};

/// Minimum number of heap profiles: two show a growth, the third that it goes on.
const MIN_TABLES: usize = 3;

/// Minimum time between two heap profiles. The one at the end of a capture and the one at the start
/// of the next may be milliseconds apart.
const MIN_INTERVAL_SECONDS: f64 = 2.0;

/// Minimum rate of growth in the last interval, compared with the first. Below it, the growth may
/// end by itself, as that of a cache does.
const MIN_LAST_RATE: f64 = 0.5;

/// The growth of all functions from a heap profile to the next.
struct HeapInterval {
    seconds: f64,
    totals: HashMap<String, SubjectTotal>,
}

impl HeapInterval {
    fn new(before: &Tabulated<ProfileTable>, after: &Tabulated<ProfileTable>) -> Self {
        let growth = after.table.growth_since(&before.table);
        Self {
            seconds: after.taken.duration_since(before.taken).as_secs_f64(),
            totals: growth.into_iter().map(|total| (total.subject.clone(), total)).collect(),
        }
    }

    /// Returns the growth of a function per second.
    fn rate(&self, subject: &str) -> f64 {
        self.totals.get(subject).map_or(0.0, |total| total.value as f64 / self.seconds)
    }

    /// Returns the confidence that a function grew, or `None` if its estimate did not.
    fn confidence(&self, subject: &str) -> Option<Confidence> {
        let total = self.totals.get(subject).filter(|total| total.value > 0)?;
        let confidence = confidence_above_zero(total.value as f64, total.variance);
        Some(confidence.unwrap_or(Confidence::Possible))
    }
}

pub(super) fn find(evidence: &IncidentEvidence<'_>) -> Vec<Candidate> {
    let tables = spaced(&evidence.tables.heap);
    if tables.len() < MIN_TABLES {
        return Vec::new();
    }
    let intervals: Vec<HeapInterval> =
        tables.windows(2).map(|pair| HeapInterval::new(pair[0], pair[1])).collect();
    let suspect = |growth: SubjectGrowth| candidate(evidence, &tables, &intervals, &growth);
    grown(evidence).into_iter().filter_map(suspect).collect()
}

/// Returns the tables without those that follow the one before too soon. Keeps the last.
fn spaced(tables: &[Tabulated<ProfileTable>]) -> Vec<&Tabulated<ProfileTable>> {
    let mut kept: Vec<&Tabulated<ProfileTable>> = Vec::new();
    for table in tables.iter().rev() {
        let is_spaced = kept.last().is_none_or(|after| {
            after.taken.duration_since(table.taken).as_secs_f64() >= MIN_INTERVAL_SECONDS
        });
        if is_spaced {
            kept.push(table);
        }
    }
    kept.reverse();
    kept
}

fn candidate(
    evidence: &IncidentEvidence<'_>,
    tables: &[&Tabulated<ProfileTable>],
    intervals: &[HeapInterval],
    growth: &SubjectGrowth,
) -> Option<Candidate> {
    let [first, .., last] = tables else { return None };
    let [first_interval, .., last_interval] = intervals else { return None };
    let subject = &growth.total.subject;
    let mut confidence = cmp::min(growth.confidence, Confidence::Likely);
    for interval in intervals {
        confidence = cmp::min(confidence, interval.confidence(subject)?);
    }
    if last_interval.rate(subject) < MIN_LAST_RATE * first_interval.rate(subject) {
        confidence = Confidence::Possible;
    }
    let [before, after] = [first, last].map(|tabulated| {
        let totals = tabulated.table.by_subject();
        totals.into_iter().find(|total| total.subject == *subject).map_or(0, |total| total.value)
    });
    let standard_error = growth.total.variance.sqrt();
    let text = format!(
        "{subject} holds more in each of the {} later heap profiles than in the one before, and \
         never shrank: {} in the first, {} in the last, +- {}",
        intervals.len(),
        to_bytes(before as f64),
        to_bytes(after as f64),
        to_bytes(standard_error),
    );
    let candidate = Candidate::new(FindingKind::LeakSuspect, confidence, subject)
        .text(text)
        .number("bytes", (after - before) as f64)
        .number("standard_error", standard_error)
        .number("profiles", tables.len() as f64)
        .number("bytes_per_second", last_interval.rate(subject))
        .share(growth.share)
        .stack(&growth.total.stack)
        .evidence(&last.file, compare_command(&first.file, &last.file))
        .explains_reason(has_memory_reason(evidence));
    Some(with_labels(candidate, &last.table, after))
}
