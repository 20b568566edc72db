//! The sections of the files: those in the directory, each with a command, and the removed ones.

use super::{MAX_FILE_NAME, MAX_NAME, MAX_SENTENCE, has_profile, worth};
use crate::model::{Artifact, ArtifactFormat, Manifest, RemovedArtifact};
use crate::render::document::{DocumentSection, wrap};
use crate::render::escape::{code, prose};
use crate::render::number::time;

/// Maximum number of files at each end of the list.
const MAX_AT_END: usize = 30;

/// Maximum number of removed files, the latest ones.
const MAX_REMOVED: usize = 20;

pub(super) fn section(manifest: &Manifest) -> DocumentSection {
    let mut section = DocumentSection::new("Files", "file");
    if has_profile(manifest) {
        section = section.intro(
            "Run the commands in this directory. Profiles have function names only. For source \
             lines, run `marple symbolize FILE` first, then `go tool pprof` on the \
             `.lines.pprof` file that it writes.",
        );
    }
    let artifacts = &manifest.artifacts;
    let omitted = artifacts.len().saturating_sub(2 * MAX_AT_END);
    for (index, artifact) in artifacts.iter().enumerate() {
        if (MAX_AT_END..MAX_AT_END + omitted).contains(&index) {
            continue;
        }
        let is_same = |other: &&Artifact| format_of(other) == format_of(artifact);
        let first = artifacts.iter().find(is_same);
        let is_first = first.is_some_and(|first| first.file == artifact.file);
        let is_last =
            artifacts.iter().rfind(is_same).is_some_and(|last| last.file == artifact.file);
        let worth = if is_first || is_last { worth::MAIN_FILE } else { worth::FILE };
        let base = first.filter(|_| is_last && !is_first).map(|first| &*first.file);
        section.push(worth, line(artifact, base));
        if let Some(note) = &artifact.note {
            let note = prose(note, MAX_SENTENCE).to_string();
            section.push_detail(worth::FILE_NOTE, wrap("  ", "  ", &note));
        }
    }
    section.omit(omitted);
    section
}

pub(super) fn removed_section(manifest: &Manifest) -> DocumentSection {
    let mut section = DocumentSection::new("Removed files", "removed file");
    let removed = &manifest.removed;
    for RemovedArtifact { artifact, removed, why } in removed.iter().rev().take(MAX_REMOVED) {
        let text = format!(
            "{}, {}, removed at {} for {}",
            code(&artifact.file, MAX_FILE_NAME),
            artifact.bytes,
            time(*removed),
            code(why, MAX_NAME)
        );
        section.push(worth::REMOVED_FILE, wrap("- ", "  ", &text));
    }
    section.omit(removed.len().saturating_sub(MAX_REMOVED));
    section
}

/// Returns a file with its size, and the command that shows it. `base` is the first file of the
/// same format, if this is the last one.
fn line(artifact: &Artifact, base: Option<&str>) -> String {
    let file = code(&artifact.file, MAX_FILE_NAME);
    let phase = match artifact.phase.as_deref() {
        None => String::new(),
        Some("lookback") => ", before the capture".to_owned(),
        Some("during") => ", during the capture".to_owned(),
        Some("stall") => ", of a stalled thread".to_owned(),
        Some(phase) => format!(", {}", prose(phase, MAX_NAME)),
    };
    let text = format!("{file}, {}, {}{phase}:", artifact.bytes, time(artifact.taken));
    let command = wrap("  ", "  ", &command(artifact, base));
    format!("{}{command}", wrap("- ", "  ", &text))
}

fn command(artifact: &Artifact, base: Option<&str>) -> String {
    let name = &artifact.file;
    let run = |command: &str| code(&format!("{command} {name}"), 2 * MAX_FILE_NAME).to_string();
    match format_of(artifact) {
        Some(ArtifactFormat::RuntimeTrace) => "open it at https://ui.perfetto.dev".to_owned(),
        Some(ArtifactFormat::MemoryPprof) => match base {
            Some(base) => run(&format!("go tool pprof -top -base {base}")),
            None => run("go tool pprof -top"),
        },
        Some(ArtifactFormat::CpuPprof) => run("go tool pprof -top"),
        Some(ArtifactFormat::ThreadsPprof | ArtifactFormat::TasksPprof) => {
            run("go tool pprof -traces")
        }
        _ => run("less"),
    }
}

/// Returns the format of a file. `None` for the files of custom collectors.
fn format_of(artifact: &Artifact) -> Option<ArtifactFormat> {
    let formats = ArtifactFormat::for_kind(artifact.kind);
    formats.into_iter().find(|format| artifact.file.ends_with(format.extension()))
}
