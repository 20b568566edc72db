//! Space reserved by a draft.

use std::path::PathBuf;
use std::sync::Arc;

use super::error::Error;
use super::space::SpaceRequest;
use super::usage::{LimitExceeded, StoreInner};
use crate::base::IncidentId;

/// A space reservation of one draft. Dropping it releases the space.
#[derive(Debug)]
pub(super) struct SpaceReservation {
    store: Arc<StoreInner>,
    incident: IncidentId,
    bytes: u64,
}

impl SpaceReservation {
    pub(super) fn new(store: &Arc<StoreInner>, incident: IncidentId) -> Self {
        Self { store: Arc::clone(store), incident, bytes: 0 }
    }

    /// Reserves `bytes` more for the file at `path`. Prunes and evicts closed incidents if
    /// necessary.
    pub(super) fn grow(&mut self, bytes: u64, path: impl FnOnce() -> PathBuf) -> Result<(), Error> {
        let mut usage = self.store.lock_usage();
        let request =
            SpaceRequest { bytes, incident: Some(self.incident), ..SpaceRequest::default() };
        if self.store.exceeded_limit(&usage, request).is_some() {
            self.store.free_space(&mut usage, request);
            if let Some(LimitExceeded { limit, .. }) = self.store.exceeded_limit(&usage, request) {
                return Err(Error::Full { path: path(), limit });
            }
        }
        usage.reserve(self.incident, bytes);
        self.bytes += bytes;
        Ok(())
    }

    /// Runs `publish`, which names the file, and counts the reservation as stored if it returns
    /// `true`. The lock is held during both: a directory scan in between would count the file
    /// twice.
    pub(super) fn commit(
        &mut self,
        publish: impl FnOnce() -> Result<bool, Error>,
    ) -> Result<bool, Error> {
        let mut usage = self.store.lock_usage();
        let published = publish()?;
        if published {
            usage.release(self.incident, std::mem::take(&mut self.bytes), true);
        }
        Ok(published)
    }
}

impl Drop for SpaceReservation {
    fn drop(&mut self) {
        self.store.lock_usage().release(self.incident, self.bytes, false);
    }
}
