//! On-demand captures: requested over `/debug/pprof/`, returned to the client and never stored.
//!
//! ```text
//!  request ──► waiting ──start──► running ──(time over, or engine needed by an incident)──►
//!              stopping ──stop──► stopped ──encode──► encoding ──► replied
//!  in any state: the client has disconnected ──drop──► removed
//! ```
//!
//! This is the state machine of the loop. Like [`incidents`](crate::policy::incidents) it has no
//! thread, clock or file and issues one [`OnDemandCommand`] at a time. [`work`] is the part of the
//! capture thread.
//!
//! Incidents have priority. The engines of CPU profiles and traces exist once, and the evidence of
//! an incident cannot be taken again. An incident that needs an engine therefore stops a running
//! on-demand capture; its client receives the complete data recorded until then, with a note. A
//! continuous profiler that scrapes all the time thus never prevents the profile of an incident.
//! Among on-demand captures the first keeps the engine; the others receive an error that names its
//! client and the time at which it ends.
//!
//! Stopping and encoding are separate steps, so that an incident waits only for the first. Encoding
//! runs on a separate thread at low priority ([`encode`]), below the threads of the service.

#![cfg_attr(not(feature = "http"), allow(dead_code, reason = "only the endpoint uses it"))]

mod profile_kind;
mod request;

use jiff::Timestamp;
use serde::Serialize;

use crate::base::{Moment, TimeAnchor};
use crate::model::{CaptureKind, CaptureSet};
use crate::policy::daily_quota::DailyQuota;
use profile_kind::ProfileClass;
pub(crate) use profile_kind::{HeapView, ProfileForm, ProfileKind, ThreadView};
pub(crate) use request::{ProfileError, ProfileRequest, ProfileResponse};

/// Maximum number of on-demand captures in all phases: the sum over all classes ([`ProfileClass`]).
/// An encoded snapshot takes some hundred KiB until the client receives it, so this limit also
/// bounds memory.
pub(crate) const MOST: usize =
    ProfileClass::Timed.most() + ProfileClass::Snapshot.most() + ProfileClass::Symbols.most();

/// An on-demand capture, as shown in `status`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StreamStatus {
    /// Kind of capture.
    pub take: &'static str,
    /// Client that requested it.
    pub by: String,
    /// Time at which it ends, once it is running.
    pub until: Option<Timestamp>,
}

/// A command for the capture thread.
#[derive(Clone, Debug)]
pub(crate) enum OnDemandCommand {
    /// Takes a snapshot and encodes it.
    Look { id: u64, take: ProfileKind },
    /// Starts a recording.
    Start { id: u64, take: ProfileKind },
    /// Stops a recording and keeps its data.
    Stop { id: u64, cut_short: Option<String> },
    /// Sends the data to be encoded.
    Encode { id: u64 },
    /// Drops a recording and its data.
    Drop { id: u64 },
}

impl OnDemandCommand {
    /// Returns a description of the command for use within a sentence.
    pub(crate) fn words(&self) -> &'static str {
        match self {
            Self::Look { .. } => "taking a profile or dump for a client",
            Self::Start { .. } => "starting a profile for a client",
            Self::Stop { .. } => "stopping a profile for a client",
            Self::Encode { .. } => "handing a client's profile on to be encoded",
            Self::Drop { .. } => "giving up a client's profile",
        }
    }

    pub(crate) fn id(&self) -> u64 {
        match self {
            Self::Look { id, .. }
            | Self::Start { id, .. }
            | Self::Stop { id, .. }
            | Self::Encode { id }
            | Self::Drop { id } => *id,
        }
    }
}

/// Result of a command.
pub(crate) enum OnDemandResult {
    /// The recording started.
    Started { id: u64, engine: Option<(CaptureKind, String)> },
    /// The recording stopped and its data is kept.
    Stopped { id: u64 },
    /// The data is being encoded.
    Encoding { id: u64 },
    /// The capture finished, successfully or not, and no data is kept.
    Finished { id: u64, result: Result<ProfileResponse, ProfileError> },
    /// The capture was dropped.
    Dropped { id: u64 },
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
    ask: ProfileRequest,
    asked: Moment,
    phase: RequestPhase,
    /// True while the capture thread is performing its command.
    out: bool,
}

impl OnDemandRequest {
    fn is_given_up(&self) -> bool {
        self.ask.reply.is_closed()
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
    streams: Vec<OnDemandRequest>,
    pub(crate) allowance: DailyQuota,
    next: u64,
    shut: bool,
}

impl OnDemandCaptures {
    /// Creates the state machine with a limit of captures per 24 hours.
    pub(crate) fn new(per_day: usize) -> Self {
        Self { streams: Vec::new(), allowance: DailyQuota::new(per_day), next: 0, shut: false }
    }

    /// Accepts a request, or replies with an error at once.
    pub(crate) fn ask(&mut self, anchor: TimeAnchor, ask: ProfileRequest, taken: &[EngineInUse]) {
        let now = anchor.moment;
        let refusal = if self.shut {
            Some(ProfileError::Stopped)
        } else if let Some(spent) = self.spent(anchor, &ask.take) {
            Some(spent)
        } else if let Some(busy) = self.incident_in_the_way(anchor, &ask.take, taken) {
            Some(busy)
        } else if let Some(other) = self.streams.iter().find(|other| other.excludes(&ask.take)) {
            let until = other.until(now);
            Some(ProfileError::Busy {
                by: format!("in use by {} until {}", other.ask.who, shown(anchor, until)),
                wait: Some(until.since(now)),
            })
        } else {
            self.is_full(ask.take.class())
        };
        match refusal {
            Some(refusal) => drop(ask.reply.send(Err(refusal))),
            None => {
                if ask.take.is_capture() {
                    self.allowance.spend(now);
                }
                self.next += 1;
                let (id, phase) = (self.next, RequestPhase::Waiting);
                self.streams.push(OnDemandRequest { id, ask, asked: now, phase, out: false });
            }
        }
    }

    /// Returns an error if there are too many captures of `class`.
    fn is_full(&self, class: ProfileClass) -> Option<ProfileError> {
        let count = self.streams.iter().filter(|stream| stream.ask.take.class() == class).count();
        let (most, what) = (class.most(), class.name());
        let by = format!("{most} {what} are in progress or queued; retry later");
        (count >= most).then_some(ProfileError::Busy { by, wait: None })
    }

    fn spent(&self, anchor: TimeAnchor, take: &ProfileKind) -> Option<ProfileError> {
        let until = self.allowance.spent_until(anchor.moment).filter(|_| take.is_capture())?;
        Some(ProfileError::Spent {
            limit: self.allowance.limit(),
            until: shown(anchor, until),
            wait: until.since(anchor.moment),
        })
    }

    /// Removes the capture at index `at`. If it produced nothing, it is refunded.
    fn remove(&mut self, at: usize, came_to_nothing: bool) -> OnDemandRequest {
        let stream = self.streams.remove(at);
        if came_to_nothing && stream.ask.take.is_capture() {
            self.allowance.refund(stream.asked);
        }
        stream
    }

    fn incident_in_the_way(
        &self,
        anchor: TimeAnchor,
        take: &ProfileKind,
        taken: &[EngineInUse],
    ) -> Option<ProfileError> {
        let engine = take.engine()?;
        let taken = taken.iter().find(|taken| taken.kinds.contains(engine))?;
        let until = match taken.until {
            Some(until) => format!("until {}", shown(anchor, until)),
            None => "until its captures end".to_owned(),
        };
        let wait = taken.until.map(|until| until.since(anchor.moment));
        Some(ProfileError::Busy { by: format!("in use by {}, {until}", taken.by), wait })
    }

    /// Returns the command that must precede those of incidents: to stop a capture that uses an
    /// engine an incident needs.
    pub(crate) fn urgent_job(&mut self, taken: &[EngineInUse]) -> Option<OnDemandCommand> {
        let wanted =
            taken.iter().fold(CaptureSet::EMPTY, |wanted, taken| wanted.union(taken.kinds));
        let stream = self.streams.iter_mut().find(|stream| {
            matches!(stream.phase, RequestPhase::Running { .. })
                && stream.ask.take.engine().is_some_and(|engine| wanted.contains(engine))
        })?;
        stream.out = true;
        let engine = stream.ask.take.engine();
        let by = taken.iter().find(|taken| engine.is_some_and(|it| taken.kinds.contains(it)));
        let by = by.map_or_else(String::new, |taken| taken.by.clone());
        Some(OnDemandCommand::Stop {
            id: stream.id,
            cut_short: Some(format!("the engine went to {by}")),
        })
    }

    /// Returns the next command, or `None` if all captures are in progress. Must not be called
    /// again before [`OnDemandCaptures::done`].
    pub(crate) fn next_job(
        &mut self,
        anchor: TimeAnchor,
        taken: &[EngineInUse],
    ) -> Option<OnDemandCommand> {
        let now = anchor.moment;
        self.turn_away(anchor, taken);
        let shut = self.shut;
        let ready = |stream: &OnDemandRequest| match stream.phase {
            RequestPhase::Encoding => false,
            _ if stream.is_given_up() || shut => true,
            RequestPhase::Waiting | RequestPhase::Stopped => true,
            RequestPhase::Running { until } => until <= now,
        };
        let stream = self.streams.iter_mut().find(|stream| ready(stream))?;
        stream.out = true;
        let id = stream.id;
        Some(match stream.phase {
            RequestPhase::Running { .. } | RequestPhase::Stopped
                if stream.is_given_up() || shut =>
            {
                OnDemandCommand::Drop { id }
            }
            RequestPhase::Waiting if stream.ask.take.duration().is_some() => {
                OnDemandCommand::Start { id, take: stream.ask.take.clone() }
            }
            RequestPhase::Waiting => OnDemandCommand::Look { id, take: stream.ask.take.clone() },
            RequestPhase::Running { .. } => OnDemandCommand::Stop { id, cut_short: None },
            RequestPhase::Stopped | RequestPhase::Encoding => OnDemandCommand::Encode { id },
        })
    }

    /// Replies to clients whose engine an incident has taken while they waited, and removes
    /// requests of clients that disconnected while waiting. On shutdown, encodings are not waited
    /// for either: at low priority they may take long.
    fn turn_away(&mut self, anchor: TimeAnchor, taken: &[EngineInUse]) {
        let mut at = 0;
        while let Some(stream) = self.streams.get(at) {
            let waits = match stream.phase {
                RequestPhase::Waiting => !stream.out,
                RequestPhase::Encoding => self.shut,
                RequestPhase::Running { .. } | RequestPhase::Stopped => false,
            };
            let refusal = match waits {
                true if self.shut => Some(ProfileError::Stopped),
                true => self.incident_in_the_way(anchor, &stream.ask.take, taken),
                false => None,
            };
            if waits && (stream.is_given_up() || refusal.is_some()) {
                let stream = self.remove(at, true);
                if let Some(refusal) = refusal {
                    let _ = stream.ask.reply.send(Err(refusal));
                }
            } else {
                at += 1;
            }
        }
    }

    /// Applies the result of a command at `now`. Returns the number of bytes returned to the
    /// client, if any.
    pub(crate) fn done(&mut self, now: Moment, done: OnDemandResult) -> Option<u64> {
        let (OnDemandResult::Started { id, .. }
        | OnDemandResult::Stopped { id }
        | OnDemandResult::Encoding { id }
        | OnDemandResult::Finished { id, .. }
        | OnDemandResult::Dropped { id }) = done;
        let at = self.streams.iter().position(|stream| stream.id == id)?;
        let stream = self.streams.get_mut(at)?;
        stream.out = false;
        match done {
            OnDemandResult::Started { .. } => {
                let duration = stream.ask.take.duration().unwrap_or_default();
                stream.phase = RequestPhase::Running { until: now + duration };
                None
            }
            OnDemandResult::Stopped { .. } => {
                stream.phase = RequestPhase::Stopped;
                None
            }
            OnDemandResult::Encoding { .. } => {
                stream.phase = RequestPhase::Encoding;
                None
            }
            OnDemandResult::Finished { result, .. } => {
                let bytes = result.as_ref().ok().map(|streamed| streamed.bytes.len() as u64);
                let stream = self.remove(at, result.is_err());
                let _ = stream.ask.reply.send(result);
                bytes
            }
            OnDemandResult::Dropped { .. } => {
                let stream = self.remove(at, false);
                let stopped = ProfileError::Stopped;
                let _ = stream.ask.reply.send(Err(stopped));
                None
            }
        }
    }

    /// Returns the time at which [`OnDemandCaptures::next_job`] next has a command.
    pub(crate) fn next_expiry(&self) -> Option<Moment> {
        let until = |stream: &OnDemandRequest| match stream.phase {
            RequestPhase::Running { until } if !stream.out => Some(until),
            _ => None,
        };
        self.streams.iter().filter_map(until).min()
    }

    /// Drops all captures and rejects further requests.
    pub(crate) fn shut(&mut self) {
        self.shut = true;
    }

    pub(crate) fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    pub(crate) fn status(&self, anchor: TimeAnchor) -> Vec<StreamStatus> {
        let status = |stream: &OnDemandRequest| StreamStatus {
            take: stream.ask.take.name(),
            by: stream.ask.who.clone(),
            until: match stream.phase {
                RequestPhase::Running { until } => Some(anchor.wall_at(until)),
                RequestPhase::Waiting | RequestPhase::Stopped | RequestPhase::Encoding => None,
            },
        };
        self.streams.iter().map(status).collect()
    }
}

impl OnDemandRequest {
    /// Returns `true` if `take` cannot start while this capture exists. Unencoded data takes
    /// memory, possibly that of a whole heap; a capture with an engine releases it before encoding.
    fn excludes(&self, take: &ProfileKind) -> bool {
        let gave_back = self.phase == RequestPhase::Encoding && self.ask.take.engine().is_some();
        !gave_back && self.ask.take.excludes(take)
    }

    /// Returns the time at which it ends, or would end if it started now.
    fn until(&self, now: Moment) -> Moment {
        match self.phase {
            RequestPhase::Running { until } => until.max(now),
            RequestPhase::Waiting => now + self.ask.take.duration().unwrap_or_default(),
            RequestPhase::Stopped | RequestPhase::Encoding => now,
        }
    }
}

/// Formats a moment as wall time, to the second.
fn shown(anchor: TimeAnchor, moment: Moment) -> String {
    anchor.wall_at(moment).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests;
