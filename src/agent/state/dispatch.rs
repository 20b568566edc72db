//! Dispatch of commands to the capture thread.

use std::sync::Arc;
use std::sync::mpsc::TrySendError;
use std::time::Duration;

use crate::agent::Error;
use crate::agent::history::vitals_row;
use crate::agent::state::AgentState;
use crate::base::{Bytes, TimeAnchor, warnings};
use crate::capture::messages::{
    CaptureCommand, IncidentTask, IncidentTaskResult, OnDemandTask, TaskStats,
};
use crate::model::{Limits, Vitals};
use crate::os;
use crate::policy::incident_budget::SavedState;
use crate::policy::incidents::IncidentCommand;
use crate::policy::on_demand::{EngineInUse, OnDemandResult, ProfileError};

/// Duration of a command above which `/status` reports it.
const SLOW_COMMAND_THRESHOLD: Duration = Duration::from_secs(30);

impl AgentState {
    /// Sends the next command to the capture thread if the thread is free and there is one.
    pub(crate) fn dispatch_next(&mut self) {
        if self.capture_thread_busy {
            return;
        }
        let Some(command) = self.next_command() else { return };
        let description = match &command {
            CaptureCommand::Incident(task) => task.command.description(),
            CaptureCommand::OnDemand(task) => task.command.description(),
        };
        match self.commands.try_send(command) {
            Ok(()) => {
                self.capture_thread_busy = true;
                self.current_command = Some((self.clock.anchor(), description));
            }
            Err(TrySendError::Full(command) | TrySendError::Disconnected(command)) => {
                self.fail_command(command)
            }
        }
    }

    /// Warns about a command that takes longer than [`SLOW_COMMAND_THRESHOLD`].
    pub(super) fn check_capture_thread(&self) {
        let Some((since, description)) = self.current_command else { return };
        if self.clock.now().since(since.moment) >= SLOW_COMMAND_THRESHOLD {
            warnings::set(
                "captures",
                format!(
                    "captures are delayed: the capture thread has been {description} since {}; \
                     check the disk of the incident directory",
                    since.wall
                ),
            );
        }
    }

    /// Records that the capture thread finished its command.
    pub(super) fn mark_capture_thread_idle(&mut self) {
        self.capture_thread_busy = false;
        self.current_command = None;
        warnings::clear("captures");
    }

    /// Returns the reason an incident has no directory yet.
    pub(super) fn missing_directory_reason(&self) -> String {
        match self.current_command {
            Some((since, description)) => {
                format!(
                    "not created yet: the capture thread has been {description} since {}",
                    since.wall
                )
            }
            None => "not created yet: the capture thread has not started this command".to_owned(),
        }
    }

    /// Completes `command` as failed, since there is no capture thread.
    fn fail_command(&mut self, command: CaptureCommand) {
        let why = Error::CaptureThreadEnded.to_string();
        warnings::set("captures", why.clone());
        match command {
            CaptureCommand::Incident(task) => {
                let mut stats = TaskStats::default();
                stats.failures.push(("capture thread ended", why));
                self.apply_incident_result(IncidentTaskResult {
                    result: task.command.failure_result(),
                    dir: None,
                    stats,
                });
            }
            CaptureCommand::OnDemand(task) => {
                self.record_failure("capture thread ended", why.clone());
                let result = Err(ProfileError::Failed(why));
                self.apply_on_demand_result(OnDemandResult::Finished {
                    id: task.command.id(),
                    result,
                });
            }
        }
    }

    /// Returns the next command. An on-demand capture that blocks an incident is stopped first; all
    /// other on-demand captures wait for the incidents.
    fn next_command(&mut self) -> Option<CaptureCommand> {
        let anchor = self.clock.anchor();
        let in_use = self.engines_in_use();
        let urgent = self.on_demand.urgent_command(&in_use);
        if urgent.is_none()
            && let Some(command) = self.decider.next_command(anchor.moment)
        {
            return Some(CaptureCommand::Incident(Box::new(self.incident_task(command))));
        }
        let command = urgent.or_else(|| self.on_demand.next_command(anchor, &in_use))?;
        Some(CaptureCommand::OnDemand(OnDemandTask {
            // Saved before the command, so that a command that kills the process counts against the
            // budget.
            state: self
                .on_demand
                .quota
                .is_dirty()
                .then(|| self.take_changed_state(anchor))
                .flatten()
                .map(Box::new),
            command,
            settings: Arc::clone(&self.settings),
            headroom: headroom(&self.vitals),
            vitals: vitals_row(&self.vitals, anchor),
        }))
    }

    /// Returns the state to save, or `None` if it has not changed since the last call.
    fn take_changed_state(&mut self, anchor: TimeAnchor) -> Option<SavedState> {
        if self.on_demand.quota.is_dirty() {
            self.decider.mark_dirty();
        }
        let state = self.decider.take_state(anchor)?;
        let on_demand_captures = self.on_demand.quota.save(anchor);
        Some(SavedState { on_demand_captures, ..state })
    }

    /// Returns the engines that incidents use or are about to use.
    pub(super) fn engines_in_use(&self) -> Vec<EngineInUse> {
        let in_use = self.decider.incidents.iter().map(|incident| EngineInUse {
            kinds: incident.claimed_kinds.union(incident.running),
            by: format!("incident {} ({})", incident.id, incident.name),
            until: incident.ends_at,
        });
        in_use.filter(|engines| !engines.kinds.is_empty()).collect()
    }

    fn incident_task(&mut self, command: IncidentCommand) -> IncidentTask {
        let (IncidentCommand::Open { id, .. }
        | IncidentCommand::Start { id, .. }
        | IncidentCommand::StartCollectors { id, .. }
        | IncidentCommand::FinishCollectors { id, .. }
        | IncidentCommand::Stop { id, .. }
        | IncidentCommand::Recapture { id, .. }
        | IncidentCommand::UpdateManifest { id, .. }
        | IncidentCommand::Close { id, .. }) = &command;
        let anchor = self.clock.anchor();
        let state = self.take_changed_state(anchor);
        let recording =
            self.open_incidents.iter().find(|open| open.id == *id).map(|open| &open.recording);
        IncidentTask {
            settings: Arc::clone(&self.settings),
            state,
            limits: Limits::from(&self.vitals),
            headroom: headroom(&self.vitals),
            vitals: recording.map_or_else(Vec::new, |recording| recording.rows(anchor)),
            stall_dump: match command {
                IncidentCommand::Open { .. } => None,
                _ => self.recent_stalls.take_dump_for(*id),
            },
            command,
        }
    }
}

/// Returns the memory left below the limit, or the address space left if that is smaller.
fn headroom(vitals: &Vitals) -> Option<Bytes> {
    let limits = [vitals.headroom(), os::mapped_memory::remaining_address_space()];
    limits.into_iter().flatten().min()
}
