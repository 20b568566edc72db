//! Findings: rules that turn tables and vitals into ranked conclusions.
//!
//! Each file has the rules of one subject, and a table of cases. A rule returns candidates; this
//! module orders them. A candidate goes up with its confidence, and if it explains the metric whose
//! rule opened the incident.

mod cpu;
mod descriptors;
#[cfg(test)]
mod fixture;
mod growth;
mod locks;
mod memory;
mod panics;
mod spawned;
mod stalls;
mod system;
mod tasks;
mod threads;

use std::collections::BTreeMap;

use super::Symbol;
use super::evidence::IncidentEvidence;
use crate::model::{Confidence, Finding, FindingEvidence, FindingKind};

/// Maximum number of findings of an incident.
const MAX_FINDINGS: usize = 20;

/// Maximum number of findings of one kind.
const MAX_PER_KIND: usize = 5;

/// Maximum number of functions of a finding's stack, the innermost ones.
const MAX_STACK: usize = 24;

/// Minimum distance from a value that would refute a conclusion, in standard errors.
const LIKELY_SIGMAS: f64 = 2.0;
const CERTAIN_SIGMAS: f64 = 5.0;

/// A conclusion that is not ranked yet.
#[derive(Clone, Debug)]
struct Candidate {
    kind: FindingKind,
    confidence: Confidence,
    subject: String,
    text: String,
    numbers: BTreeMap<String, f64>,
    labels: BTreeMap<String, String>,
    stack: Vec<Symbol>,
    evidence: Vec<FindingEvidence>,
    /// Part of the problem that it explains, between 0 and 1.
    share: f64,
    /// True if it explains the metric of a rule that opened the incident.
    explains_reason: bool,
}

impl Candidate {
    /// Creates a candidate without numbers, labels, stack and evidence, which explains nothing.
    fn new(kind: FindingKind, confidence: Confidence, subject: impl Into<String>) -> Self {
        Self {
            kind,
            confidence,
            subject: subject.into(),
            text: String::new(),
            numbers: BTreeMap::new(),
            labels: BTreeMap::new(),
            stack: Vec::new(),
            evidence: Vec::new(),
            share: 0.0,
            explains_reason: false,
        }
    }

    fn text(mut self, text: impl Into<String>) -> Self {
        self.text = text.into();
        self
    }

    /// Adds a number. Values that are not finite are left out: JSON has none.
    fn number(mut self, name: &str, value: f64) -> Self {
        if value.is_finite() {
            self.numbers.insert(name.to_owned(), value);
        }
        self
    }

    fn label(mut self, name: &str, value: impl Into<String>) -> Self {
        self.labels.insert(name.to_owned(), value.into());
        self
    }

    fn stack(mut self, stack: &[Symbol]) -> Self {
        self.stack = stack.to_vec();
        self
    }

    fn evidence(mut self, file: &str, command: impl Into<String>) -> Self {
        self.evidence.push(FindingEvidence { file: file.to_owned(), command: command.into() });
        self
    }

    /// Sets the part of the problem that it explains. It is also its number `share`.
    fn share(mut self, share: f64) -> Self {
        self.share = if share.is_finite() { share.clamp(0.0, 1.0) } else { 0.0 };
        let share = self.share;
        self.number("share", share)
    }

    fn explains_reason(mut self, explains: bool) -> Self {
        self.explains_reason = explains;
        self
    }

    /// Position: higher comes first. A reason is worth more than one step of confidence, because
    /// the operator was called for that metric; a share decides between equals.
    fn priority(&self) -> f64 {
        let confidence = match self.confidence {
            Confidence::Possible => 0.0,
            Confidence::Likely => 1.0,
            Confidence::Certain => 2.0,
        };
        confidence + if self.explains_reason { 1.5 } else { 0.0 } + self.share
    }
}

/// Returns the findings of an incident, the best explanation first.
pub(crate) fn find(evidence: &IncidentEvidence<'_>) -> Vec<Finding> {
    let rules = [
        memory::find,
        cpu::find,
        stalls::find,
        locks::find,
        tasks::find,
        spawned::find,
        descriptors::find,
        threads::find,
        system::find,
        panics::find,
    ];
    let mut candidates: Vec<Candidate> =
        rules.into_iter().flat_map(|rule| rule(evidence)).collect();
    if !candidates.iter().any(|candidate| candidate.explains_reason) {
        candidates.extend(system::unexplained(evidence));
    }
    rank(candidates)
}

fn rank(mut candidates: Vec<Candidate>) -> Vec<Finding> {
    candidates.sort_by(|a, b| {
        let priority = b.priority().total_cmp(&a.priority());
        priority.then_with(|| (a.kind, &a.subject).cmp(&(b.kind, &b.subject)))
    });
    let mut of_kind: BTreeMap<FindingKind, usize> = BTreeMap::new();
    candidates.retain(|candidate| {
        let count = of_kind.entry(candidate.kind).or_default();
        *count += 1;
        *count <= MAX_PER_KIND
    });
    candidates.truncate(MAX_FINDINGS);
    let ranked = candidates.into_iter().zip(1..);
    ranked
        .map(|(candidate, rank)| Finding {
            rank,
            kind: candidate.kind,
            confidence: candidate.confidence,
            subject: candidate.subject,
            text: candidate.text,
            numbers: candidate.numbers,
            labels: candidate.labels,
            stack: candidate.stack.iter().take(MAX_STACK).map(|name| (**name).to_owned()).collect(),
            evidence: candidate.evidence,
        })
        .collect()
}

/// Returns the confidence of a value with this variance, if 0 would refute the conclusion. `None`
/// if it is less than two standard errors above 0.
fn confidence_above_zero(value: f64, variance: f64) -> Option<Confidence> {
    let standard_error = variance.max(0.0).sqrt();
    if value <= 0.0 || value < LIKELY_SIGMAS * standard_error {
        None
    } else if value < CERTAIN_SIGMAS * standard_error {
        Some(Confidence::Likely)
    } else {
        Some(Confidence::Certain)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn confidence_follows_from_the_standard_error() {
        for (value, variance, confidence) in [
            (0.0, 0.0, None),
            (-5.0, 1.0, None),
            (1.9, 1.0, None),
            (2.0, 1.0, Some(Confidence::Likely)),
            (5.0, 1.0, Some(Confidence::Certain)),
            (1.0, 0.0, Some(Confidence::Certain)),
        ] {
            assert_eq!(confidence_above_zero(value, variance), confidence, "{value} {variance}");
        }
    }

    #[test]
    fn ranks_by_reason_confidence_and_share() {
        let candidate = |subject, confidence, explains, share| {
            Candidate::new(FindingKind::CpuHot, confidence, subject)
                .explains_reason(explains)
                .share(share)
        };
        let findings = rank(vec![
            candidate("possible", Confidence::Possible, true, 0.9),
            candidate("certain", Confidence::Certain, false, 0.1),
            candidate("likely reason", Confidence::Likely, true, 0.2),
            candidate("large likely reason", Confidence::Likely, true, 0.3),
        ]);
        let order: Vec<_> =
            findings.iter().map(|finding| (finding.rank, &*finding.subject)).collect();
        let expected =
            [(1, "large likely reason"), (2, "likely reason"), (3, "possible"), (4, "certain")];
        assert_eq!(order, expected);
    }

    #[test]
    fn findings_of_one_kind_are_limited() {
        let candidates = (0..30).map(|number| {
            Candidate::new(FindingKind::CpuHot, Confidence::Likely, format!("f{number:02}"))
        });
        let findings = rank(candidates.collect());
        assert_eq!(findings.len(), MAX_PER_KIND);
        assert_eq!(findings[0].subject, "f00");
    }
}
