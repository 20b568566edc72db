//! `incident.md`: the report of an incident, as Markdown that is readable as plain text.
//!
//! ```text
//! title, verdict, state, facts, vitals, findings, rankings, captures, files, removed files
//! ```
//!
//! Names and texts are escaped (`escape`), and every list is bounded. If the report would exceed
//! its limit, the least valuable blocks are left out (`document`, [`worth`]).
//!
//! The report contains no arguments, environment variables or values of `tracing` fields, and of
//! the executable's path only the last component: it is meant to be pasted into a ticket. The reason
//! of a rule over `panics` quotes the message of one.

mod captures;
mod facts;
mod files;
mod findings;
mod rankings;
#[cfg(test)]
mod tests;
mod vitals;

use std::fmt::{self, Write};

use super::document::{MarkdownDocument, truncate, wrap};
use super::escape::{code, prose};
use super::number::{plural, time};
use crate::analysis::evidence::IncidentEvidence;
use crate::analysis::overview::IncidentOverview;
use crate::model::{CaptureKind, IncidentState, Manifest, Outcome};

/// Maximum size of a report: some 300 lines, which a person can read, and which a ticket accepts.
pub(crate) const MAX_REPORT_BYTES: usize = 16 << 10;

/// Maximum size of a short report.
pub(crate) const MAX_SHORT_REPORT_BYTES: usize = 2 << 10;

/// Maximum bytes of a name: a service, a rule, a thread.
const MAX_NAME: usize = 80;

/// Maximum bytes of a function's name. Generic ones can have kilobytes.
const MAX_FUNCTION: usize = 90;

/// Maximum bytes of a file's name: more than the longest of the store, 173.
const MAX_FILE_NAME: usize = 180;

/// Maximum bytes of a sentence: a reason, an error, the text of a finding.
const MAX_SENTENCE: usize = 500;

/// Maximum bytes of a sentence of the short report.
const MAX_SHORT_SENTENCE: usize = 300;

/// Values of the blocks: what an operator can do without is left out first.
mod worth {
    pub(super) const FACT: u32 = 100;
    /// Minus the rank, at most 20.
    pub(super) const FINDING: u32 = 99;
    pub(super) const VITALS: u32 = 97;
    /// A capture that is not complete.
    pub(super) const PROBLEM: u32 = 75;
    /// Minus the rank.
    pub(super) const FINDING_COMMAND: u32 = 74;
    pub(super) const RANKING: u32 = 60;
    /// The first or the last file of its type.
    pub(super) const MAIN_FILE: u32 = 56;
    /// Minus the rank.
    pub(super) const FINDING_STACK: u32 = 55;
    pub(super) const FURTHER_REASON: u32 = 34;
    pub(super) const CAPTURE: u32 = 33;
    pub(super) const LOSS: u32 = 32;
    pub(super) const FILE: u32 = 20;
    pub(super) const FILE_NOTE: u32 = 19;
    pub(super) const REMOVED_FILE: u32 = 10;
}

/// Returns the report of an incident, at most 16 KiB. Its findings are those of the manifest.
pub(crate) fn report(evidence: &IncidentEvidence<'_>) -> String {
    let manifest = evidence.manifest;
    let overview = IncidentOverview::new(evidence);
    let mut head = wrap("# ", "", &title(manifest, MAX_NAME));
    head.push('\n');
    head.push_str(&wrap("", "", &verdict(manifest, MAX_SENTENCE)));
    if let Some(note) = state_note(manifest) {
        head.push('\n');
        head.push_str(&wrap("", "", &note));
    }
    let sections = vec![
        facts::section(manifest, &overview),
        vitals::section(&overview),
        findings::section(manifest),
        rankings::section(&overview),
        captures::section(manifest),
        files::section(manifest),
        files::removed_section(manifest),
    ];
    MarkdownDocument { head, sections }.into_text(MAX_REPORT_BYTES)
}

/// Returns the verdict, the reasons and the files of an incident, at most 2 KiB. For a process with
/// little memory left: it reads no tables, and needs some kilobytes.
pub(crate) fn short_report(evidence: &IncidentEvidence<'_>) -> String {
    /// Room for the line that counts the missing files.
    const MAX_LIST: usize = MAX_SHORT_REPORT_BYTES - 64;
    let manifest = evidence.manifest;
    let mut text = String::with_capacity(MAX_SHORT_REPORT_BYTES);
    text.push_str(&wrap("# ", "", &title(manifest, MAX_NAME / 2)));
    text.push('\n');
    text.push_str(&wrap("", "", &verdict(manifest, MAX_SHORT_SENTENCE)));
    text.push_str(concat!(
        "\nThis is a short report, because little memory is left. `incident.json` has the rest.\n",
        "\n## Reasons\n\n"
    ));
    for reason in manifest.reasons.iter().take(2) {
        let line = prose(&reason.text, MAX_SHORT_SENTENCE);
        push_line(&mut text, MAX_LIST, format_args!("- {}: {line}\n", time(reason.at)));
    }
    push_line(&mut text, MAX_LIST, format_args!("\n## Files\n\n"));
    let mut listed = 0;
    // The latest files are those of this moment.
    for artifact in manifest.artifacts.iter().rev() {
        let file = code(&artifact.file, MAX_FILE_NAME);
        if !push_line(&mut text, MAX_LIST, format_args!("- {file}, {}\n", artifact.bytes)) {
            break;
        }
        listed += 1;
    }
    match manifest.artifacts.len() - listed {
        0 if listed == 0 => text.push_str("No file is written yet.\n"),
        0 => {}
        more => {
            let more = plural(more as u64, "earlier file");
            push_line(&mut text, MAX_SHORT_REPORT_BYTES, format_args!("- {more}\n"));
        }
    }
    truncate(&mut text, MAX_SHORT_REPORT_BYTES);
    text
}

/// Appends a line, unless the text would be longer than `max_bytes`. Returns `true` if it is
/// appended.
fn push_line(text: &mut String, max_bytes: usize, line: fmt::Arguments<'_>) -> bool {
    let length = text.len();
    let fits = text.write_fmt(line).is_ok() && text.len() <= max_bytes;
    if !fits {
        text.truncate(length);
    }
    fits
}

/// Returns the service, the instance, the rule and the time.
fn title(manifest: &Manifest, max_name: usize) -> String {
    let service = prose(&manifest.service, max_name);
    let mut title = format!("Incident of {service}");
    let instance = prose(&manifest.instance, max_name);
    if !manifest.instance.is_empty() {
        let _ = write!(title, " ({instance})");
    }
    if let Some(reason) = manifest.reasons.first() {
        let _ = match &reason.rule {
            Some(rule) => write!(title, ": rule {}", prose(rule, max_name)),
            None => write!(title, ": started by {}", reason.origin.description()),
        };
    }
    let _ = write!(title, ", {}", time(manifest.opened));
    title
}

/// Returns the text of the first finding, or the reason why there is none.
fn verdict(manifest: &Manifest, max_bytes: usize) -> String {
    if let Some(finding) = manifest.findings.first() {
        let text = sentence(&finding.text, max_bytes);
        return format!("{text} Confidence: {}.", finding.confidence);
    }
    let kinds = |is_listed: fn(Outcome) -> bool| {
        let captures = manifest.captures.iter().filter(|capture| is_listed(capture.outcome));
        let mut kinds: Vec<&str> = captures.map(|capture| capture.kind.name()).collect();
        kinds.sort_unstable();
        kinds.dedup();
        kinds.join(", ")
    };
    let running = kinds(|outcome| outcome == Outcome::Running);
    let incomplete =
        kinds(|outcome| matches!(outcome, Outcome::Failed | Outcome::Skipped | Outcome::Cut));
    if manifest.captures.is_empty() {
        "Nothing is captured, so there is no finding.".to_owned()
    } else if manifest.state == IncidentState::Open && !running.is_empty() {
        format!("There is no finding yet. These captures are running: {running}.")
    } else if !incomplete.is_empty() {
        format!(
            "Nothing stands out in the captured data, but it is incomplete: see {incomplete} in \
             \"Captures\"."
        )
    } else {
        "Nothing stands out in the captured data.".to_owned()
    }
}

/// Returns the consequence of the state for the reader, or `None` if the incident is closed.
fn state_note(manifest: &Manifest) -> Option<String> {
    match manifest.state {
        IncidentState::Closed => None,
        IncidentState::Open => Some(
            "The incident is open. This report is rewritten after each capture and when the \
             incident closes."
                .to_owned(),
        ),
        IncidentState::Interrupted => {
            let found = manifest.closed.map(|found| format!(", as found at {}", time(found)));
            Some(format!(
                "The process ended before the incident closed{}. What it did not write by then is \
                 missing.",
                found.unwrap_or_default()
            ))
        }
    }
}

/// Returns an escaped text with a full stop.
fn sentence(text: &str, max_bytes: usize) -> String {
    format!("{}.", prose(text.trim().trim_end_matches('.'), max_bytes))
}

/// Returns lines as a code fence.
fn fence(language: &str, lines: &str) -> String {
    format!("```{language}\n{lines}```\n")
}

/// Returns `true` if a command writes pprof profiles that lack source lines.
fn has_profile(manifest: &Manifest) -> bool {
    let is_profile = |kind| matches!(kind, CaptureKind::Cpu | CaptureKind::Heap);
    manifest.artifacts.iter().any(|artifact| is_profile(artifact.kind))
}
