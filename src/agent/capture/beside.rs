//! What a trace shows besides its own: the CPU samples of the incident and where its threads stood.
//!
//! A trace is written when it ends; the CPU profile of the time before and the dump of the threads are
//! taken, and are in their files, when the captures start. So these are kept until the trace of their
//! incident is written: some hundred kilobytes as a rule, and [`MOST`] of them, the oldest going first. What
//! ends together with the trace is at hand, since all stop before the first is written.

use std::collections::VecDeque;

use super::Worker;
use super::write::Taken;
use crate::agent::collect::Evidence;
use crate::base::IncidentId;
use crate::codec::perfetto::Stacks;
use crate::model::CaptureKind;

/// How much is kept for the trace of an incident: a rule that joins it starts a few more.
const MOST: usize = 6;

/// Evidence that is written and kept.
pub(super) struct Kept {
    pub(super) incident: IncidentId,
    evidence: Evidence,
}

/// What the trace of an incident is to show: what is kept for it and what is to be written after it.
pub(super) fn stacks<'a>(
    id: IncidentId,
    kept: &'a [Kept],
    ahead: &'a VecDeque<Taken>,
) -> Vec<Stacks<'a>> {
    let kept = kept.iter().filter(|kept| kept.incident == id).map(|kept| &kept.evidence);
    kept.chain(ahead.iter().map(|taken| &taken.evidence)).filter_map(shown).collect()
}

impl Worker {
    /// Keeps `evidence`, which is written, if a trace will show it: one that runs or is `ahead`.
    pub(super) fn keep(&mut self, id: IncidentId, evidence: Evidence, ahead: &VecDeque<Taken>) {
        let runs = self
            .running
            .iter()
            .any(|running| running.incident == id && running.kind == CaptureKind::Trace);
        if !runs && !ahead.iter().any(|taken| taken.kind == CaptureKind::Trace) {
            self.kept.retain(|kept| kept.incident != id);
        } else if shown(&evidence).is_some() {
            let of_it = |kept: &Kept| kept.incident == id;
            if self.kept.iter().filter(|kept| of_it(kept)).count() >= MOST
                && let Some(oldest) = self.kept.iter().position(of_it)
            {
                self.kept.remove(oldest);
            }
            self.kept.push(Kept { incident: id, evidence });
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
