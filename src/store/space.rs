//! Requests for space, and what enforcing the limits did.

use super::error::{Error, StoreLimit};
use super::evicted::EvictedIncident;
use crate::base::{Bytes, IncidentId};
use std::path::PathBuf;

/// Result of enforcing the limits.
#[derive(Debug, Default)]
pub struct RetentionReport {
    /// Evicted incidents, oldest first.
    pub evicted: Vec<EvictedIncident>,
    /// Files pruned from incidents that stay.
    pub pruned: Vec<PrunedArtifacts>,
    /// Incidents not evicted because they contain a foreign entry.
    pub blocked: Vec<BlockedRemoval>,
    /// Errors.
    pub errors: Vec<Error>,
    /// Number of incidents that remain.
    pub incidents: usize,
    /// Total size of their finished files.
    pub bytes: Bytes,
}

/// A request for free space.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct SpaceRequest {
    pub(crate) bytes: u64,
    pub(crate) incidents: usize,
    /// The open incident to write to, or `None` to enforce all limits.
    pub(crate) incident: Option<IncidentId>,
}

/// An incident or leftover that cannot be removed because of a foreign entry. It counts against the
/// limits.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct BlockedRemoval {
    /// The foreign entry: a file in the incident's directory, or the directory itself.
    pub path: PathBuf,
}

/// Files pruned from a closed incident that stays.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PrunedArtifacts {
    /// The incident.
    pub id: IncidentId,
    /// The names of the files.
    pub files: Vec<String>,
    /// The limit that was exceeded.
    pub limit: StoreLimit,
}
