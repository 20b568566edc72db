//! Writing evidence to artifacts.

use std::collections::VecDeque;
use std::io::Write;

use crate::base::failure::{catch_panic, error_chain};
use crate::base::{Bytes, IncidentId};
use crate::capture::collectors::{CaptureFailure, Evidence};
use crate::capture::messages::TaskStats;
use crate::capture::worker::CaptureWorker;
use crate::capture::worker::pending_artifact::PendingArtifact;
use crate::capture::worker::trace_overlays;
use crate::codec::perfetto::Stacks;
use crate::model::{Artifact, ArtifactFormat, CaptureKind, CaptureRecord, Outcome};
use crate::store::IncidentDir;

/// Maximum attempts to write an artifact; each retry follows freed space.
const MAX_WRITE_ATTEMPTS: usize = 8;

impl CaptureWorker {
    /// Writes evidence to artifacts. A failed write marks its capture as failed; the others are
    /// still written.
    pub(super) fn write(
        &mut self,
        id: IncidentId,
        mut pending: Vec<PendingArtifact>,
        stats: &mut TaskStats,
    ) {
        self.label_profiles(id, &mut pending, stats);
        // A trace includes the stacks of evidence that is written after it, so that evidence must
        // be symbolized first.
        let has_trace = pending.iter().any(|artifact| artifact.kind == CaptureKind::Trace);
        if has_trace {
            pending
                .iter_mut()
                .for_each(|artifact| symbolize_evidence(&mut artifact.evidence, stats));
        }
        let mut queue = VecDeque::from(pending);
        while let Some(PendingArtifact { kind, record_index, phase, mut evidence }) =
            queue.pop_front()
        {
            if !has_trace {
                symbolize_evidence(&mut evidence, stats);
            }
            let mut artifacts = Vec::new();
            let mut failed = None;
            for form in ArtifactFormat::for_kind(kind) {
                let stacks = match kind {
                    CaptureKind::Trace => {
                        trace_overlays::overlay_stacks(id, &self.overlays, &queue)
                    }
                    _ => Vec::new(),
                };
                match catch_panic(|| {
                    write_artifact(&mut self.incident_dirs, id, form, &evidence, &stacks)
                }) {
                    Ok(mut artifact) => {
                        artifact.phase = phase.map(str::to_owned);
                        artifact.note = evidence.note();
                        self.report_artifact(id, &artifact, stats);
                        artifacts.push(artifact);
                    }
                    Err(error) => {
                        stats.record_failure("artifact not written", &*error);
                        failed.get_or_insert(error_chain(&*error));
                    }
                }
            }
            let bytes = artifacts.iter().map(|artifact: &Artifact| artifact.bytes.get()).sum();
            self.artifact_sizes.record_size(kind, Bytes(bytes));
            if let Some(artifact) = artifacts.first().cloned() {
                self.tabulate(id, &artifact, &evidence, stats);
            }
            let losses = evidence.losses();
            self.update_manifest(id, stats, |manifest| {
                let written = !artifacts.is_empty();
                manifest.artifacts.extend(artifacts);
                let Some(record) = manifest.captures.get_mut(record_index) else { return };
                if written {
                    record.losses.merge(&losses);
                }
                if let Some(error) = failed {
                    mark_capture_failed(record, error);
                }
            });
            self.keep_overlay(id, evidence, &queue);
        }
    }

    /// Counts an artifact that was written, and notifies the service of it.
    pub(super) fn report_artifact(
        &self,
        id: IncidentId,
        artifact: &Artifact,
        stats: &mut TaskStats,
    ) {
        stats.artifacts += 1;
        stats.artifact_bytes += artifact.bytes.get();
        if let Some((_, dir)) = self.incident_dirs.iter().find(|(open, _)| *open == id) {
            let sent = self.callbacks.notify_written(id, dir.path(), artifact);
            stats.record_notification(sent);
        }
    }
}

fn symbolize_evidence(evidence: &mut Evidence, stats: &mut TaskStats) {
    let named = catch_panic(|| {
        evidence.symbolize();
        Ok(())
    });
    if let Err(error) = named {
        stats.record_failure("evidence not symbolized", &*error);
    }
}

/// Writes evidence to an artifact. If a size limit is exceeded, less important artifacts of the
/// same incident are deleted and the write is retried.
fn write_artifact(
    dirs: &mut [(IncidentId, IncidentDir)],
    id: IncidentId,
    form: ArtifactFormat,
    evidence: &Evidence,
    stacks: &[Stacks<'_>],
) -> Result<Artifact, CaptureFailure> {
    let Some((_, dir)) = dirs.iter_mut().find(|(open, _)| *open == id) else {
        return Err("the incident is not open".into());
    };
    let mut attempts = 0;
    loop {
        let mut draft = dir.draft(form, evidence.taken_at())?;
        let written =
            evidence.write_with(form, stacks, &mut draft).and_then(|()| Ok(draft.flush()?));
        let (Err(error), refused_write) = (written, draft.rejected_size()) else {
            return Ok(draft.commit()?);
        };
        drop(draft);
        attempts += 1;
        match refused_write {
            Some(needed) if attempts < MAX_WRITE_ATTEMPTS && dir.free_space(needed)? => {}
            _ => return Err(error),
        }
    }
}

/// Marks the capture as failed and appends the error to any earlier one.
pub(super) fn mark_capture_failed(record: &mut CaptureRecord, error: String) {
    record.outcome = Outcome::Failed;
    record.error = Some(match record.error.take() {
        Some(earlier) => format!("{earlier}; {error}"),
        None => error,
    });
}
