//! The shared state of an open incident.

use super::dir::Dir;
use crate::base::IncidentId;
use crate::store::usage::{Registration, StoreInner};
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};

/// State shared by an incident and the drafts of its artifacts.
#[derive(Debug)]
pub(crate) struct IncidentInner {
    pub(crate) dir: Dir,
    /// `{service}_{instance}`.
    pub(crate) stem: String,
    /// The last number used in an artifact's name.
    pub(crate) seq: Mutex<u32>,
    /// Number of drafts that needed a temporary name.
    pub(crate) named_drafts: AtomicU32,
    pub(super) registration: Registration,
}

impl IncidentInner {
    pub(crate) fn store(&self) -> &Arc<StoreInner> {
        &self.registration.store
    }

    pub(crate) fn id(&self) -> IncidentId {
        self.registration.id
    }
}
