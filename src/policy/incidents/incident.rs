//! One incident: its claims and its running captures.

use std::mem;
use std::time::Duration;

use jiff::Timestamp;

use super::command::ManifestUpdate;
use crate::base::{IncidentId, Moment};
use crate::model::{CaptureSet, CollectorSelection, Reason};

/// Maximum number of reasons kept for an incident; further ones are counted. A toggle flipped in a
/// loop must not grow a manifest.
pub(crate) const MAX_REASONS: usize = 64;

/// The origin of a claim.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Claimant {
    Rule(String),
    Toggle,
    /// A call of `capture`.
    Call,
}

impl Claimant {
    /// Returns the name of an incident opened by this claimant.
    pub(crate) fn incident_name(&self) -> &str {
        match self {
            Self::Rule(name) => name,
            Self::Toggle => "toggle",
            Self::Call => "call",
        }
    }
}

#[derive(Debug)]
pub(crate) struct CaptureClaim {
    pub(crate) claimant: Claimant,
    pub(crate) kinds: CaptureSet,
    pub(crate) duration: Duration,
    /// End of the claim. `None` until all its captures have been started, so that a slow disk does
    /// not shorten a capture.
    pub(crate) ends_at: Option<Moment>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IncidentPhase {
    /// Has an id but no directory.
    Pending,
    Open,
    /// Its last command was sent; no more claims are accepted.
    Closing,
}

#[derive(Debug)]
pub(crate) struct Incident {
    pub(crate) id: IncidentId,
    pub(crate) name: String,
    pub(crate) opened_at: (Moment, Timestamp),
    pub(crate) phase: IncidentPhase,
    pub(crate) claims: Vec<CaptureClaim>,
    /// Rules that fired and have not cleared.
    pub(crate) active_rules: Vec<String>,
    /// Rules whose claim expired but whose captures have not ended.
    pub(crate) finishing_rules: Vec<String>,
    pub(crate) running: CaptureSet,
    /// Captures that failed to start. They are not retried while they are still claimed.
    pub(crate) failed_to_start: CaptureSet,
    /// Running captures of which another snapshot is to be taken.
    pub(crate) recapture: CaptureSet,
    /// Number of firings by rule.
    pub(crate) fire_counts: Vec<(String, usize)>,
    pub(crate) unwritten_reasons: Vec<Reason>,
    /// Total number of reasons; at most [`MAX_REASONS`] are kept.
    pub(crate) reason_count: usize,
    /// Number of reasons not kept since the last command.
    pub(crate) dropped_reasons: u64,
    /// Custom collectors to start.
    pub(crate) pending_collectors: CollectorSelection,
    /// Earliest deadline of the running custom collectors.
    pub(crate) collector_deadline: Option<Moment>,
    /// True if the output of a custom collector is ready to be stored.
    pub(crate) has_collector_output: bool,
    pub(crate) update_manifest_at: Moment,
    pub(crate) close_at: Moment,
}

impl Incident {
    pub(crate) fn claimed_kinds(&self) -> CaptureSet {
        self.claims.iter().fold(CaptureSet::EMPTY, |kinds, claim| kinds.union(claim.kinds))
    }

    /// Starts the duration of each claim that has no more captures to start.
    pub(crate) fn begin_claims(&mut self, now: Moment) {
        if self.phase == IncidentPhase::Pending {
            return;
        }
        let started_or_failed = self.running.union(self.failed_to_start);
        for claim in &mut self.claims {
            if claim.ends_at.is_none() && claim.kinds.difference(started_or_failed).is_empty() {
                claim.ends_at = Some(now + claim.duration);
            }
        }
    }

    pub(crate) fn fire_count(&self, rule: &str) -> usize {
        self.fire_counts.iter().find(|(name, _)| name == rule).map_or(0, |(_, fires)| *fires)
    }

    pub(crate) fn record_fire(&mut self, rule: &str) {
        match self.fire_counts.iter_mut().find(|(name, _)| name == rule) {
            Some((_, fires)) => *fires += 1,
            None => self.fire_counts.push((rule.to_owned(), 1)),
        }
    }

    pub(crate) fn is_capturing(&self) -> bool {
        !self.claims.is_empty() || !self.running.is_empty()
    }

    pub(crate) fn is_over(&self) -> bool {
        let has_collectors =
            self.collector_deadline.is_some() || !self.pending_collectors.is_empty();
        !self.is_capturing() && !has_collectors && self.active_rules.is_empty()
    }

    pub(crate) fn take_manifest_update(&mut self) -> ManifestUpdate {
        ManifestUpdate {
            reasons: mem::take(&mut self.unwritten_reasons),
            dropped_reasons: mem::take(&mut self.dropped_reasons),
        }
    }

    pub(crate) fn add_reason(&mut self, reason: Reason) {
        if self.reason_count < MAX_REASONS {
            self.unwritten_reasons.push(reason);
        } else {
            self.dropped_reasons += 1;
        }
        self.reason_count += 1;
    }
}
