//! Evidence that is to be written to an artifact.

use crate::capture::collectors::Evidence;
use crate::model::CaptureKind;

/// Evidence to be written to an artifact.
pub(crate) struct PendingArtifact {
    pub(crate) kind: CaptureKind,
    pub(crate) record_index: usize,
    /// Part of the capture it belongs to.
    pub(crate) phase: Option<&'static str>,
    pub(crate) evidence: Evidence,
}
