//! Overlays of a trace: the CPU samples and the thread stacks of its incident.
//!
//! A trace is written when it ends. The look-back CPU profile and the thread dump are taken and
//! written when the captures start. They are kept in memory until the trace of their incident is
//! written: typically some hundred kilobytes, at most [`MOST`] pieces, oldest evicted first.
//! Evidence that ends together with the trace is available anyway, since all captures stop before
//! the first is written.

use std::collections::VecDeque;

use crate::base::IncidentId;
use crate::capture::collectors::Evidence;
use crate::capture::worker::CaptureWorker;
use crate::capture::worker::write::PendingArtifact;
use crate::codec::perfetto::Stacks;
use crate::model::CaptureKind;

/// Maximum number of overlays of an incident: each rule that joins it starts a few more captures.
const MOST: usize = 6;

/// Evidence that was written and is kept for a trace.
pub(super) struct TraceOverlay {
    pub(super) incident: IncidentId,
    evidence: Evidence,
}

/// Returns the overlays of the trace of incident `id`: the kept evidence and the evidence to be
/// written after the trace.
pub(super) fn stacks<'a>(
    id: IncidentId,
    kept: &'a [TraceOverlay],
    ahead: &'a VecDeque<PendingArtifact>,
) -> Vec<Stacks<'a>> {
    let kept = kept.iter().filter(|kept| kept.incident == id).map(|kept| &kept.evidence);
    kept.chain(ahead.iter().map(|taken| &taken.evidence)).filter_map(shown).collect()
}

impl CaptureWorker {
    /// Keeps `evidence`, which was written, if a trace that is running or in `ahead` will show it.
    pub(super) fn keep(
        &mut self,
        id: IncidentId,
        evidence: Evidence,
        ahead: &VecDeque<PendingArtifact>,
    ) {
        let runs = self
            .running
            .iter()
            .any(|running| running.incident == id && running.kind == CaptureKind::Trace);
        if !runs && !ahead.iter().any(|taken| taken.kind == CaptureKind::Trace) {
            self.kept.retain(|kept| kept.incident != id);
        } else if shown(&evidence).is_some() {
            let of_it = |kept: &TraceOverlay| kept.incident == id;
            if self.kept.iter().filter(|kept| of_it(kept)).count() >= MOST
                && let Some(oldest) = self.kept.iter().position(of_it)
            {
                self.kept.remove(oldest);
            }
            self.kept.push(TraceOverlay { incident: id, evidence });
        }
    }
}

fn shown(evidence: &Evidence) -> Option<Stacks<'_>> {
    match evidence {
        Evidence::Profile(profile) if !profile.timed.is_empty() => Some(Stacks::Samples(profile)),
        Evidence::Threads(dump) => Some(Stacks::Threads(dump)),
        _ => None,
    }
}
