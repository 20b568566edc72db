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
    pub manifest_time: Duration,
    /// Time to take and write one artifact.
    pub artifact_time: Duration,
}

impl Default for ReplayTiming {
    /// Returns the timing of a slow disk: 50 ms, and half a second per artifact.
    fn default() -> Self {
        Self { manifest_time: Duration::from_millis(50), artifact_time: Duration::from_millis(500) }
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
    pub written_at: Option<Moment>,
}

/// Result of a replay.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct ReplayResult {
    /// Names of the incidents, in the order of opening.
    pub incidents: Vec<String>,
    /// Captures, in the order they were taken.
    pub captures: Vec<ReplayedCapture>,
    /// Firings of rules: time, rule and reason.
    pub fired: Vec<(Moment, String, String)>,
}

impl ReplayResult {
    /// Returns the captures that were on disk before the end.
    pub fn written_captures(&self) -> impl Iterator<Item = &ReplayedCapture> {
        self.captures.iter().filter(|capture| capture.written_at.is_some())
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
    timing: ReplayTiming,
    history: impl IntoIterator<Item = Vitals>,
) -> ReplayResult {
    let wall = |now: Moment| Timestamp::from_nanosecond(now.as_nanos().into()).unwrap_or_default();
    replay_process(settings, timing, history.into_iter(), &wall, &mut None)
}

/// Replays the histories of several processes in sequence. Each continues from the budgets saved by
/// the previous ones.
pub fn replay_restarts<'h>(
    settings: &Settings,
    timing: ReplayTiming,
    processes: impl IntoIterator<Item = ProcessHistory<'h>>,
) -> Vec<ReplayResult> {
    let mut state = None;
    let run = |process: ProcessHistory<'h>| {
        replay_process(settings, timing, process.vitals, &*process.wall, &mut state)
    };
    processes.into_iter().map(run).collect()
}

fn replay_process(
    settings: &Settings,
    timing: ReplayTiming,
    history: impl Iterator<Item = Vitals>,
    wall: &dyn Fn(Moment) -> Timestamp,
    state: &mut Option<SavedState>,
) -> ReplayResult {
    let mut replay = ReplayRun {
        decider: Decider::new(settings.rules.clone(), settings.budget.clone()),
        timing,
        wall,
        saved_state: None,
        incident_ids: Vec::new(),
        running_command: None,
        result: ReplayResult::default(),
    };
    let mut is_first = true;
    for vitals in history {
        if std::mem::take(&mut is_first)
            && let Some(state) = state.take()
        {
            let anchor = replay.anchor(vitals.at);
            let state = state.rebase(&ClockReading::new(anchor));
            replay.decider.restore(anchor, &state);
            replay.saved_state = Some(state);
        }
        replay.tick(&vitals);
    }
    *state = replay.saved_state;
    replay.result
}

struct ReplayRun<'w> {
    decider: Decider,
    timing: ReplayTiming,
    wall: &'w dyn Fn(Moment) -> Timestamp,
    /// Contents of `state.json`.
    saved_state: Option<SavedState>,
    /// Incidents, in the order of opening.
    incident_ids: Vec<IncidentId>,
    running_command: Option<RunningCommand>,
    result: ReplayResult,
}

/// A command being performed by the simulated capture thread.
struct RunningCommand {
    end: Moment,
    result: CommandResult,
    /// Captures whose first artifact is written by this command.
    captures: Vec<usize>,
}

impl ReplayRun<'_> {
    fn anchor(&self, moment: Moment) -> TimeAnchor {
        TimeAnchor { moment, wall: (self.wall)(moment), suspended: Duration::ZERO }
    }

    fn tick(&mut self, vitals: &Vitals) {
        let now = vitals.at;
        // Completes the commands that end before this tick. Each starts when the previous one ends.
        while let Some(command) = self.running_command.take_if(|command| command.end <= now) {
            for index in command.captures {
                if let Some(capture) = self.result.captures.get_mut(index) {
                    capture.written_at = Some(command.end);
                }
            }
            self.decider.apply_result(command.end, command.result);
            self.decider.expire(command.end);
            self.running_command = self.start_next_command(command.end);
        }
        let wall = || (self.wall)(now);
        for fired in self.decider.evaluate(now, vitals, || IncidentId::new(wall()), wall) {
            self.result.fired.push((now, fired.rule, fired.text));
        }
        self.decider.expire(now);
        if self.running_command.is_none() {
            self.running_command = self.start_next_command(now);
        }
    }

    fn start_next_command(&mut self, now: Moment) -> Option<RunningCommand> {
        let ReplayTiming { manifest_time: manifest, artifact_time: file } = self.timing;
        let command = self.decider.next_command(now)?;
        // Saved before the command, as the agent does.
        if let Some(state) = self.decider.take_state(self.anchor(now)) {
            self.saved_state = Some(state);
        }
        let (duration, result, captures) = match command {
            IncidentCommand::Open { id, name, .. } => {
                self.incident_ids.push(id);
                self.result.incidents.push(name);
                (manifest, CommandResult::Opened { id, ok: true }, Vec::new())
            }
            IncidentCommand::Start { id, kinds } => {
                let result = CommandResult::Started { id, requested: kinds, running: kinds };
                let index = self.record_capture(id, now, kinds);
                // A snapshot is written at the start, a recording at the stop.
                match kinds.iter().any(CaptureKind::is_snapshot) {
                    true => (file, result, vec![index]),
                    false => (manifest, result, Vec::new()),
                }
            }
            // Custom collectors are not replayed.
            IncidentCommand::StartCollectors { id, .. }
            | IncidentCommand::FinishCollectors { id, .. } => {
                (manifest, CommandResult::Collecting { id, deadline: None }, Vec::new())
            }
            IncidentCommand::Recapture { id, kinds, .. } => {
                let index = self.record_capture(id, now, kinds);
                (file, CommandResult::Recaptured { id }, vec![index])
            }
            IncidentCommand::Stop { id, kinds } => {
                let files = u32::try_from(kinds.iter().count()).unwrap_or(u32::MAX);
                let incident = self.incident_index(id);
                let is_unwritten = |(_, capture): &(usize, &ReplayedCapture)| {
                    capture.incident == incident && capture.written_at.is_none()
                };
                let written = self.result.captures.iter().enumerate().filter(is_unwritten);
                let written = written.map(|(at, _)| at).collect();
                (file.saturating_mul(files), CommandResult::Stopped { id, kinds }, written)
            }
            IncidentCommand::UpdateManifest { id, .. } => {
                (manifest, CommandResult::ManifestUpdated { id }, Vec::new())
            }
            IncidentCommand::Close { id, .. } => {
                (manifest, CommandResult::Closed { id, ok: true }, Vec::new())
            }
        };
        Some(RunningCommand { end: now + duration, result, captures })
    }

    fn record_capture(&mut self, id: IncidentId, at: Moment, kinds: CaptureSet) -> usize {
        let incident = self.incident_index(id);
        self.result.captures.push(ReplayedCapture { incident, at, kinds, written_at: None });
        self.result.captures.len() - 1
    }

    fn incident_index(&self, id: IncidentId) -> usize {
        self.incident_ids.iter().position(|known| *known == id).unwrap_or_default()
    }
}
