//! `memory-outside-heap`: memory that the live heap does not explain.
//!
//! ```text
//! outside(t) = max(0, process(t) - live heap(t))
//! ```
//!
//! The live heap may be larger than the memory of the process, if blocks were not written yet. The
//! maximum keeps a first write of such a block from looking like growth outside the heap.

use std::cmp;

use jiff::Timestamp;

use super::{
    confidence_limit, has_memory_reason, is_near_limit, last_top, level_confidence_limit,
    process_series, to_bytes, value_at,
};
use crate::analysis::ProfileTable;
use crate::analysis::evidence::{IncidentEvidence, Tabulated};
use crate::analysis::findings::{Candidate, confidence_above_zero};
use crate::base::Bytes;
use crate::model::{Artifact, CaptureKind, Confidence, FindingKind};

/// Minimum growth outside the heap: arenas, stacks and tables of a busy service vary by some MiB.
const MIN_GROWTH_BYTES: f64 = (32 << 20) as f64;

/// Minimum growth of the process, compared with its memory before.
const MIN_GROWTH_OF_PROCESS: f64 = 0.05;

/// Minimum memory outside the heap that does not grow: a small program has its code, stacks and
/// tables there.
const MIN_LEVEL_BYTES: f64 = (64 << 20) as f64;

/// Minimum part that is outside the heap, of the growth or of all memory. Below it, the heap
/// explains more.
const MIN_OUTSIDE_SHARE: f64 = 0.5;

/// Subject without a breakdown.
const UNKNOWN_PART: &str = "memory outside the heap profile";

/// Anonymous memory that is not live heap: freed blocks that the allocator keeps, C code, `mmap`.
const FREE_OR_FOREIGN: &str = "malloc's free memory or C code";

const FILE_PAGES: &str = "file pages";

/// Subject of memory that a cgroup is charged for and no page of the process explains.
const BEYOND_PROCESS: &str = "other processes, tmpfs or kernel memory";

/// The memory of the process and its live heap at the same time.
#[derive(Clone, Copy)]
struct MemoryPoint {
    at: Timestamp,
    process: f64,
    heap: f64,
}

impl MemoryPoint {
    fn outside(self) -> f64 {
        (self.process - self.heap).max(0.0)
    }
}

/// A kind of memory outside the heap.
struct MemoryPart {
    name: &'static str,
    bytes: f64,
}

pub(super) fn find(evidence: &IncidentEvidence<'_>) -> Vec<Candidate> {
    let points = points(evidence);
    let inside = growth(evidence, &points).or_else(|| level(evidence, &points));
    inside.into_iter().chain(beyond_process(evidence)).collect()
}

/// Returns the memory by time: from the vitals, or at the heap profiles if the live heap is not
/// measured at other times.
fn points(evidence: &IncidentEvidence<'_>) -> Vec<MemoryPoint> {
    let process = process_series(evidence);
    let mut heap = evidence.series("memory.heap");
    if heap.is_empty() {
        let total =
            |tabulated: &Tabulated<ProfileTable>| (tabulated.taken, tabulated.table.total as f64);
        heap = evidence.tables.heap.iter().map(total).collect();
    }
    let point = |(at, heap)| Some(MemoryPoint { at, process: value_at(&process, at)?, heap });
    heap.into_iter().filter_map(point).collect()
}

/// Returns the last point at which the process has the most memory.
fn peak(points: &[MemoryPoint]) -> Option<MemoryPoint> {
    let process: Vec<(Timestamp, f64)> =
        points.iter().map(|point| (point.at, point.process)).collect();
    points.get(last_top(&process)?).copied()
}

/// Returns the square of the standard error of the live heap, at both ends of a difference. `None`
/// without a heap profile: the vitals have the live heap, but not its error.
fn heap_variance(evidence: &IncidentEvidence<'_>) -> Option<f64> {
    let tables = &evidence.tables.heap;
    Some(tables.first()?.table.variance + tables.last()?.table.variance)
}

/// Returns the confidence that more than half of `whole` is outside the heap.
fn confidence(
    evidence: &IncidentEvidence<'_>,
    outside: f64,
    whole: f64,
    limit: Confidence,
) -> Option<Confidence> {
    let surplus = outside - MIN_OUTSIDE_SHARE * whole;
    match heap_variance(evidence) {
        Some(variance) => confidence_above_zero(surplus, variance).map(|it| cmp::min(it, limit)),
        None => (surplus > 0.0).then_some(Confidence::Possible),
    }
}

fn growth(evidence: &IncidentEvidence<'_>, points: &[MemoryPoint]) -> Option<Candidate> {
    let first = points.first()?;
    let peak = peak(points)?;
    let process_growth = peak.process - first.process;
    let outside_growth = peak.outside() - first.outside();
    if outside_growth < MIN_GROWTH_BYTES || process_growth < MIN_GROWTH_OF_PROCESS * first.process {
        return None;
    }
    let limit = confidence_limit(evidence, &process_series(evidence));
    let confidence = confidence(evidence, outside_growth, process_growth, limit)?;
    let heap_growth = peak.heap - first.heap;
    let heap = if heap_growth < 0.0 {
        format!("shrank by {}", to_bytes(-heap_growth))
    } else {
        format!("grew by {}", to_bytes(heap_growth))
    };
    let seconds = peak.at.duration_since(first.at).as_secs_f64();
    let grown = grown_part(evidence);
    let introduction = match grown {
        Some(_) => "the part that grew most between the heap profiles is",
        None => "the largest part is",
    };
    let part = grown.or_else(|| largest_part(evidence));
    let text = format!(
        "memory outside the live heap grew by {} in {seconds:.0} s, while the live heap {heap}{}",
        to_bytes(outside_growth),
        part_text(part.as_ref(), introduction),
    );
    Some(
        candidate(evidence, confidence, part.as_ref())
            .text(text)
            .number("bytes", outside_growth)
            .number("process_bytes", process_growth)
            .number("heap_bytes", heap_growth)
            .number("standard_error", heap_variance(evidence).unwrap_or(f64::NAN).sqrt())
            .share(outside_growth / process_growth),
    )
}

fn level(evidence: &IncidentEvidence<'_>, points: &[MemoryPoint]) -> Option<Candidate> {
    if !has_memory_reason(evidence) || !is_near_limit(evidence) {
        return None;
    }
    let peak = peak(points)?;
    if peak.outside() < MIN_LEVEL_BYTES {
        return None;
    }
    let limit = level_confidence_limit(evidence, &process_series(evidence));
    let confidence = confidence(evidence, peak.outside(), peak.process, limit)?;
    let share = peak.outside() / peak.process;
    let part = largest_part(evidence);
    let text = format!(
        "{} of the {} that the process uses are not live heap ({:.0} %){}",
        to_bytes(peak.outside()),
        to_bytes(peak.process),
        share * 100.0,
        part_text(part.as_ref(), "the largest part is"),
    );
    Some(
        candidate(evidence, confidence, part.as_ref())
            .text(text)
            .number("bytes", peak.outside())
            .number("process_bytes", peak.process)
            .number("heap_bytes", peak.heap)
            .number("standard_error", heap_variance(evidence).unwrap_or(f64::NAN).sqrt())
            .share(share),
    )
}

/// Returns the memory of the cgroup that is neither page cache nor resident in the process. Without
/// a cgroup, the working set is smaller than the resident set.
fn beyond_process(evidence: &IncidentEvidence<'_>) -> Option<Candidate> {
    if !has_memory_reason(evidence) || !is_near_limit(evidence) {
        return None;
    }
    let working_set = evidence.series("memory.working_set");
    let resident = evidence.series("memory.rss");
    let (at, whole) = *working_set.get(last_top(&working_set)?)?;
    let process = value_at(&resident, at)?;
    let bytes = whole - process;
    let share = bytes / whole;
    if bytes < MIN_LEVEL_BYTES || share < MIN_OUTSIDE_SHARE {
        return None;
    }
    let text = format!(
        "{} of the {} charged to the cgroup are not resident in this process ({:.0} %): other \
         processes, files in memory (tmpfs) or kernel memory",
        to_bytes(bytes),
        to_bytes(whole),
        share * 100.0,
    );
    let confidence = level_confidence_limit(evidence, &working_set);
    Some(
        Candidate::new(FindingKind::MemoryOutsideHeap, confidence, BEYOND_PROCESS)
            .text(text)
            .number("bytes", bytes)
            .number("process_bytes", process)
            .share(share)
            .evidence("incident.json", "less incident.json")
            .explains_reason(true),
    )
}

fn candidate(
    evidence: &IncidentEvidence<'_>,
    confidence: Confidence,
    part: Option<&MemoryPart>,
) -> Candidate {
    let subject = part.map_or(UNKNOWN_PART, |part| part.name);
    let mut candidate = Candidate::new(FindingKind::MemoryOutsideHeap, confidence, subject)
        .explains_reason(has_memory_reason(evidence));
    if let Some(part) = part {
        candidate = candidate.number("largest_part_bytes", part.bytes);
    }
    match evidence.tables.heap.last() {
        Some(last) => {
            candidate.evidence(&last.file, format!("go tool pprof -comments {}", last.file))
        }
        None => candidate.evidence("incident.json", "less incident.json"),
    }
}

fn part_text(part: Option<&MemoryPart>, introduction: &str) -> String {
    part.map_or_else(String::new, |part| {
        format!("; {introduction} {} ({})", part.name, to_bytes(part.bytes))
    })
}

/// Returns the part outside the heap that grew most between the first and the last heap profile.
fn grown_part(evidence: &IncidentEvidence<'_>) -> Option<MemoryPart> {
    let mut artifacts = heap_artifacts(evidence);
    let first = artifacts.next()?;
    let before = parts(evidence, first)?;
    let mut grown = parts(evidence, artifacts.next_back()?)?;
    for (part, before) in grown.iter_mut().zip(before) {
        part.bytes -= before.bytes;
    }
    largest(grown)
}

/// Returns the largest part outside the heap in the last heap profile.
fn largest_part(evidence: &IncidentEvidence<'_>) -> Option<MemoryPart> {
    largest(parts(evidence, heap_artifacts(evidence).next_back()?)?)
}

fn largest(parts: Vec<MemoryPart>) -> Option<MemoryPart> {
    let largest = parts.into_iter().max_by(|a, b| a.bytes.total_cmp(&b.bytes))?;
    (largest.bytes >= MIN_GROWTH_BYTES).then_some(largest)
}

fn heap_artifacts<'a>(
    evidence: &IncidentEvidence<'a>,
) -> impl DoubleEndedIterator<Item = &'a Artifact> + use<'a> {
    let artifacts = evidence.manifest.artifacts.iter();
    artifacts.filter(|artifact| artifact.kind == CaptureKind::Heap)
}

/// Returns the parts of the process's memory outside the heap at a heap profile.
fn parts(evidence: &IncidentEvidence<'_>, artifact: &Artifact) -> Option<Vec<MemoryPart>> {
    let mut parts = parse_note(artifact.note.as_deref()?)?;
    let resident = value_at(&evidence.series("memory.rss"), artifact.taken)?;
    // The note has all file pages; the memory of the process is without the reclaimable ones.
    let excluded = resident - value_at(&process_series(evidence), artifact.taken)?;
    for part in &mut parts {
        if part.name == FILE_PAGES {
            part.bytes = (part.bytes - excluded).max(0.0);
        }
    }
    Some(parts)
}

/// Parses the breakdown in the note of a heap profile, which `capture/memory_summary.rs` writes:
///
/// ```text
/// memory: the heap profile explains at most A of B resident (P %): ...; by mapping: malloc's heap
/// M, other anonymous mappings N, stacks S, files with their private pages F, shared memory H; ...
/// ```
///
/// Returns `None` if any of the sizes is missing, or if not all mappings were read.
fn parse_note(note: &str) -> Option<Vec<MemoryPart>> {
    let explained = between(note, "explains at most ", " of ")?;
    let (_, kinds) = note.split_once("; by mapping: ")?;
    let kinds = kinds.split(';').next()?;
    let kind = |name: &str| {
        let mut fields = kinds.split(", ");
        size(fields.find_map(|field| field.strip_prefix(name))?.trim())
    };
    let free = kind("malloc's heap")? + kind("other anonymous mappings")? - size(explained)?;
    Some(vec![
        MemoryPart { name: FREE_OR_FOREIGN, bytes: free },
        MemoryPart { name: FILE_PAGES, bytes: kind("files with their private pages")? },
        MemoryPart { name: "stacks", bytes: kind("stacks")? },
        MemoryPart { name: "shared memory", bytes: kind("shared memory")? },
    ])
}

fn between<'a>(text: &'a str, before: &str, after: &str) -> Option<&'a str> {
    let (_, rest) = text.split_once(before)?;
    Some(rest.split_once(after)?.0)
}

fn size(text: &str) -> Option<f64> {
    text.parse::<Bytes>().ok().map(|bytes| bytes.get() as f64)
}
