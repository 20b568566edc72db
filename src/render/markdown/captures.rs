//! The section of the captures: outcomes, errors and losses.

use super::{MAX_NAME, MAX_SENTENCE, worth};
use crate::analysis::overview::LossSummary;
use crate::model::{CaptureRecord, Losses, Manifest, Outcome};
use crate::render::document::{DocumentSection, wrap};
use crate::render::escape::prose;
use crate::render::number::{plural, time};

/// Maximum number of captures: those of all kinds and some custom ones.
const MAX_CAPTURES: usize = 40;

/// Maximum number of causes of losses of one capture.
const MAX_CAUSES: usize = 6;

pub(super) fn section(manifest: &Manifest) -> DocumentSection {
    let mut section = DocumentSection::new("Captures", "capture");
    for capture in manifest.captures.iter().take(MAX_CAPTURES) {
        let is_complete = matches!(capture.outcome, Outcome::Done | Outcome::Running);
        let worth = if is_complete { worth::CAPTURE } else { worth::PROBLEM };
        section.push(worth, wrap("- ", "  ", &line(capture)));
        push_losses(&mut section, "  - ", &capture.losses);
    }
    section.omit(manifest.captures.len().saturating_sub(MAX_CAPTURES));
    push_losses(&mut section, "- incident: ", &manifest.losses);
    let captures = manifest.captures.iter();
    if captures.clone().all(|capture| capture.losses.is_empty())
        && captures.clone().any(|capture| capture.outcome == Outcome::Done)
        && manifest.losses.is_empty()
    {
        section.push_detail(worth::LOSS, "- no losses\n".to_owned());
    }
    section
}

fn line(capture: &CaptureRecord) -> String {
    let CaptureRecord { kind, engine, started, stopped, outcome, error, .. } = capture;
    let outcome = match outcome {
        Outcome::Running => "running",
        Outcome::Done => "done",
        Outcome::Failed => "failed",
        Outcome::Skipped => "skipped",
        Outcome::Cut => "cut short",
    };
    let engine = match engine.as_str() {
        "" => String::new(),
        engine => format!(" ({})", prose(engine, MAX_NAME)),
    };
    let mut line = format!("{kind}{engine}: {outcome}, {}", time(*started));
    if let Some(stopped) = stopped.filter(|stopped| stopped != started) {
        line += &format!(" to {}", time(stopped));
    }
    if let Some(error) = error {
        line += &format!(": {}", prose(error, MAX_SENTENCE));
    }
    line
}

fn push_losses(section: &mut DocumentSection, first: &str, losses: &Losses) {
    let summary = LossSummary::new(losses, MAX_CAUSES);
    for loss in &summary.largest {
        let text = format!("losses ({}): {}", loss.count, prose(&loss.cause, MAX_SENTENCE));
        section.push_detail(worth::LOSS, wrap(first, "    ", &text));
    }
    if summary.other_causes > 0 {
        let causes = plural(summary.other_causes as u64, "further cause");
        let text = format!("losses ({}): {causes}", summary.other_count);
        section.push_detail(worth::LOSS, wrap(first, "    ", &text));
    }
}
