//! One incident: its claims and its running captures.

use std::mem;
use std::time::Duration;

use jiff::Timestamp;

use super::job::ManifestUpdate;
use crate::base::{IncidentId, Moment};
use crate::model::{CaptureSet, Collect, Reason};

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
    pub(crate) holder: Claimant,
    pub(crate) kinds: CaptureSet,
    pub(crate) duration: Duration,
    /// End of the claim. `None` until all its captures have been started, so that a slow disk does
    /// not shorten a capture.
    pub(crate) until: Option<Moment>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum IncidentPhase {
    /// Has an id but no directory.
    Announced,
    Open,
    /// Its last command was sent; no more claims are accepted.
    Closing,
}

#[derive(Debug)]
pub(crate) struct Incident {
    pub(crate) id: IncidentId,
    pub(crate) name: String,
    pub(crate) opened: (Moment, Timestamp),
    pub(crate) phase: IncidentPhase,
    pub(crate) claims: Vec<CaptureClaim>,
    /// Rules that fired and have not cleared.
    pub(crate) held_by: Vec<String>,
    /// Rules whose claim expired but whose captures have not ended.
    pub(crate) finishing: Vec<String>,
    pub(crate) running: CaptureSet,
    /// Captures that failed to start. They are not retried while they are still claimed.
    pub(crate) refused: CaptureSet,
    /// Running captures of which another snapshot is to be taken.
    pub(crate) again: CaptureSet,
    /// Number of firings by rule.
    pub(crate) fires: Vec<(String, usize)>,
    pub(crate) unwritten: Vec<Reason>,
    /// Total number of reasons; at most [`MAX_REASONS`] are kept.
    pub(crate) reasons: usize,
    /// Number of reasons not kept since the last command.
    pub(crate) dropped: u64,
    /// Custom collectors to start.
    pub(crate) collect: Collect,
    /// Earliest deadline of the running custom collectors.
    pub(crate) collecting: Option<Moment>,
    /// True if the output of a custom collector is ready to be stored.
    pub(crate) collected: bool,
    pub(crate) note_at: Moment,
    pub(crate) close_at: Moment,
}

impl Incident {
    pub(crate) fn wanted(&self) -> CaptureSet {
        self.claims.iter().fold(CaptureSet::EMPTY, |kinds, claim| kinds.union(claim.kinds))
    }

    /// Starts the duration of each claim that has no more captures to start.
    pub(crate) fn begin_claims(&mut self, now: Moment) {
        if self.phase == IncidentPhase::Announced {
            return;
        }
        let settled = self.running.union(self.refused);
        for claim in &mut self.claims {
            if claim.until.is_none() && claim.kinds.without(settled).is_empty() {
                claim.until = Some(now + claim.duration);
            }
        }
    }

    pub(crate) fn fires_of(&self, rule: &str) -> usize {
        self.fires.iter().find(|(name, _)| name == rule).map_or(0, |(_, fires)| *fires)
    }

    pub(crate) fn count_fire(&mut self, rule: &str) {
        match self.fires.iter_mut().find(|(name, _)| name == rule) {
            Some((_, fires)) => *fires += 1,
            None => self.fires.push((rule.to_owned(), 1)),
        }
    }

    pub(crate) fn is_capturing(&self) -> bool {
        !self.claims.is_empty() || !self.running.is_empty()
    }

    pub(crate) fn is_over(&self) -> bool {
        let collects = self.collecting.is_some() || !self.collect.is_none();
        !self.is_capturing() && !collects && self.held_by.is_empty()
    }

    pub(crate) fn take_noted(&mut self) -> ManifestUpdate {
        ManifestUpdate {
            reasons: mem::take(&mut self.unwritten),
            dropped: mem::take(&mut self.dropped),
        }
    }

    pub(crate) fn add_reason(&mut self, reason: Reason) {
        if self.reasons < MAX_REASONS {
            self.unwritten.push(reason);
        } else {
            self.dropped += 1;
        }
        self.reasons += 1;
    }
}
