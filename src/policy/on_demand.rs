//! On-demand captures: requested over `/debug/pprof/`, returned to the client and never stored.
//!
//! ```text
//!  request ──► waiting ──start──► running ──(time over, or engine needed by an incident)──►
//!              stopping ──stop──► stopped ──encode──► encoding ──► replied
//!  in any state: the client has disconnected ──drop──► removed
//! ```
//!
//! This is the state machine of the loop. Like [`incidents`](crate::policy::incidents) it has no
//! thread, clock or file and issues one [`OnDemandCommand`] at a time. `capture::on_demand` is the
//! part of the capture thread.
//!
//! Incidents have priority. The engines of CPU profiles and traces exist once, and the evidence of
//! an incident cannot be taken again. An incident that needs an engine therefore stops a running
//! on-demand capture; its client receives the complete data recorded until then, with a note. A
//! continuous profiler that scrapes all the time thus never prevents the profile of an incident.
//! Among on-demand captures the first keeps the engine; the others receive an error that names its
//! client and the time at which it ends.
//!
//! Stopping and encoding are separate steps, so that an incident waits only for the first. Encoding
//! runs on a separate thread at low priority (`capture::on_demand_encoder`), below the threads of
//! the service.

#![cfg_attr(not(feature = "http"), allow(dead_code, reason = "only the endpoint uses it"))]

mod command;
mod profile_kind;
mod request;

use jiff::Timestamp;
use serde::Serialize;

use crate::base::{Moment, TimeAnchor};
use crate::model::CaptureSet;
use crate::policy::daily_quota::DailyQuota;
pub(crate) use command::{OnDemandCommand, OnDemandResult};
use profile_kind::ProfileClass;
pub(crate) use profile_kind::{HeapView, ProfileForm, ProfileKind, ThreadView};
pub(crate) use request::{ProfileError, ProfileRequest, ProfileResponse};

/// Maximum number of on-demand captures in all phases: the sum over all classes ([`ProfileClass`]).
/// An encoded snapshot takes some hundred KiB until the client receives it, so this limit also
/// bounds memory.
pub(crate) const MAX_REQUESTS: usize = ProfileClass::Timed.max_requests()
    + ProfileClass::Snapshot.max_requests()
    + ProfileClass::Symbols.max_requests();

/// An on-demand capture, as shown in `status`.
#[derive(Clone, Debug, PartialEq, Serialize)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct OnDemandStatus {
    /// Kind of capture.
    pub kind: &'static str,
    /// Client that requested it.
    pub client: String,
    /// Time at which it ends, once it is running.
    pub until: Option<Timestamp>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum RequestPhase {
    Waiting,
    Running { until: Moment },
    Stopped,
    Encoding,
}

struct OnDemandRequest {
    id: u64,
    request: ProfileRequest,
    requested_at: Moment,
    phase: RequestPhase,
    /// True while the capture thread is performing its command.
    command_in_flight: bool,
}

impl OnDemandRequest {
    fn is_disconnected(&self) -> bool {
        self.request.reply.is_closed()
    }
}

/// Engines that an incident uses or needs.
pub(crate) struct EngineInUse {
    pub(crate) kinds: CaptureSet,
    /// Description of the incident.
    pub(crate) by: String,
    /// Time at which its captures end, if known.
    pub(crate) until: Option<Moment>,
}

/// All on-demand captures in progress.
pub(crate) struct OnDemandCaptures {
    requests: Vec<OnDemandRequest>,
    pub(crate) quota: DailyQuota,
    last_id: u64,
    is_shut_down: bool,
}

impl OnDemandCaptures {
    /// Creates the state machine with a limit of captures per 24 hours.
    pub(crate) fn new(per_day: usize) -> Self {
        Self {
            requests: Vec::new(),
            quota: DailyQuota::new(per_day),
            last_id: 0,
            is_shut_down: false,
        }
    }

    /// Accepts a request, or replies with an error at once.
    pub(crate) fn submit(
        &mut self,
        anchor: TimeAnchor,
        request: ProfileRequest,
        in_use: &[EngineInUse],
    ) {
        let now = anchor.moment;
        let refusal = if self.is_shut_down {
            Some(ProfileError::Stopped)
        } else if let Some(spent) = self.quota_error(anchor, &request.kind) {
            Some(spent)
        } else if let Some(busy) = self.engine_conflict(anchor, &request.kind, in_use) {
            Some(busy)
        } else if let Some(other) =
            self.requests.iter().find(|other| other.conflicts_with(&request.kind))
        {
            let until = other.end_time(now);
            Some(ProfileError::Busy {
                by: format!(
                    "in use by {} until {}",
                    other.request.client,
                    format_time(anchor, until)
                ),
                retry_after: Some(until.since(now)),
            })
        } else {
            self.class_limit_error(request.kind.class())
        };
        match refusal {
            Some(refusal) => drop(request.reply.send(Err(refusal))),
            None => {
                if request.kind.counts_against_quota() {
                    self.quota.consume(now);
                }
                self.last_id += 1;
                self.requests.push(OnDemandRequest {
                    id: self.last_id,
                    request,
                    requested_at: now,
                    phase: RequestPhase::Waiting,
                    command_in_flight: false,
                });
            }
        }
    }

    /// Returns an error if there are too many captures of `class`.
    fn class_limit_error(&self, class: ProfileClass) -> Option<ProfileError> {
        let count =
            self.requests.iter().filter(|capture| capture.request.kind.class() == class).count();
        let max_requests = class.max_requests();
        let by = format!("{max_requests} {} are in progress or queued; retry later", class.name());
        (count >= max_requests).then_some(ProfileError::Busy { by, retry_after: None })
    }

    fn quota_error(&self, anchor: TimeAnchor, kind: &ProfileKind) -> Option<ProfileError> {
        let until =
            self.quota.exhausted_until(anchor.moment).filter(|_| kind.counts_against_quota())?;
        Some(ProfileError::QuotaExhausted {
            limit: self.quota.limit(),
            until: format_time(anchor, until),
            wait: until.since(anchor.moment),
        })
    }

    /// Removes the capture at index `at`. If it produced nothing, it is refunded.
    fn remove(&mut self, at: usize, refund: bool) -> OnDemandRequest {
        let capture = self.requests.remove(at);
        if refund && capture.request.kind.counts_against_quota() {
            self.quota.refund(capture.requested_at);
        }
        capture
    }

    fn engine_conflict(
        &self,
        anchor: TimeAnchor,
        kind: &ProfileKind,
        in_use: &[EngineInUse],
    ) -> Option<ProfileError> {
        let engine = kind.engine()?;
        let conflict = in_use.iter().find(|used| used.kinds.contains(engine))?;
        let until = match conflict.until {
            Some(until) => format!("until {}", format_time(anchor, until)),
            None => "until its captures end".to_owned(),
        };
        let wait = conflict.until.map(|until| until.since(anchor.moment));
        Some(ProfileError::Busy {
            by: format!("in use by {}, {until}", conflict.by),
            retry_after: wait,
        })
    }

    /// Returns the command that must precede those of incidents: to stop a capture that uses an
    /// engine an incident needs.
    pub(crate) fn urgent_command(&mut self, in_use: &[EngineInUse]) -> Option<OnDemandCommand> {
        let needed = in_use.iter().fold(CaptureSet::EMPTY, |wanted, used| wanted.union(used.kinds));
        let capture = self.requests.iter_mut().find(|capture| {
            matches!(capture.phase, RequestPhase::Running { .. })
                && capture.request.kind.engine().is_some_and(|engine| needed.contains(engine))
        })?;
        capture.command_in_flight = true;
        let engine = capture.request.kind.engine();
        let by = in_use.iter().find(|used| engine.is_some_and(|kind| used.kinds.contains(kind)));
        let by = by.map_or_else(String::new, |used| used.by.clone());
        Some(OnDemandCommand::Stop {
            id: capture.id,
            cut_short: Some(format!("the engine was needed by {by}")),
        })
    }

    /// Returns the next command, or `None` if all captures are in progress. Must not be called
    /// again before [`OnDemandCaptures::apply_result`].
    pub(crate) fn next_command(
        &mut self,
        anchor: TimeAnchor,
        in_use: &[EngineInUse],
    ) -> Option<OnDemandCommand> {
        let now = anchor.moment;
        self.reject_waiting(anchor, in_use);
        let shut = self.is_shut_down;
        let has_command = |capture: &OnDemandRequest| match capture.phase {
            RequestPhase::Encoding => false,
            _ if capture.is_disconnected() || shut => true,
            RequestPhase::Waiting | RequestPhase::Stopped => true,
            RequestPhase::Running { until } => until <= now,
        };
        let capture = self.requests.iter_mut().find(|capture| has_command(capture))?;
        capture.command_in_flight = true;
        let id = capture.id;
        Some(match capture.phase {
            RequestPhase::Running { .. } | RequestPhase::Stopped
                if capture.is_disconnected() || shut =>
            {
                OnDemandCommand::Cancel { id }
            }
            RequestPhase::Waiting if capture.request.kind.duration().is_some() => {
                OnDemandCommand::Start { id, kind: capture.request.kind.clone() }
            }
            RequestPhase::Waiting => {
                OnDemandCommand::Snapshot { id, kind: capture.request.kind.clone() }
            }
            RequestPhase::Running { .. } => OnDemandCommand::Stop { id, cut_short: None },
            RequestPhase::Stopped | RequestPhase::Encoding => OnDemandCommand::Encode { id },
        })
    }

    /// Replies to clients whose engine an incident has taken while they waited, and removes
    /// requests of clients that disconnected while waiting. On shutdown, encodings are not waited
    /// for either: at low priority they may take long.
    fn reject_waiting(&mut self, anchor: TimeAnchor, in_use: &[EngineInUse]) {
        let mut index = 0;
        while let Some(capture) = self.requests.get(index) {
            let waits = match capture.phase {
                RequestPhase::Waiting => !capture.command_in_flight,
                RequestPhase::Encoding => self.is_shut_down,
                RequestPhase::Running { .. } | RequestPhase::Stopped => false,
            };
            let refusal = match waits {
                true if self.is_shut_down => Some(ProfileError::Stopped),
                true => self.engine_conflict(anchor, &capture.request.kind, in_use),
                false => None,
            };
            if waits && (capture.is_disconnected() || refusal.is_some()) {
                let capture = self.remove(index, true);
                if let Some(refusal) = refusal {
                    let _ = capture.request.reply.send(Err(refusal));
                }
            } else {
                index += 1;
            }
        }
    }

    /// Applies the result of a command at `now`. Returns the number of bytes returned to the
    /// client, if any.
    pub(crate) fn apply_result(&mut self, now: Moment, result: OnDemandResult) -> Option<u64> {
        let (OnDemandResult::Started { id, .. }
        | OnDemandResult::Stopped { id }
        | OnDemandResult::Encoding { id }
        | OnDemandResult::Finished { id, .. }
        | OnDemandResult::Canceled { id }) = result;
        let index = self.requests.iter().position(|capture| capture.id == id)?;
        let capture = self.requests.get_mut(index)?;
        capture.command_in_flight = false;
        match result {
            OnDemandResult::Started { .. } => {
                let duration = capture.request.kind.duration().unwrap_or_default();
                capture.phase = RequestPhase::Running { until: now + duration };
                None
            }
            OnDemandResult::Stopped { .. } => {
                capture.phase = RequestPhase::Stopped;
                None
            }
            OnDemandResult::Encoding { .. } => {
                capture.phase = RequestPhase::Encoding;
                None
            }
            OnDemandResult::Finished { result, .. } => {
                let bytes = result.as_ref().ok().map(|response| response.bytes.len() as u64);
                let capture = self.remove(index, result.is_err());
                let _ = capture.request.reply.send(result);
                bytes
            }
            OnDemandResult::Canceled { .. } => {
                let capture = self.remove(index, false);
                let _ = capture.request.reply.send(Err(ProfileError::Stopped));
                None
            }
        }
    }

    /// Returns the time at which [`OnDemandCaptures::next_command`] next has a command.
    pub(crate) fn next_expiry(&self) -> Option<Moment> {
        let until = |capture: &OnDemandRequest| match capture.phase {
            RequestPhase::Running { until } if !capture.command_in_flight => Some(until),
            _ => None,
        };
        self.requests.iter().filter_map(until).min()
    }

    /// Drops all captures and rejects further requests.
    pub(crate) fn shut_down(&mut self) {
        self.is_shut_down = true;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.requests.is_empty()
    }

    pub(crate) fn status(&self, anchor: TimeAnchor) -> Vec<OnDemandStatus> {
        let status = |capture: &OnDemandRequest| OnDemandStatus {
            kind: capture.request.kind.name(),
            client: capture.request.client.clone(),
            until: match capture.phase {
                RequestPhase::Running { until } => Some(anchor.wall_at(until)),
                RequestPhase::Waiting | RequestPhase::Stopped | RequestPhase::Encoding => None,
            },
        };
        self.requests.iter().map(status).collect()
    }
}

impl OnDemandRequest {
    /// Returns `true` if `kind` cannot start while this capture exists. Unencoded data takes
    /// memory, possibly that of a whole heap; a capture with an engine releases it before encoding.
    fn conflicts_with(&self, kind: &ProfileKind) -> bool {
        let engine_released =
            self.phase == RequestPhase::Encoding && self.request.kind.engine().is_some();
        !engine_released && self.request.kind.conflicts_with(kind)
    }

    /// Returns the time at which it ends, or would end if it started now.
    fn end_time(&self, now: Moment) -> Moment {
        match self.phase {
            RequestPhase::Running { until } => until.max(now),
            RequestPhase::Waiting => now + self.request.kind.duration().unwrap_or_default(),
            RequestPhase::Stopped | RequestPhase::Encoding => now,
        }
    }
}

/// Formats a moment as wall time, to the second.
fn format_time(anchor: TimeAnchor, moment: Moment) -> String {
    anchor.wall_at(moment).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests;
