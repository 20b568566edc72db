//! Manual requests and requests from code, and the replies.

use std::time::Duration;

use crate::agent::Error;
use crate::agent::event::{Reply, ToggleAction};
use crate::agent::state::AgentState;
use crate::agent::status::{CaptureStarted, ToggleStatus};
use crate::base::{Error as PublicError, IncidentId, Moment};
use crate::model::{CaptureKind, CaptureSet, CollectorSelection, Origin, Reason};
use crate::policy::decider::has_high_fd_usage;
use crate::policy::incidents::CaptureRequest;

/// Maximum time a reply waits for the incident directory. After that it reports that there is none
/// yet.
const DIRECTORY_TIMEOUT: Duration = Duration::from_secs(2);

/// A request that waits for the directory of an incident.
pub(super) enum PendingReply {
    Toggle { state: ToggleStatus, reply: Reply<ToggleStatus> },
    Capture { reply: Reply<CaptureStarted> },
}

impl AgentState {
    pub(super) fn toggle(
        &mut self,
        action: ToggleAction,
        origin: Origin,
        kinds: Option<CaptureSet>,
        reply: Option<Reply<ToggleStatus>>,
    ) {
        let on = match action {
            ToggleAction::Start => true,
            ToggleAction::Stop => false,
            ToggleAction::Flip => self.decider.incidents.toggle_state().is_none(),
        };
        if !on {
            let previous = self.decider.incidents.toggle_off();
            let state = ToggleStatus {
                incident: previous.map(|was| was.incident),
                dir: previous.and_then(|was| self.dir(was.incident)),
                ..self.toggle_status(None)
            };
            if let Some(reply) = reply {
                let _ = reply.send(Ok(state));
            }
            return;
        }
        let request = CaptureRequest {
            kinds: self.with_descriptors(kinds.unwrap_or(self.settings.toggle.capture)),
            duration: self.settings.toggle.max_duration,
        };
        let reason = self.manual_reason(origin, format!("toggled on by {}", origin.description()));
        let now = self.clock.now();
        let was_on = self.decider.incidents.toggle_state().is_some();
        let state = self.decider.incidents.toggle_on(now, self.new_id(), request, reason);
        if !was_on {
            self.request_collectors(state.incident);
        }
        self.start_vitals_recording(state.incident);
        if let Some(reply) = reply {
            let state = self.toggle_status(Some(state));
            self.reply_when_opened(state.incident, PendingReply::Toggle { state, reply });
        }
    }

    pub(super) fn capture(
        &mut self,
        kinds: CaptureSet,
        duration: Duration,
        reply: Reply<CaptureStarted>,
    ) {
        let max_duration = self.settings.toggle.max_duration;
        if kinds.is_empty() || duration.is_zero() || duration > max_duration {
            let _ = reply
                .send(Err(PublicError::from(Error::InvalidCapture { duration, max_duration })));
            return;
        }
        let reason =
            self.manual_reason(Origin::Code, format!("requested by the service for {duration:?}"));
        let now = self.clock.now();
        let request = CaptureRequest { kinds: self.with_descriptors(kinds), duration };
        let id = self.decider.incidents.claim_from_code(now, self.new_id(), request, reason);
        self.request_collectors(id);
        self.start_vitals_recording(id);
        self.reply_when_opened(Some(id), PendingReply::Capture { reply });
    }

    /// Adds the list of open descriptors to `kinds` if more than half of the allowed number are
    /// open.
    fn with_descriptors(&self, mut kinds: CaptureSet) -> CaptureSet {
        if has_high_fd_usage(&self.vitals) {
            kinds.insert(CaptureKind::Descriptors);
        }
        kinds
    }

    /// Requests all custom collectors: an incident requested manually or from code contains the
    /// output of each.
    fn request_collectors(&mut self, id: IncidentId) {
        self.decider.incidents.set_has_collectors(!self.collectors.is_empty());
        self.decider.incidents.request_collectors(id, &CollectorSelection::All);
    }

    fn manual_reason(&self, origin: Origin, text: String) -> Reason {
        let at = self.clock.wall();
        Reason { origin, at, rule: None, metric: None, value: None, threshold: None, text }
    }

    /// Replies at once if the incident has a directory, else when it gets one.
    fn reply_when_opened(&mut self, id: Option<IncidentId>, pending: PendingReply) {
        let deadline = self.clock.now() + DIRECTORY_TIMEOUT;
        let Some(open) = self.open_incidents.iter_mut().find(|open| Some(open.id) == id) else {
            return;
        };
        let id = open.id;
        if open.dir.is_some() {
            self.send_replies(vec![(deadline, pending)], id, None);
        } else {
            open.pending_replies.push((deadline, pending));
        }
    }

    /// Replies to requests that waited for an incident directory. `why` is the reason if there is
    /// none.
    pub(super) fn send_replies(
        &self,
        replies: Vec<(Moment, PendingReply)>,
        id: IncidentId,
        failure: Option<String>,
    ) {
        let dir = self.dir(id);
        for (_, pending) in replies {
            let missing = || {
                let why = failure.clone().unwrap_or_else(|| self.missing_directory_reason());
                PublicError::from(Error::NoDirectory(why))
            };
            match (pending, &dir, &failure) {
                (PendingReply::Toggle { reply, .. }, None, Some(_)) => {
                    drop(reply.send(Err(missing())))
                }
                (PendingReply::Toggle { state, reply }, dir, _) => {
                    drop(reply.send(Ok(ToggleStatus { dir: dir.clone(), ..state })));
                }
                (PendingReply::Capture { reply }, Some(dir), _) => {
                    drop(reply.send(Ok(CaptureStarted { incident: id, dir: dir.clone() })));
                }
                (PendingReply::Capture { reply }, None, _) => drop(reply.send(Err(missing()))),
            }
        }
    }
}
