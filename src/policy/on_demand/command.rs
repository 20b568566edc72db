//! Commands for the capture thread, and their results.

use super::profile_kind::ProfileKind;
use super::request::{ProfileError, ProfileResponse};
use crate::model::CaptureKind;

/// A command for the capture thread.
#[derive(Clone, Debug)]
pub(crate) enum OnDemandCommand {
    /// Takes a snapshot and encodes it.
    Snapshot { id: u64, kind: ProfileKind },
    /// Starts a recording.
    Start { id: u64, kind: ProfileKind },
    /// Stops a recording and keeps its data.
    Stop { id: u64, cut_short: Option<String> },
    /// Sends the data to be encoded.
    Encode { id: u64 },
    /// Drops a recording and its data.
    Cancel { id: u64 },
}

impl OnDemandCommand {
    /// Returns a description of the command for use within a sentence.
    pub(crate) fn description(&self) -> &'static str {
        match self {
            Self::Snapshot { .. } => "taking a profile or dump for a client",
            Self::Start { .. } => "starting a profile for a client",
            Self::Stop { .. } => "stopping a profile for a client",
            Self::Encode { .. } => "passing a client's profile to the encoder",
            Self::Cancel { .. } => "canceling a client's profile",
        }
    }

    pub(crate) fn id(&self) -> u64 {
        match self {
            Self::Snapshot { id, .. }
            | Self::Start { id, .. }
            | Self::Stop { id, .. }
            | Self::Encode { id }
            | Self::Cancel { id } => *id,
        }
    }
}

/// Result of a command.
pub(crate) enum OnDemandResult {
    /// The recording started.
    Started { id: u64, engine: Option<(CaptureKind, String)> },
    /// The recording stopped and its data is kept.
    Stopped { id: u64 },
    /// The data is being encoded.
    Encoding { id: u64 },
    /// The capture finished, successfully or not, and no data is kept.
    Finished { id: u64, result: Result<ProfileResponse, ProfileError> },
    /// The capture was dropped.
    Canceled { id: u64 },
}
