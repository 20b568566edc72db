//! What is to be done, what came of it, and what is told of it.

use std::time::Duration;

use jiff::Timestamp;

use crate::base::{IncidentId, Moment};
use crate::model::{CaptureSet, Collect, Reason};

/// What is new about an incident since its manifest was last written.
#[derive(Debug, Default, PartialEq)]
pub(crate) struct Noted {
    /// The reasons, in the order they came.
    pub(crate) reasons: Vec<Reason>,
    /// How many more there were than a manifest keeps.
    pub(crate) dropped: u64,
}

/// The next thing for the capture thread to do.
#[derive(Debug, PartialEq)]
pub(crate) enum Job {
    /// Make the directory.
    Open { id: IncidentId, name: String, noted: Noted },
    /// Start these captures.
    Start { id: IncidentId, kinds: CaptureSet },
    /// Begin to collect files of the service's own.
    Collect { id: IncidentId, wanted: Collect },
    /// Take in what collectors wrote that have returned or whose time is up, or `all` there is.
    Gather { id: IncidentId, all: bool },
    /// Stop these captures and write what they took.
    Stop { id: IncidentId, kinds: CaptureSet },
    /// Take what runs once more, and go on with it.
    Again { id: IncidentId, kinds: CaptureSet, noted: Noted },
    /// Bring the manifest up to date.
    Note { id: IncidentId, noted: Noted },
    /// Write the manifest for the last time.
    Close { id: IncidentId, noted: Noted },
}

impl Job {
    /// The incident it is about.
    pub(crate) fn incident(&self) -> IncidentId {
        match self {
            Self::Open { id, .. }
            | Self::Start { id, .. }
            | Self::Collect { id, .. }
            | Self::Gather { id, .. }
            | Self::Stop { id, .. }
            | Self::Again { id, .. }
            | Self::Note { id, .. }
            | Self::Close { id, .. } => *id,
        }
    }

    /// Returns what it does, as part of a sentence.
    pub(crate) fn words(&self) -> &'static str {
        match self {
            Self::Open { .. } => "making an incident's directory",
            Self::Start { .. } => "starting captures",
            Self::Collect { .. } => "starting the service's collectors",
            Self::Gather { .. } => "writing what the service's collectors left",
            Self::Stop { .. } => "stopping and writing captures",
            Self::Again { .. } => "taking a capture once more",
            Self::Note { .. } => "writing an incident's manifest",
            Self::Close { .. } => "closing an incident",
        }
    }

    /// Returns the result of this job if nothing came of it.
    pub(crate) fn lost(&self) -> Done {
        match self {
            Self::Open { id, .. } => Done::Opened { id: *id, ok: false },
            Self::Start { id, kinds } => {
                Done::Started { id: *id, asked: *kinds, running: CaptureSet::EMPTY }
            }
            Self::Collect { id, .. } | Self::Gather { id, .. } => {
                Done::Collecting { id: *id, until: None }
            }
            Self::Stop { id, kinds } => Done::Stopped { id: *id, kinds: *kinds },
            Self::Again { id, .. } => Done::Again { id: *id },
            Self::Note { id, .. } => Done::Noted { id: *id },
            Self::Close { id, .. } => Done::Closed { id: *id, ok: false },
        }
    }
}

/// What came of a job.
#[derive(Clone, Debug)]
pub(crate) enum Done {
    /// Whether the directory is there.
    Opened { id: IncidentId, ok: bool },
    /// What runs of what was asked.
    Started { id: IncidentId, asked: CaptureSet, running: CaptureSet },
    /// Until when collectors run, if any do.
    Collecting { id: IncidentId, until: Option<Moment> },
    /// These have ended, well or not.
    Stopped { id: IncidentId, kinds: CaptureSet },
    /// The manifest was written, or could not be.
    Noted { id: IncidentId },
    /// It was taken once more, or could not be.
    Again { id: IncidentId },
    /// Whether the incident is closed on disk.
    Closed { id: IncidentId, ok: bool },
}

/// What the loop should know about a change.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Notice {
    /// The captures of this rule have ended: its cooldown begins.
    Captured(String),
    /// This rule's incident could not be opened.
    Lost(String, IncidentId),
    /// This incident is over and gone from here.
    Gone(IncidentId),
}

/// Who stands behind the toggle's state.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct ToggleState {
    /// The incident it holds open.
    pub(crate) incident: IncidentId,
    /// Since when.
    pub(crate) since: Timestamp,
    /// When it goes off by itself.
    pub(crate) until: Moment,
    /// How long that is.
    pub(crate) max_duration: Duration,
}

/// One open incident, for `status`.
#[derive(Debug)]
pub(crate) struct View<'a> {
    pub(crate) id: IncidentId,
    pub(crate) name: &'a str,
    pub(crate) opened: Timestamp,
    pub(crate) wanted: CaptureSet,
    pub(crate) running: CaptureSet,
    /// When its captures are over by themselves, as far as that is known.
    pub(crate) until: Option<Moment>,
    pub(crate) held_by: &'a [String],
}
