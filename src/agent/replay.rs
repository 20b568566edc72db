//! What the rules would have done: a history of vitals, shown to the deciding half of the agent.
//!
//! It is the same [`Decider`] the agent drives, with a capture thread that takes the time it is told to
//! and writes nothing. At the end of the history the process is gone, as after an OOM kill: what was not
//! written by then is not there.

use std::time::Duration;

use jiff::Timestamp;

use super::budget::State;
use super::decide::Decider;
use super::incidents::{Done, Job};
use crate::base::{Anchor, ClockReading, IncidentId, Moment};
use crate::config::Settings;
use crate::model::{CaptureKind, CaptureSet, Vitals};

/// How long the capture thread takes.
#[derive(Clone, Copy, Debug)]
pub struct Pace {
    /// To make a directory, or bring a manifest up to date.
    pub manifest: Duration,
    /// To take and write one file.
    pub file: Duration,
}

impl Default for Pace {
    /// A slow disk: 50 ms, and half a second a file.
    fn default() -> Self {
        Self { manifest: Duration::from_millis(50), file: Duration::from_millis(500) }
    }
}

/// A time at which the capture thread took evidence.
#[derive(Clone, Debug, PartialEq)]
pub struct Taken {
    /// The incident, counted from 0 in the order they were opened.
    pub incident: usize,
    /// When.
    pub at: Moment,
    /// What: a snapshot of these, or these began to be recorded.
    pub kinds: CaptureSet,
    /// When the first file of it was on disk; none when the history ended before.
    pub written: Option<Moment>,
}

/// What came of a replay.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Each incident's name, in the order they were opened.
    pub incidents: Vec<String>,
    /// The captures, in the order they were taken.
    pub taken: Vec<Taken>,
    /// Each rule that fired, when, and why.
    pub fired: Vec<(Moment, String, String)>,
}

impl Outcome {
    /// The captures that were on disk before the end.
    pub fn written(&self) -> impl Iterator<Item = &Taken> {
        self.taken.iter().filter(|taken| taken.written.is_some())
    }
}

/// One process of several that write into the same directory, each after the one before it has died.
pub struct ProcessHistory<'h> {
    /// Its vitals. Moments that are earlier than those of the process before it mean that the machine was
    /// booted in between.
    pub vitals: Box<dyn Iterator<Item = Vitals> + 'h>,
    /// The wall clock, which may be set while the process runs.
    pub wall: Box<dyn Fn(Moment) -> Timestamp + 'h>,
}

/// Shows `history` to the rules of `settings`. Each of its vitals is a tick, whatever
/// `settings.interval` says.
pub fn replay(
    settings: &Settings,
    pace: Pace,
    history: impl IntoIterator<Item = Vitals>,
) -> Outcome {
    let wall = |now: Moment| Timestamp::from_nanosecond(now.as_nanos().into()).unwrap_or_default();
    replay_one(settings, pace, (history.into_iter(), &wall), &mut None)
}

/// Shows the histories of `processes` to the rules of `settings`, one process after the other. Each continues
/// from what the ones before it saved of their budgets.
pub fn replay_restarts<'h>(
    settings: &Settings,
    pace: Pace,
    processes: impl IntoIterator<Item = ProcessHistory<'h>>,
) -> Vec<Outcome> {
    let mut state = None;
    let run =
        |it: ProcessHistory<'h>| replay_one(settings, pace, (it.vitals, &*it.wall), &mut state);
    processes.into_iter().map(run).collect()
}

fn replay_one(
    settings: &Settings,
    pace: Pace,
    (history, wall): (impl Iterator<Item = Vitals>, &dyn Fn(Moment) -> Timestamp),
    state: &mut Option<State>,
) -> Outcome {
    let mut replay = Replay {
        decider: Decider::new(settings.rules.clone(), settings.budget.clone()),
        pace,
        wall,
        saved: None,
        ids: Vec::new(),
        under_way: None,
        outcome: Outcome::default(),
    };
    let mut is_first = true;
    for vitals in history {
        if std::mem::take(&mut is_first)
            && let Some(state) = state.take()
        {
            let anchor = replay.anchor(vitals.at);
            let state = state.rebase(&ClockReading::new(anchor));
            replay.decider.restore(anchor, &state);
            replay.saved = Some(state);
        }
        replay.tick(&vitals);
    }
    *state = replay.saved;
    replay.outcome
}

struct Replay<'w> {
    decider: Decider,
    pace: Pace,
    wall: &'w dyn Fn(Moment) -> Timestamp,
    /// What is in `state.json`.
    saved: Option<State>,
    /// The incidents, in the order they were opened.
    ids: Vec<IncidentId>,
    under_way: Option<UnderWay>,
    outcome: Outcome,
}

/// A job of the capture thread.
struct UnderWay {
    end: Moment,
    done: Done,
    /// The captures of which it writes the first file.
    writes: Vec<usize>,
}

impl Replay<'_> {
    fn anchor(&self, moment: Moment) -> Anchor {
        Anchor { moment, wall: (self.wall)(moment), suspended: Duration::ZERO }
    }

    fn tick(&mut self, vitals: &Vitals) {
        let now = vitals.at;
        // The jobs that end before this tick, each begun when the one before it had ended.
        while let Some(job) = self.under_way.take_if(|job| job.end <= now) {
            for written in job.writes {
                if let Some(taken) = self.outcome.taken.get_mut(written) {
                    taken.written = Some(job.end);
                }
            }
            self.decider.done(job.end, job.done);
            self.decider.expire(job.end);
            self.under_way = self.begin(job.end);
        }
        let wall = || (self.wall)(now);
        for fired in self.decider.observe(now, vitals, || IncidentId::new(wall()), wall) {
            self.outcome.fired.push((now, fired.rule, fired.text));
        }
        self.decider.expire(now);
        if self.under_way.is_none() {
            self.under_way = self.begin(now);
        }
    }

    /// Begins the next job.
    fn begin(&mut self, now: Moment) -> Option<UnderWay> {
        let Pace { manifest, file } = self.pace;
        let job = self.decider.next_job(now)?;
        // As the agent does: before the job.
        if let Some(state) = self.decider.take_state(self.anchor(now)) {
            self.saved = Some(state);
        }
        let (took, done, writes) = match job {
            Job::Open { id, name, .. } => {
                self.ids.push(id);
                self.outcome.incidents.push(name);
                (manifest, Done::Opened { id, ok: true }, Vec::new())
            }
            Job::Start { id, kinds } => {
                let done = Done::Started { id, asked: kinds, running: kinds };
                let taken = self.take(id, now, kinds);
                // A snapshot is written at the start, a recording at the stop.
                match kinds.iter().any(CaptureKind::is_snapshot) {
                    true => (file, done, vec![taken]),
                    false => (manifest, done, Vec::new()),
                }
            }
            // The files of the service's own are no part of what is replayed.
            Job::Collect { id, .. } | Job::Gather { id, .. } => {
                (manifest, Done::Collecting { id, until: None }, Vec::new())
            }
            Job::Again { id, kinds, .. } => {
                let taken = self.take(id, now, kinds);
                (file, Done::Again { id }, vec![taken])
            }
            Job::Stop { id, kinds } => {
                let files = u32::try_from(kinds.iter().count()).unwrap_or(u32::MAX);
                let incident = self.incident(id);
                let waiting = |(_, taken): &(usize, &Taken)| {
                    taken.incident == incident && taken.written.is_none()
                };
                let written = self.outcome.taken.iter().enumerate().filter(waiting);
                let written = written.map(|(at, _)| at).collect();
                (file.saturating_mul(files), Done::Stopped { id, kinds }, written)
            }
            Job::Note { id, .. } => (manifest, Done::Noted { id }, Vec::new()),
            Job::Close { id, .. } => (manifest, Done::Closed { id, ok: true }, Vec::new()),
        };
        Some(UnderWay { end: now + took, done, writes })
    }

    fn take(&mut self, id: IncidentId, at: Moment, kinds: CaptureSet) -> usize {
        let incident = self.incident(id);
        self.outcome.taken.push(Taken { incident, at, kinds, written: None });
        self.outcome.taken.len() - 1
    }

    fn incident(&self, id: IncidentId) -> usize {
        self.ids.iter().position(|known| *known == id).unwrap_or_default()
    }
}
