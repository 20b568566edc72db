//! The open incidents, the captures each should have, and the next command.
//!
//! A state machine without a thread, a clock or a file. The loop reports events
//! ([`Incidents::claim_for_rule`], [`Incidents::toggle_on`], [`Incidents::expire`], …) and requests
//! the next [`IncidentCommand`]. One command is issued at a time, and its result is passed to
//! [`Incidents::apply_result`].
//!
//! ```text
//!  rule, toggle, call ──► claim (kinds, until) ──► wanted ──┐
//!                                                           ├─► next command
//!  capture thread ──────► done ──────────────────► running ─┘
//! ```
//!
//! The machine is level-triggered, not edge-triggered: a command is the difference between the
//! wanted and the running captures, computed when the capture thread is free. A thousand toggles
//! during one command therefore cost one command, and no queue grows. A new claim joins an incident
//! that is not closed instead of opening another beside it.
//!
//! Invariants, checked by the property tests in `tests`:
//! - Captures run in at most one incident at a time, because each engine exists once.
//! - An incident is closed once, and only while nothing is running.
//! - Every opened incident is closed after [`Incidents::shut_down`].

mod claims;
mod command;
mod incident;

use std::mem;
use std::time::Duration;

use crate::base::{IncidentId, Moment};
use crate::model::CollectorSelection;
pub(crate) use claims::CaptureRequest;
pub(crate) use command::{
    CommandResult, IncidentCommand, IncidentUpdate, IncidentView, ManifestUpdate, ToggleState,
};
use incident::{Claimant, Incident, IncidentPhase};

/// Minimum interval between two manifest updates of an open incident. The interval is the larger of
/// this and a tenth of the incident's age. The vitals before a kill are thus on disk, and an
/// incident open for a week costs little.
const MIN_MANIFEST_UPDATE_INTERVAL: Duration = Duration::from_secs(10);

/// Delay before another attempt to close an incident after one failed (disk full).
const CLOSE_RETRY_DELAY: Duration = Duration::from_secs(10);

/// The open incidents.
#[derive(Debug, Default)]
pub(crate) struct Incidents {
    open: Vec<Incident>,
    toggle: Option<ToggleState>,
    join_window: Duration,
    /// True if custom collectors are registered.
    has_collectors: bool,
    /// True if everything must end.
    is_shut_down: bool,
}

impl Incidents {
    /// Sets the time after an incident's opening in which any claim joins it.
    pub(crate) fn set_join_window(&mut self, join_window: Duration) {
        self.join_window = join_window;
    }

    /// Sets whether custom collectors are registered; if not, [`CollectorSelection::All`] is a
    /// no-op.
    pub(crate) fn set_has_collectors(&mut self, any: bool) {
        self.has_collectors = any;
    }

    /// Requests custom collectors for incident `id`.
    pub(crate) fn request_collectors(&mut self, id: IncidentId, wanted: &CollectorSelection) {
        if (self.has_collectors || *wanted != CollectorSelection::All)
            && let Some(incident) = self.open.iter_mut().find(|open| open.id == id)
        {
            incident.pending_collectors.add(wanted);
        }
    }

    /// Records that a custom collector of incident `id` returned.
    pub(crate) fn collector_returned(&mut self, id: IncidentId) {
        for incident in self.open.iter_mut().filter(|open| open.id == id) {
            // The collector may return before the result of its start command arrives.
            incident.has_collector_output = true;
        }
    }

    /// Ends the claims that have expired at `now`.
    pub(crate) fn expire(&mut self, now: Moment) -> Vec<IncidentUpdate> {
        if self.toggle.is_some_and(|state| state.turns_off_at <= now) {
            self.toggle_off();
        }
        for incident in &mut self.open {
            incident.has_collector_output |=
                incident.collector_deadline.is_some_and(|until| until <= now);
            let finishing_rules = &mut incident.finishing_rules;
            incident.claims.retain(|claim| {
                let is_expired = claim.ends_at.is_some_and(|until| until <= now);
                if let (true, Claimant::Rule(name)) = (is_expired, &claim.claimant) {
                    finishing_rules.push(name.clone());
                }
                !is_expired
            });
        }
        self.take_ended_captures()
    }

    /// Returns the time of the next expiry.
    pub(crate) fn next_expiry(&self) -> Option<Moment> {
        let claims =
            self.open.iter().flat_map(|open| open.claims.iter().filter_map(|claim| claim.ends_at));
        let waiting = self.open.iter().filter(|open| !open.has_collector_output);
        claims.chain(waiting.filter_map(|open| open.collector_deadline)).min()
    }

    /// Ends everything. From here on only commands that stop and close are issued.
    pub(crate) fn shut_down(&mut self) {
        self.toggle = None;
        self.is_shut_down = true;
        for incident in &mut self.open {
            incident.pending_collectors = CollectorSelection::EMPTY;
            incident.claims.clear();
            incident.active_rules.clear();
        }
    }

    /// Returns the next command, or `None` if the running captures are the wanted ones. Must not be
    /// called again before [`Incidents::apply_result`].
    pub(crate) fn next_command(&mut self, now: Moment) -> Option<IncidentCommand> {
        let capturing_id = self.open.iter().find(|i| !i.running.is_empty()).map(|i| i.id);
        for incident in &mut self.open {
            let id = incident.id;
            let claimed = incident.claimed_kinds();
            if incident.phase == IncidentPhase::Pending {
                let update = incident.take_manifest_update();
                return Some(IncidentCommand::Open { id, name: incident.name.clone(), update });
            }
            if !incident.pending_collectors.is_empty() {
                let wanted =
                    mem::replace(&mut incident.pending_collectors, CollectorSelection::EMPTY);
                return Some(IncidentCommand::StartCollectors { id, selection: wanted });
            }
            let recapture = mem::take(&mut incident.recapture)
                .intersection(incident.running.intersection(claimed));
            if !recapture.is_empty() {
                let update = incident.take_manifest_update();
                return Some(IncidentCommand::Recapture { id, kinds: recapture, update });
            }
            let stop = incident.running.difference(claimed);
            if !stop.is_empty() {
                return Some(IncidentCommand::Stop { id, kinds: stop });
            }
            let start = claimed.difference(incident.running).difference(incident.failed_to_start);
            if !start.is_empty() && capturing_id.is_none_or(|busy| busy == id) {
                return Some(IncidentCommand::Start { id, kinds: start });
            }
            if incident.collector_deadline.is_some()
                && (mem::take(&mut incident.has_collector_output) || self.is_shut_down)
            {
                return Some(IncidentCommand::FinishCollectors { id, all: self.is_shut_down });
            }
            if incident.is_over() {
                if incident.close_at > now {
                    continue;
                }
                incident.phase = IncidentPhase::Closing;
                return Some(IncidentCommand::Close {
                    id,
                    update: incident.take_manifest_update(),
                });
            }
            if !incident.unwritten_reasons.is_empty()
                || incident.dropped_reasons > 0
                || incident.update_manifest_at <= now
            {
                let age = now.since(incident.opened_at.0);
                incident.update_manifest_at = now + MIN_MANIFEST_UPDATE_INTERVAL.max(age / 10);
                return Some(IncidentCommand::UpdateManifest {
                    id,
                    update: incident.take_manifest_update(),
                });
            }
        }
        None
    }

    /// Applies the result of a command.
    pub(crate) fn apply_result(
        &mut self,
        now: Moment,
        result: CommandResult,
    ) -> Vec<IncidentUpdate> {
        let id = match result {
            CommandResult::Opened { id, .. }
            | CommandResult::Started { id, .. }
            | CommandResult::Collecting { id, .. }
            | CommandResult::Stopped { id, .. }
            | CommandResult::ManifestUpdated { id }
            | CommandResult::Recaptured { id }
            | CommandResult::Closed { id, .. } => id,
        };
        let Some(index) = self.open.iter().position(|incident| incident.id == id) else {
            return Vec::new();
        };
        let incident = &mut self.open[index];
        match result {
            CommandResult::Opened { ok: true, .. } => {
                incident.phase = IncidentPhase::Open;
                incident.begin_claims(now);
            }
            CommandResult::Opened { ok: false, .. } => {
                return self.remove(index, |rule| IncidentUpdate::OpenFailed(rule, id));
            }
            CommandResult::Started { requested, running, .. } => {
                incident.running = incident.running.union(running);
                incident.failed_to_start =
                    incident.failed_to_start.union(requested.difference(running));
                incident.begin_claims(now);
            }
            CommandResult::Stopped { kinds, .. } => {
                incident.running = incident.running.difference(kinds)
            }
            CommandResult::Collecting { deadline, .. } => incident.collector_deadline = deadline,
            CommandResult::ManifestUpdated { .. } | CommandResult::Recaptured { .. } => {}
            CommandResult::Closed { ok: true, .. } => {
                return self.remove(index, IncidentUpdate::CaptureEnded);
            }
            CommandResult::Closed { ok: false, .. } => {
                incident.phase = IncidentPhase::Open;
                incident.close_at = now + CLOSE_RETRY_DELAY;
            }
        }
        self.take_ended_captures()
    }

    /// Returns the open incidents, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = IncidentView<'_>> {
        self.open.iter().map(|incident| IncidentView {
            id: incident.id,
            name: &incident.name,
            opened_at: incident.opened_at.1,
            claimed_kinds: incident.claimed_kinds(),
            running: incident.running,
            ends_at: incident.claims.iter().filter_map(|claim| claim.ends_at).max(),
            active_rules: &incident.active_rules,
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Clears `failed_to_start` where captures are no longer wanted. Returns the rules whose
    /// captures have ended.
    fn take_ended_captures(&mut self) -> Vec<IncidentUpdate> {
        let mut updates = Vec::new();
        for incident in &mut self.open {
            let claimed = incident.claimed_kinds();
            incident.failed_to_start =
                incident.failed_to_start.difference(incident.failed_to_start.difference(claimed));
            if incident.running.difference(claimed).is_empty() {
                updates
                    .extend(incident.finishing_rules.drain(..).map(IncidentUpdate::CaptureEnded));
            }
        }
        updates
    }

    fn remove(
        &mut self,
        index: usize,
        to_update: impl Fn(String) -> IncidentUpdate,
    ) -> Vec<IncidentUpdate> {
        let incident = self.open.remove(index);
        if self.toggle.is_some_and(|state| state.incident == incident.id) {
            self.toggle = None;
        }
        let claims = incident.claims.into_iter().filter_map(|claim| match claim.claimant {
            Claimant::Rule(name) => Some(name),
            Claimant::Toggle | Claimant::Call => None,
        });
        let mut updates = self.take_ended_captures();
        updates.extend(incident.finishing_rules.into_iter().chain(claims).map(to_update));
        updates.push(IncidentUpdate::Removed(incident.id));
        updates
    }
}

#[cfg(test)]
mod tests;
