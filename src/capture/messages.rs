//! Commands for the capture thread, and their results.
//!
//! A command contains every value needed to perform it, so the capture thread shares no state with
//! the agent loop.

use std::path::PathBuf;
use std::sync::Arc;

use super::worker::directory::OpenedStore;
use crate::base::failure::error_chain;
use crate::base::{Bytes, IncidentId};
use crate::config::Settings;
use crate::model::{CaptureKind, Finding, Limits, ThreadDump, VitalsRow};
use crate::policy::incidents::{CommandResult, IncidentCommand};
use crate::policy::on_demand::{OnDemandCommand, OnDemandResult};
use crate::policy::saved_state::SavedState;
use crate::store::StoreUsage;

/// A command for the capture thread.
pub(crate) enum CaptureCommand {
    Incident(Box<IncidentTask>),
    OnDemand(OnDemandTask),
}

/// A result of the capture thread, or of a thread it started.
pub(crate) enum CaptureResult {
    /// A command of an incident was performed.
    Incident(IncidentTaskResult),
    /// A command of an on-demand capture was performed.
    OnDemand(OnDemandResult),
    /// The data of an on-demand capture is encoded.
    Encoded(OnDemandResult),
    /// A custom collector returned.
    Collected { id: IncidentId },
    /// The incident directory was opened.
    DirectoryOpened(Box<OpenedStore>),
    /// The state that must survive a restart could not be saved.
    StateNotSaved(String),
}

/// A command of an incident and the values needed to perform it.
pub(crate) struct IncidentTask {
    pub(crate) command: IncidentCommand,
    pub(crate) settings: Arc<Settings>,
    /// State to persist, if it has changed.
    pub(crate) state: Option<SavedState>,
    pub(crate) limits: Limits,
    /// Memory left below the limit or `RLIMIT_AS`, if known.
    pub(crate) headroom: Option<Bytes>,
    /// Vitals of the incident so far; empty for commands that do not write them to the manifest.
    pub(crate) vitals: Vec<VitalsRow>,
    /// Dump of the stalled thread at the time the rule fired.
    pub(crate) stall_dump: Option<Box<ThreadDump>>,
}

/// A command of an on-demand capture and the values needed to perform it.
pub(crate) struct OnDemandTask {
    pub(crate) command: OnDemandCommand,
    /// State to persist, if it has changed.
    pub(crate) state: Option<Box<SavedState>>,
    pub(crate) settings: Arc<Settings>,
    /// Memory left below the limit, if known.
    pub(crate) headroom: Option<Bytes>,
    /// Vitals of the last tick, for the text format.
    pub(crate) vitals: VitalsRow,
}

/// Result of an [`IncidentTask`].
pub(crate) struct IncidentTaskResult {
    pub(crate) result: CommandResult,
    /// The incident directory, if it was created.
    pub(crate) dir: Option<PathBuf>,
    pub(crate) stats: TaskStats,
}

/// Successes and failures of a command.
#[derive(Default)]
pub(crate) struct TaskStats {
    pub(crate) captures: u64,
    pub(crate) captures_failed: u64,
    pub(crate) artifacts: u64,
    pub(crate) artifact_bytes: u64,
    /// Engine of each started capture.
    pub(crate) engines: Vec<(CaptureKind, String)>,
    /// Disk usage of the store afterwards.
    pub(crate) store: Option<StoreUsage>,
    /// The incident whose report was written.
    pub(crate) explained: Option<Box<ExplainedIncident>>,
    /// Failure categories, for counting, each with the full error.
    pub(crate) failures: Vec<(&'static str, String)>,
}

/// An incident and the best explanation of it.
pub(crate) struct ExplainedIncident {
    pub(crate) incident: IncidentId,
    pub(crate) first_finding: Option<Finding>,
}

impl TaskStats {
    /// Counts an event that was dropped because the callback queue is full.
    pub(crate) fn record_notification(&mut self, was_queued: bool) {
        if !was_queued {
            self.failures.push((
                "event not delivered",
                "the callback queue is full: a callback of the service is slow".into(),
            ));
        }
    }

    pub(crate) fn record_failure(&mut self, cause: &'static str, error: &dyn std::error::Error) {
        self.failures.push((cause, error_chain(error)));
    }

    pub(crate) fn record_failure_message(&mut self, cause: &'static str, why: &str) {
        self.failures.push((cause, why.to_owned()));
    }
}

/// Sends results to the agent loop.
#[derive(Clone)]
pub(crate) struct ResultSender(Arc<dyn Fn(CaptureResult) -> bool + Send + Sync>);

impl ResultSender {
    /// Creates a sender that calls `send`, which returns `false` once the loop has ended.
    pub(crate) fn new(send: impl Fn(CaptureResult) -> bool + Send + Sync + 'static) -> Self {
        Self(Arc::new(send))
    }

    /// Sends `result`. Blocks while the queue of the loop is full. Returns `false` once the loop
    /// has ended.
    pub(crate) fn send(&self, result: CaptureResult) -> bool {
        (self.0)(result)
    }
}
