//! Overlays of a trace: the CPU samples and the thread stacks of its incident.
//!
//! A trace is written when it ends. The look-back CPU profile and the thread dump are taken and
//! written when the captures start. They are kept in memory until the trace of their incident is
//! written: typically some hundred kilobytes, at most [`MAX_OVERLAYS`] pieces, oldest evicted
//! first. Evidence that ends together with the trace is available anyway, since all captures stop
//! before the first is written.

use std::collections::VecDeque;

use crate::base::IncidentId;
use crate::capture::collectors::Evidence;
use crate::capture::worker::CaptureWorker;
use crate::capture::worker::pending_artifact::PendingArtifact;
use crate::codec::perfetto::Stacks;
use crate::model::CaptureKind;

/// Maximum number of overlays of an incident: each rule that joins it starts a few more captures.
const MAX_OVERLAYS: usize = 6;

/// Evidence that was written and is kept for a trace.
pub(super) struct TraceOverlay {
    pub(super) incident: IncidentId,
    evidence: Evidence,
}

/// Returns the overlays of the trace of incident `id`: the kept evidence and the evidence to be
/// written after the trace.
pub(super) fn overlay_stacks<'a>(
    id: IncidentId,
    overlays: &'a [TraceOverlay],
    pending: &'a VecDeque<PendingArtifact>,
) -> Vec<Stacks<'a>> {
    let evidence =
        overlays.iter().filter(|overlay| overlay.incident == id).map(|overlay| &overlay.evidence);
    evidence
        .chain(pending.iter().map(|artifact| &artifact.evidence))
        .filter_map(as_stacks)
        .collect()
}

impl CaptureWorker {
    /// Keeps `evidence`, which was written, if a trace that is running or in `pending` will show
    /// it.
    pub(super) fn keep_overlay(
        &mut self,
        id: IncidentId,
        evidence: Evidence,
        pending: &VecDeque<PendingArtifact>,
    ) {
        let is_tracing = self
            .running
            .iter()
            .any(|running| running.incident == id && running.kind == CaptureKind::Trace);
        if !is_tracing && !pending.iter().any(|artifact| artifact.kind == CaptureKind::Trace) {
            self.overlays.retain(|overlay| overlay.incident != id);
        } else if as_stacks(&evidence).is_some() {
            let is_same_incident = |overlay: &TraceOverlay| overlay.incident == id;
            if self.overlays.iter().filter(|overlay| is_same_incident(overlay)).count()
                >= MAX_OVERLAYS
                && let Some(oldest) = self.overlays.iter().position(is_same_incident)
            {
                self.overlays.remove(oldest);
            }
            self.overlays.push(TraceOverlay { incident: id, evidence });
        }
    }
}

fn as_stacks(evidence: &Evidence) -> Option<Stacks<'_>> {
    match evidence {
        Evidence::Profile(profile) if !profile.timed_samples.is_empty() => {
            Some(Stacks::Samples(profile))
        }
        Evidence::Threads(dump) => Some(Stacks::Threads(dump)),
        _ => None,
    }
}
