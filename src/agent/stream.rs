//! Captures that are handed to whoever asked, and never meet the disk: what `/debug/pprof/` answers.
//!
//! ```text
//!  ask ──► waiting ──start──► running ──(its time is over, or an incident wants the engine)──►
//!          stopping ──stop──► stopped ──encode──► answered
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
//! Stopping and encoding are two jobs, so that an incident waits for the first and not for the second.

#![cfg_attr(not(feature = "http"), allow(dead_code, reason = "the endpoint is who asks"))]

pub(super) mod work;

use std::fmt;
use std::future::Future;
use std::pin::Pin;
use std::task::{Context, Poll};
use std::time::Duration;

use jiff::Timestamp;
use serde::Serialize;
use tokio::sync::{mpsc, oneshot};

use super::event::Event;
use crate::base::{Anchor, Bytes, Hertz, Moment};
use crate::model::{CaptureKind, CaptureSet, CpuMode};

/// How many streams may be at any stage at once. A snapshot's bytes are some hundred KiB while it waits
/// for its client to be told, so this is memory too.
const MOST: usize = 16;

/// What to capture.
#[derive(Clone, Debug)]
pub(crate) enum Take {
    /// A CPU profile; in the settings' mode and at their frequency, if none is given.
    Cpu { duration: Duration, frequency: Option<Hertz>, mode: Option<CpuMode> },
    /// A runtime trace.
    Trace { duration: Duration },
    /// The heap now.
    Heap { view: HeapView, form: Form },
    /// What the heap's profile gained in a time, sampled every `rate` bytes, if one is given.
    HeapDelta { duration: Duration, view: HeapView, rate: Option<Bytes> },
    /// The threads there are.
    Threads { view: ThreadView, form: Form },
    /// The functions at these addresses.
    Symbols(Vec<u64>),
}

/// Which of the heap profile's types is shown first.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum HeapView {
    InUse,
    Allocated,
}

/// What a list of threads is called.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ThreadView {
    /// One sample a thread: Go's `goroutine`.
    Now,
    /// One sample for all: Go's `threadcreate`.
    Created,
}

/// How it is written.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Form {
    /// As profilers read it.
    Binary,
    /// As people read it.
    Text,
    /// The same with all there is, one by one.
    Full,
}

impl Take {
    /// The one-of-a-kind engine it needs.
    pub(super) fn engine(&self) -> Option<CaptureKind> {
        match self {
            Self::Cpu { .. } => Some(CaptureKind::Cpu),
            Self::Trace { .. } => Some(CaptureKind::Trace),
            _ => None,
        }
    }

    /// How long it takes; none when it is a look at the present.
    fn duration(&self) -> Option<Duration> {
        match self {
            Self::Cpu { duration, .. }
            | Self::Trace { duration }
            | Self::HeapDelta { duration, .. } => Some(*duration),
            Self::Heap { .. } | Self::Threads { .. } | Self::Symbols(_) => None,
        }
    }

    /// Its name among those who ask for it.
    fn name(&self) -> &'static str {
        match self {
            Self::Cpu { .. } => "profile",
            Self::Trace { .. } => "trace",
            Self::Heap { view: HeapView::InUse, .. } => "heap",
            Self::Heap { view: HeapView::Allocated, .. } => "allocs",
            Self::HeapDelta { .. } => "heap delta",
            Self::Threads { view: ThreadView::Now, .. } => "goroutine",
            Self::Threads { view: ThreadView::Created, .. } => "threadcreate",
            Self::Symbols(_) => "symbol",
        }
    }

    /// Whether `self` and `other` cannot be taken at once. A delta keeps a whole snapshot in memory and may
    /// change the rate, so there is one.
    fn excludes(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::HeapDelta { .. }, Self::HeapDelta { .. }) => true,
            _ => self.engine().is_some() && self.engine() == other.engine(),
        }
    }
}

/// What was captured.
#[derive(Debug, Default)]
pub(crate) struct Streamed {
    pub(crate) bytes: Vec<u8>,
    /// Why it is shorter than was asked.
    pub(crate) cut_short: Option<String>,
}

/// Why nothing was.
#[derive(Debug, thiserror::Error)]
pub(crate) enum StreamError {
    /// The engine is taken.
    #[error("{by}")]
    Busy {
        by: String,
        /// How long it may take until it is free, if that is known.
        wait: Option<Duration>,
    },
    /// It was tried.
    #[error("{0}")]
    Failed(String),
}

/// Who asks, and how he is answered.
pub(crate) struct Ask {
    pub(crate) take: Take,
    pub(crate) who: String,
    pub(crate) reply: oneshot::Sender<Result<Streamed, StreamError>>,
}

/// A stream that was asked for. Dropping it gives it up: what runs for it is stopped at once.
#[must_use = "a stream that is dropped is given up"]
pub(crate) struct Streaming {
    answer: oneshot::Receiver<Result<Streamed, StreamError>>,
    events: mpsc::Sender<Event>,
    answered: bool,
}

impl Streaming {
    pub(super) fn new(
        answer: oneshot::Receiver<Result<Streamed, StreamError>>,
        events: mpsc::Sender<Event>,
    ) -> Self {
        Self { answer, events, answered: false }
    }
}

impl Future for Streaming {
    type Output = Result<Streamed, StreamError>;

    fn poll(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Self::Output> {
        let answer = Pin::new(&mut self.answer).poll(context);
        self.answered = answer.is_ready();
        answer.map(|answer| {
            answer.unwrap_or_else(|_| Err(StreamError::Failed(super::Error::Stopped.to_string())))
        })
    }
}

impl Drop for Streaming {
    fn drop(&mut self) {
        if !self.answered {
            self.answer.close();
            // Only wakes the loop, which sees the closed answer at its next tick in any case.
            let _ = self.events.try_send(Event::StreamGone);
        }
    }
}

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
    /// Encode that.
    Encode { id: u64 },
    /// Forget all about it.
    Drop { id: u64 },
}

/// What came of a job.
pub(super) enum Done {
    /// It runs.
    Started { id: u64, engine: Option<(CaptureKind, String)> },
    /// It has stopped, and what it saw is kept.
    Stopped { id: u64 },
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
}

struct Stream {
    id: u64,
    ask: Ask,
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
#[derive(Default)]
pub(super) struct Streams {
    streams: Vec<Stream>,
    next: u64,
    shut: bool,
}

impl Streams {
    /// Takes `ask`, or answers at once why not.
    pub(super) fn ask(&mut self, anchor: Anchor, ask: Ask, taken: &[Taken]) {
        let now = anchor.moment;
        let refusal = if self.shut {
            Some(StreamError::Failed(super::Error::Stopped.to_string()))
        } else if let Some(busy) = self.incident_in_the_way(anchor, &ask.take, taken) {
            Some(busy)
        } else if let Some(other) =
            self.streams.iter().find(|other| other.ask.take.excludes(&ask.take))
        {
            let until = other.until(now);
            Some(StreamError::Busy {
                by: format!("in use by {} until {}", other.ask.who, shown(anchor, until)),
                wait: Some(until.since(now)),
            })
        } else if self.streams.len() >= MOST {
            let by = format!("{MOST} captures are under way or wait for their turn; ask again");
            Some(StreamError::Busy { by, wait: None })
        } else {
            None
        };
        match refusal {
            Some(refusal) => drop(ask.reply.send(Err(refusal))),
            None => {
                self.next += 1;
                self.streams.push(Stream { id: self.next, ask, phase: Phase::Waiting, out: false });
            }
        }
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
            Phase::Stopped => Job::Encode { id },
        })
    }

    /// Answers those who wait for what an incident has taken meanwhile, and forgets those who went away
    /// before anything was done for them.
    fn turn_away(&mut self, anchor: Anchor, taken: &[Taken]) {
        let mut at = 0;
        while let Some(stream) = self.streams.get(at) {
            let waits = stream.phase == Phase::Waiting && !stream.out;
            let refusal = match waits {
                true if self.shut => Some(StreamError::Failed(super::Error::Stopped.to_string())),
                true => self.incident_in_the_way(anchor, &stream.ask.take, taken),
                false => None,
            };
            if waits && (stream.is_given_up() || refusal.is_some()) {
                let stream = self.streams.remove(at);
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
            Done::Finished { result, .. } => {
                let bytes = result.as_ref().ok().map(|streamed| streamed.bytes.len() as u64);
                let stream = self.streams.remove(at);
                let _ = stream.ask.reply.send(result);
                bytes
            }
            Done::Dropped { .. } => {
                let stream = self.streams.remove(at);
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
                Phase::Waiting | Phase::Stopped => None,
            },
        };
        self.streams.iter().map(status).collect()
    }
}

impl Stream {
    /// When it is over, or would be if it began now.
    fn until(&self, now: Moment) -> Moment {
        match self.phase {
            Phase::Running { until } => until.max(now),
            Phase::Waiting => now + self.ask.take.duration().unwrap_or_default(),
            Phase::Stopped => now,
        }
    }
}

/// A moment as people read it, to the second.
fn shown(anchor: Anchor, moment: Moment) -> impl fmt::Display {
    anchor.wall_at(moment).strftime("%Y-%m-%dT%H:%M:%SZ").to_string()
}

#[cfg(test)]
mod tests;
