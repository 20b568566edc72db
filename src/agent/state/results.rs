//! Results of the capture thread, and the failures among them.

use super::AgentState;
use crate::base::{log, spare};
use crate::capture::messages::{CaptureResult, IncidentTaskResult};
use crate::policy::incidents::CommandResult;
use crate::policy::on_demand::OnDemandResult;

impl AgentState {
    pub(super) fn handle_result(&mut self, result: CaptureResult) {
        match result {
            CaptureResult::Incident(result) => self.apply_incident_result(result),
            CaptureResult::OnDemand(result) => {
                self.mark_capture_thread_idle();
                if let OnDemandResult::Started { engine: Some(engine), .. } = &result {
                    self.engines.extend([engine.clone()]);
                }
                self.apply_on_demand_result(result);
            }
            CaptureResult::Encoded(result) => self.apply_on_demand_result(result),
            CaptureResult::Collected { id } => self.decider.incidents.collector_returned(id),
            CaptureResult::DirectoryOpened(opened) => self.on_directory_opened(*opened),
            CaptureResult::StateNotSaved(error) => self.record_failure("state not saved", error),
        }
    }

    pub(super) fn apply_on_demand_result(&mut self, result: OnDemandResult) {
        if let Some(bytes) = self.on_demand.apply_result(self.clock.now(), result) {
            self.counters.on_demand_captures += 1;
            self.counters.on_demand_bytes.0 += bytes;
        }
    }

    pub(super) fn apply_incident_result(&mut self, result: IncidentTaskResult) {
        self.mark_capture_thread_idle();
        spare::refill();
        let IncidentTaskResult { result, dir, stats } = result;
        self.engines.extend(stats.engines);
        self.counters.captures += stats.captures;
        self.counters.captures_failed += stats.captures_failed;
        self.counters.artifacts += stats.artifacts;
        self.counters.artifact_bytes.0 += stats.artifact_bytes;
        self.store_usage = stats.store.unwrap_or(self.store_usage);
        if let (Some(path), CommandResult::Opened { id, .. }) = (dir, &result) {
            self.counters.incidents += 1;
            if let Some(open) = self.open_incidents.iter_mut().find(|open| open.id == *id) {
                open.dir = Some(path);
                let replies = std::mem::take(&mut open.pending_replies);
                self.send_replies(replies, *id, None);
            }
        }
        if let Some(explained) = stats.explained {
            let mut open = self.open_incidents.iter_mut();
            if let Some(open) = open.find(|open| open.id == explained.incident) {
                open.first_finding = explained.first_finding;
            }
        }
        let last_error = stats.failures.last().map(|(_, error)| error.clone());
        for (cause, error) in stats.failures {
            self.record_failure(cause, error);
        }
        if matches!(result, CommandResult::Closed { ok: true, .. }) {
            self.counters.incidents_closed += 1;
        }
        let now = self.clock.now();
        for id in self.decider.apply_result(now, result) {
            if let Some(index) = self.open_incidents.iter().position(|open| open.id == id) {
                let open = self.open_incidents.remove(index);
                self.send_replies(open.pending_replies, id, last_error.clone());
            }
        }
    }

    /// Counts a failure. Each cause is logged the first time and then at every power of two.
    pub(super) fn record_failure(&mut self, cause: &'static str, error: String) {
        self.failures.add(cause, 1);
        let times =
            self.failures.iter().find(|loss| loss.cause == cause).map_or(1, |loss| loss.count);
        if times.is_power_of_two() {
            let text = format!("{cause}: {error}");
            log::LogEvent::new(log::LogLevel::Error, text).times(times).send();
        }
        self.last_failure = Some(format!("{cause}: {error}"));
    }
}
