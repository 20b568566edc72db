//! Captures that are handed to whoever asked, and never meet the disk: what `/debug/pprof/` answers.
//!
//! ```text
//!  ask ──► waiting ──start──► running ──(its time is over, or an incident wants the engine)──►
//!          stopping ──stop──► stopped ──encode──► encoding ──► answered
//!  at any point: nobody waits for the answer any more ──drop──► gone
//! ```
//!
//! The state machine of the loop, in the manner of [`incidents`](super::incidents): no thread, no clock,
//! no file; it hands out one [`Job`] at a time. The capture thread's half is
//! [`work`].
//!
//! Who goes first: an incident. The engines of CPU profiles and traces are one of a kind, and evidence of
//! an incident cannot be taken again, so an incident that wants one cuts a running stream short; its
//! client gets what was recorded until then, whole, and is told. A continuous profiler that scrapes all
//! the time therefore never keeps an incident from its profile. Among streams the first one stays and the
//! others are told who has the engine and until when.
//!
//! Stopping and encoding are two steps, so that an incident waits for the first and not for the second: the
//! bytes are made by a thread of their own at low priority ([`encode`]), which the service's threads come
//! before.

#![cfg_attr(not(feature = "http"), allow(dead_code, reason = "the endpoint is who asks"))]

pub(super) mod allowance;
mod ask;
mod encode;
mod take;
pub(super) mod work;

use jiff::Timestamp;
use serde::Serialize;

use crate::base::{Anchor, Moment};
use crate::model::{CaptureKind, CaptureSet};
use allowance::Allowance;
pub(crate) use ask::{Ask, StreamError, Streamed, Streaming};
use take::Class;
pub(crate) use take::{Form, HeapView, Take, ThreadView};

/// Streams at any stage at once: the sum of what each [`Class`] may have. The bytes of a snapshot are some
/// hundred KiB until its client has them, so this bounds memory too.
const MOST: usize = Class::Timed.most() + Class::Snapshot.most() + Class::Symbols.most();

/// A stream, for `status`.
#[derive(Clone, Debug, PartialEq, Serialize)]
pub struct StreamStatus {
    /// What is captured.
    pub take: &'static str,
    /// For whom.
    pub by: String,
    /// Until when, once it runs.
    pub until: Option<Timestamp>,
}

/// The next thing for the capture thread to do.
#[derive(Clone, Debug)]
pub(super) enum Job {
    /// A look at the present, from the beginning to the end.
    Look { id: u64, take: Take },
    /// Start what takes time.
    Start { id: u64, take: Take },
    /// Stop it and keep what it saw.
    Stop { id: u64, cut_short: Option<String> },
    /// Have that encoded.
    Encode { id: u64 },
    /// Forget all about it.
    Drop { id: u64 },
}

impl Job {
    /// Returns what it does, as part of a sentence.
    pub(super) fn words(&self) -> &'static str {
        match self {
            Self::Look { .. } => "taking a profile or dump for a client",
            Self::Start { .. } => "starting a profile for a client",
            Self::Stop { .. } => "stopping a profile for a client",
            Self::Encode { .. } => "handing a client's profile on to be encoded",
            Self::Drop { .. } => "giving up a client's profile",
        }
    }

    /// Returns the stream it is about.
    pub(super) fn id(&self) -> u64 {
        match self {
            Self::Look { id, .. }
            | Self::Start { id, .. }
            | Self::Stop { id, .. }
            | Self::Encode { id }
            | Self::Drop { id } => *id,
        }
    }
}

/// What came of a job.
pub(super) enum Done {
    /// It runs.
    Started { id: u64, engine: Option<(CaptureKind, String)> },
    /// It has stopped, and what it saw is kept.
    Stopped { id: u64 },
    /// What it saw is being encoded.
    Encoding { id: u64 },
    /// It is finished, well or not, and nothing of it is kept.
    Finished { id: u64, result: Result<Streamed, StreamError> },
    /// It is forgotten.
    Dropped { id: u64 },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    Waiting,
    Running { until: Moment },
    Stopped,
    Encoding,
}

struct Stream {
    id: u64,
    ask: Ask,
    asked: Moment,
    phase: Phase,
    /// Its job is with the capture thread.
    out: bool,
}

impl Stream {
    fn is_given_up(&self) -> bool {
        self.ask.reply.is_closed()
    }
}

/// An engine that incidents have or want.
pub(super) struct Taken {
    pub(super) kinds: CaptureSet,
    /// By what, in words.
    pub(super) by: String,
    /// When its captures are over, as far as it is known.
    pub(super) until: Option<Moment>,
}

/// The streams there are.
pub(super) struct Streams {
    streams: Vec<Stream>,
    pub(super) allowance: Allowance,
    next: u64,
    shut: bool,
}

impl Streams {
    /// None yet; so many may be handed over in a day.
    pub(super) fn new(per_day: usize) -> Self {
        Self { streams: Vec::new(), allowance: Allowance::new(per_day), next: 0, shut: false }
    }

    /// Takes `ask`, or answers at once why not.
    pub(super) fn ask(&mut self, anchor: Anchor, ask: Ask, taken: &[Taken]) {
        let now = anchor.moment;
        let refusal = if self.shut {
            Some(StreamError::Failed(super::Error::Stopped.to_string()))
        } else if let Some(spent) = self.spent(anchor, &ask.take) {
            Some(spent)
        } else if let Some(busy) = self.incident_in_the_way(anchor, &ask.take, taken) {
            Some(busy)
        } else if let Some(other) = self.streams.iter().find(|other| other.excludes(&ask.take)) {
            let until = other.until(now);
            Some(StreamError::Busy {
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
                let (id, phase) = (self.next, Phase::Waiting);
                self.streams.push(Stream { id, ask, asked: now, phase, out: false });
            }
        }
    }

    /// The refusal of one more of `class`.
    fn is_full(&self, class: Class) -> Option<StreamError> {
        let count = self.streams.iter().filter(|stream| stream.ask.take.class() == class).count();
        let (most, what) = (class.most(), class.name());
        let by = format!("{most} {what} are in progress or queued; retry later");
        (count >= most).then_some(StreamError::Busy { by, wait: None })
    }

    fn spent(&self, anchor: Anchor, take: &Take) -> Option<StreamError> {
        let until = self.allowance.spent_until(anchor.moment).filter(|_| take.is_capture())?;
        Some(StreamError::Spent {
            limit: self.allowance.limit(),
            until: shown(anchor, until),
            wait: until.since(anchor.moment),
        })
    }

    /// Takes the stream at `at` out; one that came to nothing is not counted.
    fn remove(&mut self, at: usize, came_to_nothing: bool) -> Stream {
        let stream = self.streams.remove(at);
        if came_to_nothing && stream.ask.take.is_capture() {
            self.allowance.refund(stream.asked);
        }
        stream
    }

    fn incident_in_the_way(
        &self,
        anchor: Anchor,
        take: &Take,
        taken: &[Taken],
    ) -> Option<StreamError> {
        let engine = take.engine()?;
        let taken = taken.iter().find(|taken| taken.kinds.contains(engine))?;
        let until = match taken.until {
            Some(until) => format!("until {}", shown(anchor, until)),
            None => "until its captures end".to_owned(),
        };
        let wait = taken.until.map(|until| until.since(anchor.moment));
        Some(StreamError::Busy { by: format!("in use by {}, {until}", taken.by), wait })
    }

    /// A job that must be done before `incidents` start what they want: stopping a stream in their way.
    pub(super) fn urgent_job(&mut self, taken: &[Taken]) -> Option<Job> {
        let wanted =
            taken.iter().fold(CaptureSet::EMPTY, |wanted, taken| wanted.union(taken.kinds));
        let stream = self.streams.iter_mut().find(|stream| {
            matches!(stream.phase, Phase::Running { .. })
                && stream.ask.take.engine().is_some_and(|engine| wanted.contains(engine))
        })?;
        stream.out = true;
        let engine = stream.ask.take.engine();
        let by = taken.iter().find(|taken| engine.is_some_and(|it| taken.kinds.contains(it)));
        let by = by.map_or_else(String::new, |taken| taken.by.clone());
        Some(Job::Stop { id: stream.id, cut_short: Some(format!("the engine went to {by}")) })
    }

    /// The next thing to do; none when all that is under way needs time. Ask again only after its
    /// [`Streams::done`].
    pub(super) fn next_job(&mut self, anchor: Anchor, taken: &[Taken]) -> Option<Job> {
        let now = anchor.moment;
        self.turn_away(anchor, taken);
        let shut = self.shut;
        let ready = |stream: &Stream| match stream.phase {
            Phase::Encoding => false,
            _ if stream.is_given_up() || shut => true,
            Phase::Waiting | Phase::Stopped => true,
            Phase::Running { until } => until <= now,
        };
        let stream = self.streams.iter_mut().find(|stream| ready(stream))?;
        stream.out = true;
        let id = stream.id;
        Some(match stream.phase {
            Phase::Running { .. } | Phase::Stopped if stream.is_given_up() || shut => {
                Job::Drop { id }
            }
            Phase::Waiting if stream.ask.take.duration().is_some() => {
                Job::Start { id, take: stream.ask.take.clone() }
            }
            Phase::Waiting => Job::Look { id, take: stream.ask.take.clone() },
            Phase::Running { .. } => Job::Stop { id, cut_short: None },
            Phase::Stopped | Phase::Encoding => Job::Encode { id },
        })
    }

    /// Answers those who wait for what an incident has taken meanwhile, and forgets those who went away
    /// before anything was done for them. At the end nobody waits for an encoding either: at low priority it
    /// may take long.
    fn turn_away(&mut self, anchor: Anchor, taken: &[Taken]) {
        let mut at = 0;
        while let Some(stream) = self.streams.get(at) {
            let waits = match stream.phase {
                Phase::Waiting => !stream.out,
                Phase::Encoding => self.shut,
                Phase::Running { .. } | Phase::Stopped => false,
            };
            let refusal = match waits {
                true if self.shut => Some(StreamError::Failed(super::Error::Stopped.to_string())),
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

    /// Hears what came of a job at `now`. Returns how many bytes were handed over, if some were.
    pub(super) fn done(&mut self, now: Moment, done: Done) -> Option<u64> {
        let (Done::Started { id, .. }
        | Done::Stopped { id }
        | Done::Encoding { id }
        | Done::Finished { id, .. }
        | Done::Dropped { id }) = done;
        let at = self.streams.iter().position(|stream| stream.id == id)?;
        let stream = self.streams.get_mut(at)?;
        stream.out = false;
        match done {
            Done::Started { .. } => {
                let duration = stream.ask.take.duration().unwrap_or_default();
                stream.phase = Phase::Running { until: now + duration };
                None
            }
            Done::Stopped { .. } => {
                stream.phase = Phase::Stopped;
                None
            }
            Done::Encoding { .. } => {
                stream.phase = Phase::Encoding;
                None
            }
            Done::Finished { result, .. } => {
                let bytes = result.as_ref().ok().map(|streamed| streamed.bytes.len() as u64);
                let stream = self.remove(at, result.is_err());
                let _ = stream.ask.reply.send(result);
                bytes
            }
            Done::Dropped { .. } => {
                let stream = self.remove(at, false);
                let stopped = StreamError::Failed(super::Error::Stopped.to_string());
                let _ = stream.ask.reply.send(Err(stopped));
                None
            }
        }
    }

    /// When [`Streams::next_job`] has something to do next.
    pub(super) fn next_expiry(&self) -> Option<Moment> {
        let until = |stream: &Stream| match stream.phase {
            Phase::Running { until } if !stream.out => Some(until),
            _ => None,
        };
        self.streams.iter().filter_map(until).min()
    }

    /// Gives all of them up, and takes no more.
    pub(super) fn shut(&mut self) {
        self.shut = true;
    }

    pub(super) fn is_empty(&self) -> bool {
        self.streams.is_empty()
    }

    /// The streams, for `status`.
    pub(super) fn status(&self, anchor: Anchor) -> Vec<StreamStatus> {
        let status = |stream: &Stream| StreamStatus {
            take: stream.ask.take.name(),
            by: stream.ask.who.clone(),
            until: match stream.phase {
                Phase::Running { until } => Some(anchor.wall_at(until)),
                Phase::Waiting | Phase::Stopped | Phase::Encoding => None,
            },
        };
        self.streams.iter().map(status).collect()
    }
}

impl Stream {
    /// Whether `take` has to wait for it. What it saw is memory until it is encoded, and may be a whole
    /// heap's; its engine is free before.
    fn excludes(&self, take: &Take) -> bool {
        let gave_back = self.phase == Phase::Encoding && self.ask.take.engine().is_some();
        !gave_back && self.ask.take.excludes(take)
    }

    /// When it is over, or would be if it began now.
    fn until(&self, now: Moment) -> Moment {
        match self.phase {
            Phase::Running { until } => until.max(now),
            Phase::Waiting => now + self.ask.take.duration().unwrap_or_default(),
            Phase::Stopped | Phase::Encoding => now,
        }
    }
}

/// A moment as people read it, to the second.
fn shown(anchor: Anchor, moment: Moment) -> String {
    anchor.wall_at(moment).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests;
