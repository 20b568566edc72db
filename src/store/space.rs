//! The space of a store: its usage, requests for more, and the result of enforcing the limits.

use std::path::PathBuf;

use serde::Serialize;

use super::error::{Error, StoreLimit};
use super::evicted::EvictedIncident;
use crate::base::{Bytes, IncidentId};
use crate::config::StoreSettings;

/// Usage of a store: bytes stored, space available, and files deleted since it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct StoreUsage {
    /// Bytes in finished files and drafts of incidents.
    pub bytes: Bytes,
    /// The limit on `bytes` (`store.max_bytes`).
    pub max_bytes: Bytes,
    /// Free bytes of the file system beyond `store.min_free_space`, or `None` if it does not report
    /// them.
    pub free: Option<Bytes>,
    /// `true` if the directory is in memory (tmpfs, ramfs), where files count against the memory
    /// limit.
    pub in_memory: bool,
    /// Bytes that may still be written to a directory in memory: half of the memory left below the
    /// limit. `None` if the directory is not in memory or the limit is unknown.
    pub memory_left: Option<Bytes>,
    /// Incidents evicted to enforce any of the limits.
    pub incidents_removed: u64,
    /// Files pruned from incidents that stay.
    pub artifacts_removed: u64,
}

impl StoreUsage {
    /// Returns the usage of a store that is not open.
    pub(crate) fn unknown(settings: &StoreSettings) -> Self {
        Self {
            bytes: Bytes(0),
            max_bytes: settings.max_bytes,
            free: None,
            in_memory: false,
            memory_left: None,
            incidents_removed: 0,
            artifacts_removed: 0,
        }
    }
}

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
