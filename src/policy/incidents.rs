//! The open incidents, the captures each should have, and the next command.
//!
//! A state machine without a thread, a clock or a file. The loop reports events
//! ([`Incidents::fire`], [`Incidents::toggle`], [`Incidents::expire`], …) and requests the next
//! [`IncidentCommand`]. One command is issued at a time, and its result is passed to
//! [`Incidents::done`].
//!
//! ```text
//!  rule, toggle, call ──► claim (kinds, until) ──► wanted ──┐
//!                                                           ├─► next job
//!  capture thread ──────► done ──────────────────► running ─┘
//! ```
//!
//! The machine is level-triggered, not edge-triggered: a command is the difference between the
//! wanted and the running captures, computed when the capture thread is free. A thousand toggles
//! during one command therefore cost one command, and no queue grows. A new claim joins an incident
//! that is not closed instead of opening another beside it.
//!
//! Invariants, checked by the property tests below:
//! - Captures run in at most one incident at a time, because each engine exists once.
//! - An incident is closed once, and only while nothing is running.
//! - Every opened incident is closed after [`Incidents::shut`].

mod incident;
mod job;

use std::mem;
use std::time::Duration;

use crate::base::{IncidentId, Moment};
use crate::model::{CaptureSet, Collect, Reason};
use incident::{CaptureClaim, Claimant, Incident, IncidentPhase};
pub(crate) use job::{
    CommandResult, IncidentCommand, IncidentUpdate, IncidentView, ManifestUpdate, ToggleState,
};

/// Minimum interval between two manifest updates of an open incident. The interval is the larger of
/// this and a tenth of the incident's age. The vitals before a kill are thus on disk, and an
/// incident open for a week costs little.
const FIRST_NOTE: Duration = Duration::from_secs(10);

/// Delay before another attempt to close an incident after one failed (disk full).
const CLOSE_RETRY: Duration = Duration::from_secs(10);

/// The open incidents.
#[derive(Debug, Default)]
pub(crate) struct Incidents {
    open: Vec<Incident>,
    toggle: Option<ToggleState>,
    join: Duration,
    /// True if custom collectors are registered.
    collectors: bool,
    /// True if everything must end.
    shut: bool,
}

impl Incidents {
    /// Sets the time after an incident's opening in which any claim joins it.
    pub(crate) fn set_join(&mut self, join: Duration) {
        self.join = join;
    }

    /// Sets whether custom collectors are registered; if not, `Collect::All` is a no-op.
    pub(crate) fn set_collectors(&mut self, any: bool) {
        self.collectors = any;
    }

    /// Requests custom collectors for incident `id`.
    pub(crate) fn collect(&mut self, id: IncidentId, wanted: &Collect) {
        if (self.collectors || *wanted != Collect::All)
            && let Some(incident) = self.open.iter_mut().find(|open| open.id == id)
        {
            incident.collect.add(wanted);
        }
    }

    /// Records that a custom collector of incident `id` returned.
    pub(crate) fn collected(&mut self, id: IncidentId) {
        for incident in self.open.iter_mut().filter(|open| open.id == id) {
            // The collector may return before the result of its start command arrives.
            incident.collected = true;
        }
    }

    /// Returns `true` if a rule without an incident would join one.
    pub(crate) fn has_joinable(&self, now: Moment) -> bool {
        self.joinable(now, |_| false).is_some()
    }

    /// Returns the number of firings of `rule`, which has no incident, in the incident it would
    /// join, or `None` if there is none to join.
    pub(crate) fn fires_of_joinable(&self, now: Moment, rule: &str) -> Option<usize> {
        let at = self.joinable(now, |_| false)?;
        self.open.get(at).map(|open| open.fires_of(rule))
    }

    /// Returns the number of firings of `rule` in incident `id`.
    pub(crate) fn fires(&self, id: IncidentId, rule: &str) -> usize {
        self.open.iter().find(|open| open.id == id).map_or(0, |open| open.fires_of(rule))
    }

    /// Claims `kinds` for a duration because `rule` fired. The rule keeps the incident open until
    /// it clears.
    pub(crate) fn fire(
        &mut self,
        now: Moment,
        new_id: impl FnOnce() -> IncidentId,
        rule: &str,
        claim: (CaptureSet, Duration),
        reason: Reason,
    ) -> IncidentId {
        let own = |incident: &Incident| incident.held_by.iter().any(|name| name == rule);
        let incident = self.claim(now, new_id, Claimant::Rule(rule.to_owned()), claim, reason, own);
        if !incident.held_by.iter().any(|name| name == rule) {
            incident.held_by.push(rule.to_owned());
        }
        incident.count_fire(rule);
        let runs = incident.running.and(claim.0).iter();
        incident.again = incident.again.union(runs.filter(|kind| kind.is_snapshot()).collect());
        incident.id
    }

    /// Records that the condition of `rule` ended or that the rule was removed.
    pub(crate) fn clear(&mut self, rule: &str) {
        for incident in &mut self.open {
            incident.held_by.retain(|name| name != rule);
        }
    }

    /// Turns the toggle on for at most `max_duration` from now. No effect if it is on.
    pub(crate) fn toggle_on(
        &mut self,
        now: Moment,
        new_id: impl FnOnce() -> IncidentId,
        (kinds, max_duration): (CaptureSet, Duration),
        reason: Reason,
    ) -> ToggleState {
        if let Some(state) = self.toggle {
            return state;
        }
        let (since, claim) = (reason.at, (kinds, max_duration));
        let incident = self.claim(now, new_id, Claimant::Toggle, claim, reason, |_| false).id;
        let state = ToggleState { incident, since, until: now + max_duration, max_duration };
        self.toggle = Some(state);
        state
    }

    /// Turns the toggle off. Returns its previous state.
    pub(crate) fn toggle_off(&mut self) -> Option<ToggleState> {
        let state = self.toggle.take()?;
        for incident in &mut self.open {
            incident.claims.retain(|claim| claim.holder != Claimant::Toggle);
        }
        Some(state)
    }

    /// Returns the state of the toggle, or `None` if it is off.
    pub(crate) fn toggle(&self) -> Option<ToggleState> {
        self.toggle
    }

    /// Claims captures for a duration on a call from code.
    pub(crate) fn call(
        &mut self,
        now: Moment,
        new_id: impl FnOnce() -> IncidentId,
        claim: (CaptureSet, Duration),
        reason: Reason,
    ) -> IncidentId {
        self.claim(now, new_id, Claimant::Call, claim, reason, |_| false).id
    }

    /// Ends the claims that have expired at `now`.
    pub(crate) fn expire(&mut self, now: Moment) -> Vec<IncidentUpdate> {
        if self.toggle.is_some_and(|state| state.until <= now) {
            self.toggle_off();
        }
        for incident in &mut self.open {
            incident.collected |= incident.collecting.is_some_and(|until| until <= now);
            let finishing = &mut incident.finishing;
            incident.claims.retain(|claim| {
                let over = claim.until.is_some_and(|until| until <= now);
                if let (true, Claimant::Rule(name)) = (over, &claim.holder) {
                    finishing.push(name.clone());
                }
                !over
            });
        }
        self.settle()
    }

    /// Returns the time of the next expiry.
    pub(crate) fn next_expiry(&self) -> Option<Moment> {
        let claims = self.open.iter().flat_map(|open| open.claims.iter().filter_map(|it| it.until));
        let waiting = self.open.iter().filter(|open| !open.collected);
        claims.chain(waiting.filter_map(|open| open.collecting)).min()
    }

    /// Ends everything. From here on only commands that stop and close are issued.
    pub(crate) fn shut(&mut self) {
        self.toggle = None;
        self.shut = true;
        for incident in &mut self.open {
            incident.collect = Collect::NONE;
            incident.claims.clear();
            incident.held_by.clear();
        }
    }

    /// Returns the next command, or `None` if the running captures are the wanted ones. Must not be
    /// called again before [`Incidents::done`].
    pub(crate) fn next_job(&mut self, now: Moment) -> Option<IncidentCommand> {
        let busy = self.open.iter().find(|i| !i.running.is_empty()).map(|i| i.id);
        for incident in &mut self.open {
            let (id, wanted) = (incident.id, incident.wanted());
            if incident.phase == IncidentPhase::Announced {
                let noted = incident.take_noted();
                return Some(IncidentCommand::Open { id, name: incident.name.clone(), noted });
            }
            if !incident.collect.is_none() {
                let wanted = mem::replace(&mut incident.collect, Collect::NONE);
                return Some(IncidentCommand::Collect { id, wanted });
            }
            let again = mem::take(&mut incident.again).and(incident.running.and(wanted));
            if !again.is_empty() {
                let noted = incident.take_noted();
                return Some(IncidentCommand::Again { id, kinds: again, noted });
            }
            let stop = incident.running.without(wanted);
            if !stop.is_empty() {
                return Some(IncidentCommand::Stop { id, kinds: stop });
            }
            let start = wanted.without(incident.running).without(incident.refused);
            if !start.is_empty() && busy.is_none_or(|busy| busy == id) {
                return Some(IncidentCommand::Start { id, kinds: start });
            }
            if incident.collecting.is_some() && (mem::take(&mut incident.collected) || self.shut) {
                return Some(IncidentCommand::Gather { id, all: self.shut });
            }
            if incident.is_over() {
                if incident.close_at > now {
                    continue;
                }
                incident.phase = IncidentPhase::Closing;
                return Some(IncidentCommand::Close { id, noted: incident.take_noted() });
            }
            if !incident.unwritten.is_empty() || incident.dropped > 0 || incident.note_at <= now {
                let age = now.since(incident.opened.0);
                incident.note_at = now + FIRST_NOTE.max(age / 10);
                return Some(IncidentCommand::Note { id, noted: incident.take_noted() });
            }
        }
        None
    }

    /// Applies the result of a command.
    pub(crate) fn done(&mut self, now: Moment, done: CommandResult) -> Vec<IncidentUpdate> {
        let id = match done {
            CommandResult::Opened { id, .. }
            | CommandResult::Started { id, .. }
            | CommandResult::Collecting { id, .. }
            | CommandResult::Stopped { id, .. }
            | CommandResult::Noted { id }
            | CommandResult::Again { id }
            | CommandResult::Closed { id, .. } => id,
        };
        let Some(at) = self.open.iter().position(|incident| incident.id == id) else {
            return Vec::new();
        };
        let incident = &mut self.open[at];
        match done {
            CommandResult::Opened { ok: true, .. } => {
                incident.phase = IncidentPhase::Open;
                incident.begin_claims(now);
            }
            CommandResult::Opened { ok: false, .. } => {
                return self.remove(at, |rule| IncidentUpdate::Lost(rule, id));
            }
            CommandResult::Started { asked, running, .. } => {
                incident.running = incident.running.union(running);
                incident.refused = incident.refused.union(asked.without(running));
                incident.begin_claims(now);
            }
            CommandResult::Stopped { kinds, .. } => {
                incident.running = incident.running.without(kinds)
            }
            CommandResult::Collecting { until, .. } => incident.collecting = until,
            CommandResult::Noted { .. } | CommandResult::Again { .. } => {}
            CommandResult::Closed { ok: true, .. } => {
                return self.remove(at, IncidentUpdate::Captured);
            }
            CommandResult::Closed { ok: false, .. } => {
                incident.phase = IncidentPhase::Open;
                incident.close_at = now + CLOSE_RETRY;
            }
        }
        self.settle()
    }

    /// Returns the open incidents, oldest first.
    pub(crate) fn iter(&self) -> impl Iterator<Item = IncidentView<'_>> {
        self.open.iter().map(|incident| IncidentView {
            id: incident.id,
            name: &incident.name,
            opened: incident.opened.1,
            wanted: incident.wanted(),
            running: incident.running,
            until: incident.claims.iter().filter_map(|claim| claim.until).max(),
            held_by: &incident.held_by,
        })
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.open.is_empty()
    }

    /// Returns the index of the incident that a claim at `now` joins. In order of preference: one
    /// that is capturing, one of the claimant or that nothing holds open, one opened within `join`.
    fn joinable(&self, now: Moment, own: impl Fn(&Incident) -> bool) -> Option<usize> {
        let which = |wanted: &dyn Fn(&Incident) -> bool| {
            self.open.iter().position(|i| i.phase != IncidentPhase::Closing && wanted(i))
        };
        which(&|i| i.is_capturing())
            .or_else(|| which(&|i| own(i) || i.is_over()))
            .or_else(|| which(&|i| now.since(i.opened.0) < self.join))
    }

    /// Adds a claim to the incident it joins, or to a new one.
    fn claim(
        &mut self,
        now: Moment,
        new_id: impl FnOnce() -> IncidentId,
        holder: Claimant,
        (kinds, duration): (CaptureSet, Duration),
        reason: Reason,
        own: impl Fn(&Incident) -> bool,
    ) -> &mut Incident {
        let at = self.joinable(now, own).unwrap_or_else(|| {
            self.open.push(Incident {
                id: new_id(),
                name: holder.incident_name().to_owned(),
                opened: (now, reason.at),
                phase: IncidentPhase::Announced,
                claims: Vec::new(),
                held_by: Vec::new(),
                finishing: Vec::new(),
                running: CaptureSet::EMPTY,
                refused: CaptureSet::EMPTY,
                again: CaptureSet::EMPTY,
                fires: Vec::new(),
                unwritten: Vec::new(),
                reasons: 0,
                dropped: 0,
                collect: Collect::NONE,
                collecting: None,
                collected: false,
                note_at: now + FIRST_NOTE,
                close_at: now,
            });
            self.open.len() - 1
        });
        let incident = &mut self.open[at];
        incident.add_reason(reason);
        let until = (holder == Claimant::Toggle).then(|| now + duration);
        match incident.claims.iter_mut().find(|c| c.holder == holder && holder != Claimant::Call) {
            Some(claim) => {
                claim.kinds = claim.kinds.union(kinds);
                claim.duration = duration;
                if claim.holder == Claimant::Toggle {
                    claim.until = until;
                }
            }
            None => incident.claims.push(CaptureClaim { holder, kinds, duration, until }),
        }
        incident.begin_claims(now);
        incident
    }

    /// Clears `refused` where captures are no longer wanted. Returns the rules whose captures have
    /// ended.
    fn settle(&mut self) -> Vec<IncidentUpdate> {
        let mut notices = Vec::new();
        for incident in &mut self.open {
            let wanted = incident.wanted();
            incident.refused = incident.refused.without(incident.refused.without(wanted));
            if incident.running.without(wanted).is_empty() {
                notices.extend(incident.finishing.drain(..).map(IncidentUpdate::Captured));
            }
        }
        notices
    }

    fn remove(
        &mut self,
        at: usize,
        ended: impl Fn(String) -> IncidentUpdate,
    ) -> Vec<IncidentUpdate> {
        let incident = self.open.remove(at);
        if self.toggle.is_some_and(|state| state.incident == incident.id) {
            self.toggle = None;
        }
        let claims = incident.claims.into_iter().filter_map(|claim| match claim.holder {
            Claimant::Rule(name) => Some(name),
            Claimant::Toggle | Claimant::Call => None,
        });
        let mut notices = self.settle();
        notices.extend(incident.finishing.into_iter().chain(claims).map(ended));
        notices.push(IncidentUpdate::Gone(incident.id));
        notices
    }
}

#[cfg(test)]
mod tests;
