//! One incident: who wants what of it, and what runs.

use std::mem;
use std::time::Duration;

use jiff::Timestamp;

use super::job::Noted;
use crate::base::{IncidentId, Moment};
use crate::model::{CaptureSet, Collect, Reason};

/// Reasons kept of one incident; what comes after is counted. A toggle flipped in a loop must not grow
/// a manifest.
pub(super) const MAX_REASONS: usize = 64;

/// Who wants something captured.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) enum Holder {
    /// The rule of this name.
    Rule(String),
    /// The toggle.
    Toggle,
    /// A call of `capture`.
    Call,
}

impl Holder {
    /// What an incident it opens is called.
    pub(super) fn incident_name(&self) -> &str {
        match self {
            Self::Rule(name) => name,
            Self::Toggle => "toggle",
            Self::Call => "call",
        }
    }
}

#[derive(Debug)]
pub(super) struct Claim {
    pub(super) holder: Holder,
    pub(super) kinds: CaptureSet,
    pub(super) duration: Duration,
    /// When it is over; none while captures it wants have not been started, so that a slow disk does not
    /// eat up a capture's time.
    pub(super) until: Option<Moment>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Phase {
    /// It has an id, and no directory yet.
    Announced,
    /// It has a directory.
    Open,
    /// Its last job is out; it takes no more claims.
    Closing,
}

#[derive(Debug)]
pub(super) struct Incident {
    pub(super) id: IncidentId,
    pub(super) name: String,
    pub(super) opened: (Moment, Timestamp),
    pub(super) phase: Phase,
    pub(super) claims: Vec<Claim>,
    /// Rules that fired and have not cleared.
    pub(super) held_by: Vec<String>,
    /// Rules whose claim is over but whose captures have not ended.
    pub(super) finishing: Vec<String>,
    pub(super) running: CaptureSet,
    /// Wanted, tried, and not running: not tried again until nobody wants it.
    pub(super) refused: CaptureSet,
    /// What runs and is to be taken once more.
    pub(super) again: CaptureSet,
    /// How often each rule fired in it.
    pub(super) fires: Vec<(String, usize)>,
    pub(super) unwritten: Vec<Reason>,
    /// All reasons so far; at most [`MAX_REASONS`] were kept.
    pub(super) reasons: usize,
    /// How many since the last job were not.
    pub(super) dropped: u64,
    /// Files of the service's own that are to be collected.
    pub(super) collect: Collect,
    /// When the time of the first that is being collected is up.
    pub(super) collecting: Option<Moment>,
    /// Whether some are there to be taken in.
    pub(super) collected: bool,
    pub(super) note_at: Moment,
    pub(super) close_at: Moment,
}

impl Incident {
    pub(super) fn wanted(&self) -> CaptureSet {
        self.claims.iter().fold(CaptureSet::EMPTY, |kinds, claim| kinds.union(claim.kinds))
    }

    /// Lets the time of those claims run of which nothing is left to be started.
    pub(super) fn begin_claims(&mut self, now: Moment) {
        if self.phase == Phase::Announced {
            return;
        }
        let settled = self.running.union(self.refused);
        for claim in &mut self.claims {
            if claim.until.is_none() && claim.kinds.without(settled).is_empty() {
                claim.until = Some(now + claim.duration);
            }
        }
    }

    pub(super) fn fires_of(&self, rule: &str) -> usize {
        self.fires.iter().find(|(name, _)| name == rule).map_or(0, |(_, fires)| *fires)
    }

    pub(super) fn count_fire(&mut self, rule: &str) {
        match self.fires.iter_mut().find(|(name, _)| name == rule) {
            Some((_, fires)) => *fires += 1,
            None => self.fires.push((rule.to_owned(), 1)),
        }
    }

    pub(super) fn is_capturing(&self) -> bool {
        !self.claims.is_empty() || !self.running.is_empty()
    }

    pub(super) fn is_over(&self) -> bool {
        let collects = self.collecting.is_some() || !self.collect.is_none();
        !self.is_capturing() && !collects && self.held_by.is_empty()
    }

    pub(super) fn take_noted(&mut self) -> Noted {
        Noted { reasons: mem::take(&mut self.unwritten), dropped: mem::take(&mut self.dropped) }
    }

    pub(super) fn add_reason(&mut self, reason: Reason) {
        if self.reasons < MAX_REASONS {
            self.unwritten.push(reason);
        } else {
            self.dropped += 1;
        }
        self.reasons += 1;
    }
}
