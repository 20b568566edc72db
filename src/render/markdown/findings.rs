//! The section of the findings.

use std::fmt::Write;

use super::{MAX_FUNCTION, MAX_NAME, MAX_SENTENCE, fence, sentence, worth};
use crate::analysis::overview::short_stack;
use crate::model::{Finding, Manifest, Unit};
use crate::render::document::{DocumentSection, wrap};
use crate::render::escape::{code, prose, verbatim};
use crate::render::number::{named, unit_of};

/// Maximum numbers and labels of a finding. Rules add fewer.
const MAX_PROPERTIES: usize = 12;

/// Maximum commands of a finding.
const MAX_COMMANDS: usize = 4;

/// Maximum bytes of a command: two file names and options.
const MAX_COMMAND: usize = 450;

pub(super) fn section(manifest: &Manifest) -> DocumentSection {
    let mut section = DocumentSection::new("Findings", "finding");
    for (index, finding) in manifest.findings.iter().enumerate() {
        let below = |worth: u32| worth.saturating_sub(finding.rank.min(20));
        let gap = if index == 0 { "" } else { "\n" };
        section.push(below(worth::FINDING), format!("{gap}{}", summary(finding)));
        if !finding.stack.is_empty() {
            section.push_detail(below(worth::FINDING_STACK), stack(finding));
        }
        if !finding.evidence.is_empty() {
            section.push_detail(below(worth::FINDING_COMMAND), commands(finding));
        }
    }
    section
}

fn summary(finding: &Finding) -> String {
    let Finding { rank, kind, confidence, subject, .. } = finding;
    let subject = code(subject, MAX_FUNCTION);
    let mut text = format!("### {rank}. {kind}, {confidence}: {subject}\n\n");
    text.push_str(&wrap("", "", &sentence(&finding.text, MAX_SENTENCE)));
    let properties = properties(finding);
    if !properties.is_empty() {
        text.push('\n');
        text.push_str(&wrap("", "", &properties));
    }
    text
}

/// Returns the numbers with their units, then the labels.
fn properties(finding: &Finding) -> String {
    let has_bytes = finding.numbers.keys().any(|name| unit_of(name) == Unit::Bytes);
    let error_unit = if has_bytes { Unit::Bytes } else { Unit::Count };
    let shown_name = |name: &str| name.replace('_', " ");
    let numbers = finding.numbers.iter().map(|(name, &value)| {
        let value = named(name, value, error_unit);
        format!("{} {value}", prose(&shown_name(name), MAX_NAME))
    });
    let labels = finding.labels.iter().map(|(name, label)| {
        format!("{} {}", prose(&shown_name(name), MAX_NAME), code(label, MAX_FUNCTION))
    });
    let properties: Vec<String> = numbers.chain(labels).take(MAX_PROPERTIES).collect();
    if properties.is_empty() { String::new() } else { format!("Data: {}.", properties.join(", ")) }
}

fn stack(finding: &Finding) -> String {
    let mut lines = String::new();
    for function in short_stack(&finding.stack) {
        let _ = writeln!(lines, "{}", verbatim(function, MAX_FUNCTION));
    }
    format!("\nStack, innermost function first:\n\n{}", fence("text", &lines))
}

fn commands(finding: &Finding) -> String {
    let mut lines = String::new();
    for evidence in finding.evidence.iter().take(MAX_COMMANDS) {
        let _ = writeln!(lines, "{}", verbatim(&evidence.command, MAX_COMMAND));
    }
    format!("\nTo see it:\n\n{}", fence("sh", &lines))
}
