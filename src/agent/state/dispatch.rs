//! Dispatch of commands to the capture thread.

use crate::capture::messages::CaptureCommand;
use crate::capture::messages::OnDemandTask;
use crate::policy::on_demand::OnDemandResult;
use std::sync::Arc;
use std::sync::mpsc::TrySendError;
use std::time::Duration;

use crate::agent::Error;
use crate::agent::history::row;
use crate::agent::state::AgentState;
use crate::base::{Bytes, TimeAnchor, warnings};
use crate::capture::messages::{IncidentTask, IncidentTaskResult, TaskStats};
use crate::model::{Limits, Vitals};
use crate::os;
use crate::policy::incident_budget::SavedState;
use crate::policy::incidents::IncidentCommand;
use crate::policy::on_demand::{EngineInUse, ProfileError};

/// Duration of a command above which `/status` reports it.
const LONG_TASK: Duration = Duration::from_secs(30);

impl AgentState {
    /// Sends the next command to the capture thread if the thread is free and there is one.
    pub(crate) fn pump(&mut self) {
        if self.busy {
            return;
        }
        let Some(order) = self.next_order() else { return };
        let job = match &order {
            CaptureCommand::Incident(task) => task.command.words(),
            CaptureCommand::OnDemand(task) => task.command.words(),
        };
        match self.tasks.try_send(order) {
            Ok(()) => {
                self.busy = true;
                self.current = Some((self.clock.anchor(), job));
            }
            Err(TrySendError::Full(order) | TrySendError::Disconnected(order)) => self.lose(order),
        }
    }

    /// Warns about a command that takes longer than [`LONG_TASK`].
    pub(super) fn watch_capture_thread(&self) {
        let Some((since, words)) = self.current else { return };
        if self.clock.now().since(since.moment) >= LONG_TASK {
            warnings::set(
                "captures",
                format!(
                    "captures wait: the capture thread has been {words} since {}; see the disk of the directory",
                    since.wall
                ),
            );
        }
    }

    /// Records that the capture thread finished its command.
    pub(super) fn capture_thread_is_free(&mut self) {
        self.busy = false;
        self.current = None;
        warnings::clear("captures");
    }

    /// Returns the reason an incident has no directory yet.
    pub(super) fn why_no_directory(&self) -> String {
        match self.current {
            Some((since, words)) => {
                format!("not there yet: the capture thread has been {words} since {}", since.wall)
            }
            None => "not there yet: the capture thread has not begun with it".to_owned(),
        }
    }

    /// Completes `order` as failed, since there is no capture thread.
    fn lose(&mut self, order: CaptureCommand) {
        let why = Error::CaptureThreadGone.to_string();
        warnings::set("captures", why.clone());
        match order {
            CaptureCommand::Incident(task) => {
                let mut tally = TaskStats::default();
                tally.failures.push(("capture thread gone", why));
                self.done(IncidentTaskResult {
                    result: task.command.lost(),
                    dir: None,
                    stats: tally,
                });
            }
            CaptureCommand::OnDemand(task) => {
                self.fail("capture thread gone", why.clone());
                let result = Err(ProfileError::Failed(why));
                self.streamed(OnDemandResult::Finished { id: task.command.id(), result });
            }
        }
    }

    /// Returns the next command. An on-demand capture that blocks an incident is stopped first; all
    /// other on-demand captures wait for the incidents.
    fn next_order(&mut self) -> Option<CaptureCommand> {
        let (anchor, taken) = (self.clock.anchor(), self.taken());
        let urgent = self.streams.urgent_job(&taken);
        if urgent.is_none()
            && let Some(job) = self.decider.next_job(anchor.moment)
        {
            return Some(CaptureCommand::Incident(Box::new(self.task(job))));
        }
        let job = urgent.or_else(|| self.streams.next_job(anchor, &taken))?;
        Some(CaptureCommand::OnDemand(OnDemandTask {
            // Saved before the command, so that a command that kills the process counts against the
            // budget.
            state: self
                .streams
                .allowance
                .is_dirty()
                .then(|| self.state(anchor))
                .flatten()
                .map(Box::new),
            command: job,
            settings: Arc::clone(&self.settings),
            headroom: headroom(&self.vitals),
            vitals: row(&self.vitals, anchor),
        }))
    }

    /// Returns the state to save, or `None` if it has not changed since the last call.
    fn state(&mut self, anchor: TimeAnchor) -> Option<SavedState> {
        if self.streams.allowance.is_dirty() {
            self.decider.state_changed();
        }
        let state = self.decider.take_state(anchor)?;
        Some(SavedState { streams: self.streams.allowance.save(anchor), ..state })
    }

    /// Returns the engines that incidents use or are about to use.
    pub(super) fn taken(&self) -> Vec<EngineInUse> {
        let taken = self.decider.incidents.iter().map(|incident| EngineInUse {
            kinds: incident.wanted.union(incident.running),
            by: format!("incident {} ({})", incident.id, incident.name),
            until: incident.until,
        });
        taken.filter(|taken| !taken.kinds.is_empty()).collect()
    }

    fn task(&mut self, job: IncidentCommand) -> IncidentTask {
        let (IncidentCommand::Open { id, .. }
        | IncidentCommand::Start { id, .. }
        | IncidentCommand::Collect { id, .. }
        | IncidentCommand::Gather { id, .. }
        | IncidentCommand::Stop { id, .. }
        | IncidentCommand::Again { id, .. }
        | IncidentCommand::Note { id, .. }
        | IncidentCommand::Close { id, .. }) = &job;
        let anchor = self.clock.anchor();
        let state = self.state(anchor);
        let recording = self.open.iter().find(|open| open.id == *id).map(|open| &open.recording);
        IncidentTask {
            settings: Arc::clone(&self.settings),
            state,
            limits: Limits::from(&self.vitals),
            headroom: headroom(&self.vitals),
            vitals: recording.map_or_else(Vec::new, |recording| recording.rows(anchor)),
            stalled_thread: match job {
                IncidentCommand::Open { .. } => None,
                _ => self.stuck.take_for(*id),
            },
            command: job,
        }
    }
}

/// Returns the memory left below the limit, or the address space left if that is smaller.
fn headroom(vitals: &Vitals) -> Option<Bytes> {
    let left = [vitals.headroom(), os::mapped_memory::address_space_left()];
    left.into_iter().flatten().min()
}
