//! Writing evidence to artifacts.

use std::collections::VecDeque;
use std::io::Write;

use crate::base::failure::{chain, fence};
use crate::base::{Bytes, IncidentId};
use crate::capture::collectors::{CaptureFailure, Evidence};
use crate::capture::messages::TaskStats;
use crate::capture::worker::CaptureWorker;
use crate::capture::worker::trace_overlays;
use crate::codec::perfetto::Stacks;
use crate::model::{Artifact, CaptureKind, CaptureRecord, Form, Outcome};
use crate::store::IncidentDir;

/// Maximum attempts to write an artifact; each retry follows freed space.
const TRIES: usize = 8;

/// Evidence to be written to an artifact.
pub(super) struct PendingArtifact {
    pub(super) kind: CaptureKind,
    pub(super) record: usize,
    /// Part of the capture it belongs to.
    pub(super) part: Option<&'static str>,
    pub(super) evidence: Evidence,
}

impl CaptureWorker {
    /// Writes evidence to artifacts. A failed write marks its capture as failed; the others are
    /// still written.
    pub(super) fn write(
        &mut self,
        id: IncidentId,
        mut taken: Vec<PendingArtifact>,
        tally: &mut TaskStats,
    ) {
        self.label(id, &mut taken, tally);
        // A trace includes the stacks of evidence that is written after it, so that evidence must
        // be symbolized first.
        let has_trace = taken.iter().any(|taken| taken.kind == CaptureKind::Trace);
        if has_trace {
            taken.iter_mut().for_each(|taken| name(&mut taken.evidence, tally));
        }
        let mut ahead = VecDeque::from(taken);
        while let Some(PendingArtifact { kind, record, part, mut evidence }) = ahead.pop_front() {
            if !has_trace {
                name(&mut evidence, tally);
            }
            let mut artifacts = Vec::new();
            let mut failed = None;
            for form in Form::of(kind) {
                let stacks = match kind {
                    CaptureKind::Trace => trace_overlays::stacks(id, &self.kept, &ahead),
                    _ => Vec::new(),
                };
                match fence(|| write_as(&mut self.dirs, id, form, (&evidence, &stacks))) {
                    Ok(mut artifact) => {
                        artifact.part = part.map(str::to_owned);
                        artifact.note = evidence.note();
                        tally.artifacts += 1;
                        tally.artifact_bytes += artifact.bytes.get();
                        if let Some((_, dir)) = self.dirs.iter().find(|(open, _)| *open == id) {
                            tally.told(self.announcer.written(id, dir.path(), &artifact));
                        }
                        artifacts.push(artifact);
                    }
                    Err(error) => {
                        tally.fail("artifact not written", &*error);
                        failed.get_or_insert(chain(&*error));
                    }
                }
            }
            let bytes = artifacts.iter().map(|artifact: &Artifact| artifact.bytes.get()).sum();
            self.sizes.learn(kind, Bytes(bytes));
            let losses = evidence.losses();
            self.update(id, tally, |manifest| {
                let written = !artifacts.is_empty();
                manifest.artifacts.extend(artifacts);
                let Some(record) = manifest.captures.get_mut(record) else { return };
                if written {
                    record.losses.merge(&losses);
                }
                if let Some(error) = failed {
                    fail(record, error);
                }
            });
            self.keep(id, evidence, &ahead);
        }
    }
}

fn name(evidence: &mut Evidence, tally: &mut TaskStats) {
    let named = fence(|| {
        evidence.symbolize();
        Ok(())
    });
    if let Err(error) = named {
        tally.fail("evidence left without names", &*error);
    }
}

/// Writes evidence to an artifact. If a size limit is exceeded, less important artifacts of the
/// same incident are deleted and the write is retried.
fn write_as(
    dirs: &mut [(IncidentId, IncidentDir)],
    id: IncidentId,
    form: Form,
    (evidence, stacks): (&Evidence, &[Stacks<'_>]),
) -> Result<Artifact, CaptureFailure> {
    let Some((_, dir)) = dirs.iter_mut().find(|(open, _)| *open == id) else {
        return Err("its incident is not open".into());
    };
    let mut tries = 0;
    loop {
        let mut draft = dir.draft(form, evidence.taken())?;
        let written =
            evidence.write_with(form, stacks, &mut draft).and_then(|()| Ok(draft.flush()?));
        let (Err(error), refused) = (written, draft.refused()) else {
            return Ok(draft.commit()?);
        };
        drop(draft);
        tries += 1;
        match refused {
            Some(wanted) if tries < TRIES && dir.make_room(wanted)? => {}
            _ => return Err(error),
        }
    }
}

/// Marks the capture as failed and appends the error to any earlier one.
pub(super) fn fail(record: &mut CaptureRecord, error: String) {
    record.outcome = Outcome::Failed;
    record.error = Some(match record.error.take() {
        Some(earlier) => format!("{earlier}; {error}"),
        None => error,
    });
}
