//! The claims on captures, and the choice of the incident that a claim joins.

use std::time::Duration;

use super::command::ToggleState;
use super::incident::{CaptureClaim, Claimant, Incident, IncidentPhase};
use super::{Incidents, MIN_MANIFEST_UPDATE_INTERVAL};
use crate::base::{IncidentId, Moment};
use crate::model::{CaptureSet, CollectorSelection, Reason};

/// The captures to claim, and the duration for which they are claimed.
#[derive(Clone, Copy, Debug)]
pub(crate) struct CaptureRequest {
    pub(crate) kinds: CaptureSet,
    pub(crate) duration: Duration,
}

impl Incidents {
    /// Returns `true` if a rule without an incident would join one.
    pub(crate) fn has_joinable(&self, now: Moment) -> bool {
        self.joinable(now, |_| false).is_some()
    }

    /// Returns the number of firings of `rule`, which has no incident, in the incident it would
    /// join, or `None` if there is none to join.
    pub(crate) fn fire_count_in_joinable(&self, now: Moment, rule: &str) -> Option<usize> {
        let index = self.joinable(now, |_| false)?;
        self.open.get(index).map(|open| open.fire_count(rule))
    }

    /// Returns the number of firings of `rule` in incident `id`.
    pub(crate) fn fire_count(&self, id: IncidentId, rule: &str) -> usize {
        self.open.iter().find(|open| open.id == id).map_or(0, |open| open.fire_count(rule))
    }

    /// Claims captures because `rule` fired. The rule keeps the incident open until it clears.
    pub(crate) fn claim_for_rule(
        &mut self,
        now: Moment,
        new_id: impl FnOnce() -> IncidentId,
        rule: &str,
        request: CaptureRequest,
        reason: Reason,
    ) -> IncidentId {
        let is_own = |incident: &Incident| incident.active_rules.iter().any(|name| name == rule);
        let claimant = Claimant::Rule(rule.to_owned());
        let incident = self.claim(now, new_id, claimant, request, reason, is_own);
        if !incident.active_rules.iter().any(|name| name == rule) {
            incident.active_rules.push(rule.to_owned());
        }
        incident.record_fire(rule);
        let runs = incident.running.intersection(request.kinds).iter();
        incident.recapture =
            incident.recapture.union(runs.filter(|kind| kind.is_snapshot()).collect());
        incident.id
    }

    /// Records that the condition of `rule` ended or that the rule was removed.
    pub(crate) fn clear(&mut self, rule: &str) {
        for incident in &mut self.open {
            incident.active_rules.retain(|name| name != rule);
        }
    }

    /// Turns the toggle on for at most the duration of `request` from now. No effect if it is on.
    pub(crate) fn toggle_on(
        &mut self,
        now: Moment,
        new_id: impl FnOnce() -> IncidentId,
        request: CaptureRequest,
        reason: Reason,
    ) -> ToggleState {
        if let Some(state) = self.toggle {
            return state;
        }
        let turned_on_at = reason.at;
        let max_duration = request.duration;
        let state = ToggleState {
            incident: self.claim(now, new_id, Claimant::Toggle, request, reason, |_| false).id,
            turned_on_at,
            turns_off_at: now + max_duration,
            max_duration,
        };
        self.toggle = Some(state);
        state
    }

    /// Turns the toggle off. Returns its previous state.
    pub(crate) fn toggle_off(&mut self) -> Option<ToggleState> {
        let state = self.toggle.take()?;
        for incident in &mut self.open {
            incident.claims.retain(|claim| claim.claimant != Claimant::Toggle);
        }
        Some(state)
    }

    /// Returns the state of the toggle, or `None` if it is off.
    pub(crate) fn toggle_state(&self) -> Option<ToggleState> {
        self.toggle
    }

    /// Claims captures on a call from code.
    pub(crate) fn claim_from_code(
        &mut self,
        now: Moment,
        new_id: impl FnOnce() -> IncidentId,
        request: CaptureRequest,
        reason: Reason,
    ) -> IncidentId {
        self.claim(now, new_id, Claimant::Call, request, reason, |_| false).id
    }

    /// Returns the index of the incident that a claim at `now` joins. In order of preference: one
    /// that is capturing, one of the claimant or that nothing holds open, one opened within the
    /// join window.
    fn joinable(&self, now: Moment, is_own: impl Fn(&Incident) -> bool) -> Option<usize> {
        let find = |wanted: &dyn Fn(&Incident) -> bool| {
            self.open.iter().position(|i| i.phase != IncidentPhase::Closing && wanted(i))
        };
        find(&|i| i.is_capturing())
            .or_else(|| find(&|i| is_own(i) || i.is_over()))
            .or_else(|| find(&|i| now.since(i.opened_at.0) < self.join_window))
    }

    /// Adds a claim to the incident it joins, or to a new one.
    fn claim(
        &mut self,
        now: Moment,
        new_id: impl FnOnce() -> IncidentId,
        claimant: Claimant,
        request: CaptureRequest,
        reason: Reason,
        is_own: impl Fn(&Incident) -> bool,
    ) -> &mut Incident {
        let CaptureRequest { kinds, duration } = request;
        let index = self.joinable(now, is_own).unwrap_or_else(|| {
            self.open.push(Incident {
                id: new_id(),
                name: claimant.incident_name().to_owned(),
                opened_at: (now, reason.at),
                phase: IncidentPhase::Pending,
                claims: Vec::new(),
                active_rules: Vec::new(),
                finishing_rules: Vec::new(),
                running: CaptureSet::EMPTY,
                failed_to_start: CaptureSet::EMPTY,
                recapture: CaptureSet::EMPTY,
                fire_counts: Vec::new(),
                unwritten_reasons: Vec::new(),
                reason_count: 0,
                dropped_reasons: 0,
                pending_collectors: CollectorSelection::EMPTY,
                collector_deadline: None,
                has_collector_output: false,
                update_manifest_at: now + MIN_MANIFEST_UPDATE_INTERVAL,
                close_at: now,
            });
            self.open.len() - 1
        });
        let incident = &mut self.open[index];
        incident.add_reason(reason);
        let until = (claimant == Claimant::Toggle).then(|| now + duration);
        match incident
            .claims
            .iter_mut()
            .find(|c| c.claimant == claimant && claimant != Claimant::Call)
        {
            Some(claim) => {
                claim.kinds = claim.kinds.union(kinds);
                claim.duration = duration;
                if claim.claimant == Claimant::Toggle {
                    claim.ends_at = until;
                }
            }
            None => {
                incident.claims.push(CaptureClaim { claimant, kinds, duration, ends_at: until })
            }
        }
        incident.begin_claims(now);
        incident
    }
}
