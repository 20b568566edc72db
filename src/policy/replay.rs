//! Replay of recorded vitals against rules.
//!
//! A replay uses the same [`Decider`] as the agent, with a simulated capture thread that takes a
//! given time and writes nothing. At the end of the history the process is considered dead, as
//! after an OOM kill: artifacts not written by then do not exist.

use std::time::Duration;

use jiff::Timestamp;

use super::incidents::{CommandResult, IncidentCommand};
use crate::base::{ClockReading, IncidentId, Moment, TimeAnchor};
use crate::config::Settings;
use crate::model::{CaptureKind, CaptureSet, Vitals};
use crate::policy::decider::Decider;
use crate::policy::incident_budget::SavedState;

/// Timing of the simulated capture thread.
#[derive(Clone, Copy, Debug)]
pub struct ReplayTiming {
    /// Time to create a directory or update a manifest.
    pub manifest: Duration,
    /// Time to take and write one artifact.
    pub file: Duration,
}

impl Default for ReplayTiming {
    /// Returns the timing of a slow disk: 50 ms, and half a second per artifact.
    fn default() -> Self {
        Self { manifest: Duration::from_millis(50), file: Duration::from_millis(500) }
    }
}

/// Evidence taken by the simulated capture thread.
#[derive(Clone, Debug, PartialEq)]
pub struct ReplayedCapture {
    /// Index of the incident, in the order of opening.
    pub incident: usize,
    /// Time at which the evidence was taken.
    pub at: Moment,
    /// Kinds of which a snapshot was taken, or whose recording started.
    pub kinds: CaptureSet,
    /// Time at which its first artifact was on disk, or `None` if the history ended before.
    pub written: Option<Moment>,
}

/// Result of a replay.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Outcome {
    /// Names of the incidents, in the order of opening.
    pub incidents: Vec<String>,
    /// Captures, in the order they were taken.
    pub taken: Vec<ReplayedCapture>,
    /// Firings of rules: time, rule and reason.
    pub fired: Vec<(Moment, String, String)>,
}

impl Outcome {
    /// Returns the captures that were on disk before the end.
    pub fn written(&self) -> impl Iterator<Item = &ReplayedCapture> {
        self.taken.iter().filter(|taken| taken.written.is_some())
    }
}

/// One of several processes that use the same directory in sequence, each started after the
/// previous one died.
pub struct ProcessHistory<'h> {
    /// Vitals of the process. Moments earlier than those of the previous process mean that the
    /// machine was rebooted in between.
    pub vitals: Box<dyn Iterator<Item = Vitals> + 'h>,
    /// Wall clock, which may be set while the process runs.
    pub wall: Box<dyn Fn(Moment) -> Timestamp + 'h>,
}

/// Replays `history` against the rules of `settings`. Each of the vitals is a tick, regardless of
/// `settings.interval`.
pub fn replay(
    settings: &Settings,
    pace: ReplayTiming,
    history: impl IntoIterator<Item = Vitals>,
) -> Outcome {
    let wall = |now: Moment| Timestamp::from_nanosecond(now.as_nanos().into()).unwrap_or_default();
    replay_one(settings, pace, (history.into_iter(), &wall), &mut None)
}

/// Replays the histories of several processes in sequence. Each continues from the budgets saved by
/// the previous ones.
pub fn replay_restarts<'h>(
    settings: &Settings,
    pace: ReplayTiming,
    processes: impl IntoIterator<Item = ProcessHistory<'h>>,
) -> Vec<Outcome> {
    let mut state = None;
    let run =
        |it: ProcessHistory<'h>| replay_one(settings, pace, (it.vitals, &*it.wall), &mut state);
    processes.into_iter().map(run).collect()
}

fn replay_one(
    settings: &Settings,
    pace: ReplayTiming,
    (history, wall): (impl Iterator<Item = Vitals>, &dyn Fn(Moment) -> Timestamp),
    state: &mut Option<SavedState>,
) -> Outcome {
    let mut replay = ReplayRun {
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

struct ReplayRun<'w> {
    decider: Decider,
    pace: ReplayTiming,
    wall: &'w dyn Fn(Moment) -> Timestamp,
    /// Contents of `state.json`.
    saved: Option<SavedState>,
    /// Incidents, in the order of opening.
    ids: Vec<IncidentId>,
    under_way: Option<UnderWay>,
    outcome: Outcome,
}

/// A command being performed by the simulated capture thread.
struct UnderWay {
    end: Moment,
    done: CommandResult,
    /// Captures whose first artifact is written by this command.
    writes: Vec<usize>,
}

impl ReplayRun<'_> {
    fn anchor(&self, moment: Moment) -> TimeAnchor {
        TimeAnchor { moment, wall: (self.wall)(moment), suspended: Duration::ZERO }
    }

    fn tick(&mut self, vitals: &Vitals) {
        let now = vitals.at;
        // Completes the commands that end before this tick. Each starts when the previous one ends.
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

    fn begin(&mut self, now: Moment) -> Option<UnderWay> {
        let ReplayTiming { manifest, file } = self.pace;
        let job = self.decider.next_job(now)?;
        // Saved before the command, as the agent does.
        if let Some(state) = self.decider.take_state(self.anchor(now)) {
            self.saved = Some(state);
        }
        let (took, done, writes) = match job {
            IncidentCommand::Open { id, name, .. } => {
                self.ids.push(id);
                self.outcome.incidents.push(name);
                (manifest, CommandResult::Opened { id, ok: true }, Vec::new())
            }
            IncidentCommand::Start { id, kinds } => {
                let done = CommandResult::Started { id, asked: kinds, running: kinds };
                let taken = self.take(id, now, kinds);
                // A snapshot is written at the start, a recording at the stop.
                match kinds.iter().any(CaptureKind::is_snapshot) {
                    true => (file, done, vec![taken]),
                    false => (manifest, done, Vec::new()),
                }
            }
            // Custom collectors are not replayed.
            IncidentCommand::Collect { id, .. } | IncidentCommand::Gather { id, .. } => {
                (manifest, CommandResult::Collecting { id, until: None }, Vec::new())
            }
            IncidentCommand::Again { id, kinds, .. } => {
                let taken = self.take(id, now, kinds);
                (file, CommandResult::Again { id }, vec![taken])
            }
            IncidentCommand::Stop { id, kinds } => {
                let files = u32::try_from(kinds.iter().count()).unwrap_or(u32::MAX);
                let incident = self.incident(id);
                let waiting = |(_, taken): &(usize, &ReplayedCapture)| {
                    taken.incident == incident && taken.written.is_none()
                };
                let written = self.outcome.taken.iter().enumerate().filter(waiting);
                let written = written.map(|(at, _)| at).collect();
                (file.saturating_mul(files), CommandResult::Stopped { id, kinds }, written)
            }
            IncidentCommand::Note { id, .. } => (manifest, CommandResult::Noted { id }, Vec::new()),
            IncidentCommand::Close { id, .. } => {
                (manifest, CommandResult::Closed { id, ok: true }, Vec::new())
            }
        };
        Some(UnderWay { end: now + took, done, writes })
    }

    fn take(&mut self, id: IncidentId, at: Moment, kinds: CaptureSet) -> usize {
        let incident = self.incident(id);
        self.outcome.taken.push(ReplayedCapture { incident, at, kinds, written: None });
        self.outcome.taken.len() - 1
    }

    fn incident(&self, id: IncidentId) -> usize {
        self.ids.iter().position(|known| *known == id).unwrap_or_default()
    }
}
