//! Manual requests and requests from code, and the replies.

use std::time::Duration;

use crate::agent::Error;
use crate::agent::event::{Reply, ToggleAction};
use crate::agent::state::AgentState;
use crate::agent::status::{Captured, Toggled};
use crate::base::{Error as PublicError, IncidentId, Moment};
use crate::model::{CaptureKind, CaptureSet, Collect, Origin, Reason};
use crate::policy::decider::are_many_open;

/// Maximum time a reply waits for the incident directory. After that it reports that there is none
/// yet.
const PATIENCE: Duration = Duration::from_secs(2);

/// A request that waits for the directory of an incident.
pub(super) enum PendingReply {
    Toggle { state: Toggled, reply: Reply<Toggled> },
    Capture { reply: Reply<Captured> },
}

impl AgentState {
    pub(super) fn toggle(
        &mut self,
        action: ToggleAction,
        origin: Origin,
        kinds: Option<CaptureSet>,
        reply: Option<Reply<Toggled>>,
    ) {
        let on = match action {
            ToggleAction::Start => true,
            ToggleAction::Stop => false,
            ToggleAction::Flip => self.decider.incidents.toggle().is_none(),
        };
        if !on {
            let was = self.decider.incidents.toggle_off();
            let state = Toggled {
                incident: was.map(|was| was.incident),
                dir: was.and_then(|was| self.dir(was.incident)),
                ..self.toggled(None)
            };
            if let Some(reply) = reply {
                let _ = reply.send(Ok(state));
            }
            return;
        }
        let kinds = self.with_descriptors(kinds.unwrap_or(self.settings.toggle.capture));
        let claim = (kinds, self.settings.toggle.max_duration);
        let reason = self.asked(origin, format!("toggled on by {}", origin.words()));
        let now = self.clock.now();
        let was_on = self.decider.incidents.toggle().is_some();
        let state = self.decider.incidents.toggle_on(now, self.new_id(), claim, reason);
        if !was_on {
            self.collect(state.incident);
        }
        self.track(state.incident);
        if let Some(reply) = reply {
            let state = self.toggled(Some(state));
            self.promise(state.incident, PendingReply::Toggle { state, reply });
        }
    }

    pub(super) fn capture(
        &mut self,
        kinds: CaptureSet,
        duration: Duration,
        reply: Reply<Captured>,
    ) {
        let most = self.settings.toggle.max_duration;
        if kinds.is_empty() || duration.is_zero() || duration > most {
            let _ = reply.send(Err(PublicError::new(Error::BadCapture { duration, most })));
            return;
        }
        let reason = self.asked(Origin::Code, format!("asked for by the service for {duration:?}"));
        let now = self.clock.now();
        let claim = (self.with_descriptors(kinds), duration);
        let id = self.decider.incidents.call(now, self.new_id(), claim, reason);
        self.collect(id);
        self.track(id);
        self.promise(Some(id), PendingReply::Capture { reply });
    }

    /// Adds the list of open descriptors to `kinds` if more than half of the allowed number are
    /// open.
    fn with_descriptors(&self, mut kinds: CaptureSet) -> CaptureSet {
        if are_many_open(&self.vitals) {
            kinds.insert(CaptureKind::Descriptors);
        }
        kinds
    }

    /// Requests all custom collectors: an incident requested manually or from code contains the
    /// output of each.
    fn collect(&mut self, id: IncidentId) {
        self.decider.incidents.set_collectors(!self.collectors.is_empty());
        self.decider.incidents.collect(id, &Collect::All);
    }

    fn asked(&self, origin: Origin, text: String) -> Reason {
        let at = self.clock.wall();
        Reason { origin, at, rule: None, metric: None, value: None, threshold: None, text }
    }

    /// Replies at once if the incident has a directory, else when it gets one.
    fn promise(&mut self, id: Option<IncidentId>, waiting: PendingReply) {
        let until = self.clock.now() + PATIENCE;
        let Some(open) = self.open.iter_mut().find(|open| Some(open.id) == id) else { return };
        let id = open.id;
        if open.dir.is_some() {
            self.answer(vec![(until, waiting)], id, None);
        } else {
            open.waiting.push((until, waiting));
        }
    }

    /// Replies to requests that waited for an incident directory. `why` is the reason if there is
    /// none.
    pub(super) fn answer(
        &self,
        waiting: Vec<(Moment, PendingReply)>,
        id: IncidentId,
        why: Option<String>,
    ) {
        let dir = self.dir(id);
        for (_, waiting) in waiting {
            let missing = || {
                let why = why.clone().unwrap_or_else(|| self.why_no_directory());
                PublicError::new(Error::NoDirectory(why))
            };
            match (waiting, &dir, &why) {
                (PendingReply::Toggle { reply, .. }, None, Some(_)) => {
                    drop(reply.send(Err(missing())))
                }
                (PendingReply::Toggle { state, reply }, dir, _) => {
                    drop(reply.send(Ok(Toggled { dir: dir.clone(), ..state })));
                }
                (PendingReply::Capture { reply }, Some(dir), _) => {
                    drop(reply.send(Ok(Captured { incident: id, dir: dir.clone() })));
                }
                (PendingReply::Capture { reply }, None, _) => drop(reply.send(Err(missing()))),
            }
        }
    }
}
