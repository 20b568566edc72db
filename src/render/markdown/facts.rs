//! The section of facts: reasons, limits, process, versions, times.

use super::{MAX_NAME, MAX_SENTENCE, worth};
use crate::analysis::overview::IncidentOverview;
use crate::model::{IncidentState, Limits, Manifest, Reason, Unit};
use crate::render::document::{DocumentSection, wrap};
use crate::render::escape::{code, prose};
use crate::render::number::{amount, duration, time};

/// Reasons that are shown: the one that opened the incident and those after it, and the latest.
const FIRST_REASONS: usize = 3;
const LAST_REASONS: usize = 5;

pub(super) fn section(manifest: &Manifest, overview: &IncidentOverview<'_>) -> DocumentSection {
    let mut section = DocumentSection::new("Facts", "reason");
    let reasons = &manifest.reasons;
    let omitted = reasons.len().saturating_sub(FIRST_REASONS + LAST_REASONS);
    for (index, reason) in reasons.iter().enumerate() {
        if (FIRST_REASONS..FIRST_REASONS + omitted).contains(&index) {
            continue;
        }
        let worth = if index == 0 { worth::FACT } else { worth::FURTHER_REASON };
        section.push(worth, wrap("- ", "  ", &reason_line(reason)));
    }
    section.omit(omitted);
    for line in [
        limits_line(&manifest.limits),
        process_line(manifest),
        versions_line(manifest),
        state_line(manifest, overview),
    ] {
        section.push_detail(worth::FACT, wrap("- ", "  ", &line));
    }
    section
}

fn reason_line(reason: &Reason) -> String {
    let text = prose(&reason.text, MAX_SENTENCE);
    let source = match &reason.rule {
        Some(rule) => format!("rule {}", code(rule, MAX_NAME)),
        None => format!("from {}", reason.origin.description()),
    };
    format!("Reason: {text} ({source}, {})", time(reason.at))
}

fn limits_line(limits: &Limits) -> String {
    let source = |source: &Option<String>| match source {
        Some(source) => format!(" ({})", prose(source, MAX_NAME)),
        None => String::new(),
    };
    let memory =
        limits.memory.map(|bytes| format!("memory {bytes}{}", source(&limits.memory_source)));
    let cpu = limits.cpu_cores.map(|cores| {
        format!("CPU {} cores{}", amount(cores, Unit::Count), source(&limits.cpu_source))
    });
    match (memory, cpu) {
        (Some(memory), Some(cpu)) => format!("Limits: {memory}, {cpu}"),
        (Some(one), None) | (None, Some(one)) => format!("Limits: {one}"),
        (None, None) => "Limits: none found".to_owned(),
    }
}

fn process_line(manifest: &Manifest) -> String {
    let process = &manifest.process;
    // The directories of a path can name users and customers.
    let name = process.exe.rsplit(['/', '\\']).next().unwrap_or_default();
    let build_id = if process.build_id.is_empty() { "none" } else { &process.build_id };
    format!(
        "Process: {}, pid {}, build ID {}, agent started at {}",
        code(name, MAX_NAME),
        process.pid,
        prose(build_id, MAX_NAME),
        time(process.agent_started)
    )
}

fn versions_line(manifest: &Manifest) -> String {
    let versions = &manifest.versions;
    format!(
        "Versions: marple {}, kernel {}, {}",
        prose(&versions.marple, MAX_NAME),
        prose(&versions.kernel, MAX_NAME),
        prose(&versions.arch, MAX_NAME)
    )
}

fn state_line(manifest: &Manifest, overview: &IncidentOverview<'_>) -> String {
    let opened = time(manifest.opened);
    let state = match manifest.state {
        IncidentState::Open => "open",
        IncidentState::Closed => "closed",
        IncidentState::Interrupted => "interrupted",
    };
    let mut line = format!("Incident: `{}`, {state}, opened at {opened}", manifest.id);
    match (manifest.state, manifest.closed) {
        (IncidentState::Closed, Some(closed)) => {
            line += &format!(", closed at {}", time(closed));
            if let Some(open_time) = overview.duration {
                line += &format!(" after {}", duration(open_time));
            }
        }
        (IncidentState::Interrupted, Some(found)) => {
            line += &format!(", found interrupted at {}", time(found));
        }
        _ => {}
    }
    line
}
