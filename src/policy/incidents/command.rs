//! Commands for the capture thread, their results, and the notifications derived from them.

use std::time::Duration;

use jiff::Timestamp;

use crate::base::{IncidentId, Moment};
use crate::model::{CaptureSet, CollectorSelection, Reason};

/// Changes of an incident since its manifest was last written.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct ManifestUpdate {
    /// Reasons, oldest first.
    pub(crate) reasons: Vec<Reason>,
    /// Number of reasons beyond the limit of a manifest.
    pub(crate) dropped_reasons: u64,
}

/// A command for the capture thread.
#[derive(Debug, PartialEq)]
pub(crate) enum IncidentCommand {
    /// Creates the incident directory.
    Open { id: IncidentId, name: String, update: ManifestUpdate },
    /// Starts these captures.
    Start { id: IncidentId, kinds: CaptureSet },
    /// Starts custom collectors.
    StartCollectors { id: IncidentId, selection: CollectorSelection },
    /// Stores the output of custom collectors that returned or timed out, or of `all` of them.
    FinishCollectors { id: IncidentId, all: bool },
    /// Stops these captures and writes their artifacts.
    Stop { id: IncidentId, kinds: CaptureSet },
    /// Takes snapshots of these captures, which keep running.
    Recapture { id: IncidentId, kinds: CaptureSet, update: ManifestUpdate },
    /// Updates the manifest.
    UpdateManifest { id: IncidentId, update: ManifestUpdate },
    /// Writes the manifest for the last time.
    Close { id: IncidentId, update: ManifestUpdate },
}

impl IncidentCommand {
    pub(crate) fn incident_id(&self) -> IncidentId {
        match self {
            Self::Open { id, .. }
            | Self::Start { id, .. }
            | Self::StartCollectors { id, .. }
            | Self::FinishCollectors { id, .. }
            | Self::Stop { id, .. }
            | Self::Recapture { id, .. }
            | Self::UpdateManifest { id, .. }
            | Self::Close { id, .. } => *id,
        }
    }

    /// Returns a description of the command for use within a sentence.
    pub(crate) fn description(&self) -> &'static str {
        match self {
            Self::Open { .. } => "creating an incident directory",
            Self::Start { .. } => "starting captures",
            Self::StartCollectors { .. } => "starting custom collectors",
            Self::FinishCollectors { .. } => "storing the output of custom collectors",
            Self::Stop { .. } => "stopping and writing captures",
            Self::Recapture { .. } => "repeating a capture",
            Self::UpdateManifest { .. } => "writing an incident manifest",
            Self::Close { .. } => "closing an incident",
        }
    }

    /// Returns the result of a command that failed entirely.
    pub(crate) fn failure_result(&self) -> CommandResult {
        match self {
            Self::Open { id, .. } => CommandResult::Opened { id: *id, ok: false },
            Self::Start { id, kinds } => {
                CommandResult::Started { id: *id, requested: *kinds, running: CaptureSet::EMPTY }
            }
            Self::StartCollectors { id, .. } | Self::FinishCollectors { id, .. } => {
                CommandResult::Collecting { id: *id, deadline: None }
            }
            Self::Stop { id, kinds } => CommandResult::Stopped { id: *id, kinds: *kinds },
            Self::Recapture { id, .. } => CommandResult::Recaptured { id: *id },
            Self::UpdateManifest { id, .. } => CommandResult::ManifestUpdated { id: *id },
            Self::Close { id, .. } => CommandResult::Closed { id: *id, ok: false },
        }
    }
}

/// Result of a command.
#[derive(Clone, Debug)]
pub(crate) enum CommandResult {
    /// `ok` if the directory was created.
    Opened { id: IncidentId, ok: bool },
    /// `running`: the requested captures that were started.
    Started { id: IncidentId, requested: CaptureSet, running: CaptureSet },
    /// `deadline`: the earliest deadline of the running collectors, or `None` if none is running.
    Collecting { id: IncidentId, deadline: Option<Moment> },
    /// These captures ended, successfully or not.
    Stopped { id: IncidentId, kinds: CaptureSet },
    /// The manifest was written, or the write failed.
    ManifestUpdated { id: IncidentId },
    /// The snapshots were taken, or failed.
    Recaptured { id: IncidentId },
    /// `ok` if the incident is closed on disk.
    Closed { id: IncidentId, ok: bool },
}

/// A change the loop must handle.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum IncidentUpdate {
    /// The captures of this rule ended; its cooldown starts.
    CaptureEnded(String),
    /// The incident of this rule could not be opened.
    OpenFailed(String, IncidentId),
    /// This incident ended and was removed.
    Removed(IncidentId),
}

/// State of the toggle while it is on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ToggleState {
    /// The incident kept open by the toggle.
    pub(crate) incident: IncidentId,
    /// Time at which it was turned on.
    pub(crate) turned_on_at: Timestamp,
    /// Time at which it turns off automatically.
    pub(crate) turns_off_at: Moment,
    /// Time from turning on to turning off automatically.
    pub(crate) max_duration: Duration,
}

/// An open incident, as shown in `status`.
#[derive(Debug)]
pub(crate) struct IncidentView<'a> {
    pub(crate) id: IncidentId,
    pub(crate) name: &'a str,
    pub(crate) opened_at: Timestamp,
    pub(crate) claimed_kinds: CaptureSet,
    pub(crate) running: CaptureSet,
    /// Time at which its captures end, if known.
    pub(crate) ends_at: Option<Moment>,
    pub(crate) active_rules: &'a [String],
}
