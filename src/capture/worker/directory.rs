//! The incident directory of the capture thread: open, or retried until it can be opened.
//!
//! The agent and the service start even if the directory is locked by another process, is not
//! writable or is on a full file system. Until it can be opened, an incident has no directory and
//! reports the reason. Opening is retried, and the budgets saved by an earlier process are loaded
//! once it succeeds.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::base::failure::error_chain;
use crate::base::retry::RetryBackoff;
use crate::base::{Clock, Moment, log, warnings};
use crate::config::StoreSettings;
use crate::os::fork::NotInherited;
use crate::policy::saved_state::SavedState;
use crate::store::{Error, Location, Recovery, Store, StoreUsage};

/// Topic of the warning raised while the directory is not open.
pub(crate) const DIRECTORY_WARNING_TOPIC: &str = "dir";

/// An opened directory, reported to the agent loop.
#[derive(Debug)]
pub(crate) struct OpenedStore {
    pub(crate) path: PathBuf,
    /// Budgets used by an earlier process.
    pub(crate) saved: Option<SavedState>,
    pub(crate) usage: StoreUsage,
}

/// The incident directory, open or waiting for a retry.
pub(crate) struct Directory {
    location: Location,
    clock: Arc<dyn Clock>,
    state: DirectoryState,
}

enum DirectoryState {
    // Field order matters: the guard uses the store's descriptor and must be dropped first.
    Open { _lock: Option<NotInherited>, store: Store },
    Retrying { reason: String, retry_at: Moment, backoff: RetryBackoff },
}

impl Directory {
    /// Opens the directory at `location`. On failure the error is returned beside the directory,
    /// and opening is retried later.
    pub(crate) fn open(
        location: Location,
        settings: &StoreSettings,
        clock: Arc<dyn Clock>,
    ) -> (Self, Result<OpenedStore, Error>) {
        let next = clock.now();
        let state = DirectoryState::Retrying {
            reason: String::new(),
            retry_at: next,
            backoff: RetryBackoff::new(),
        };
        let mut this = Self { location, clock, state };
        let first = this.try_open(settings);
        (this, first)
    }

    /// Returns the store, or the reason there is none.
    pub(crate) fn store(&self) -> Result<&Store, &str> {
        match &self.state {
            DirectoryState::Open { store, .. } => Ok(store),
            DirectoryState::Retrying { reason, .. } => Err(reason),
        }
    }

    /// Returns the time until [`Self::retry`] is due, or `None` if the directory is open.
    pub(crate) fn until_retry(&self) -> Option<Duration> {
        match &self.state {
            DirectoryState::Open { .. } => None,
            DirectoryState::Retrying { retry_at, .. } => Some(retry_at.since(self.clock.now())),
        }
    }

    /// Tries to open the directory unless it is open.
    pub(crate) fn retry(&mut self, settings: &StoreSettings) -> Option<OpenedStore> {
        if matches!(self.state, DirectoryState::Open { .. }) {
            return None;
        }
        self.try_open(settings).ok()
    }

    /// Recreates the directory if it was deleted while open.
    pub(crate) fn replace_if_removed(
        &mut self,
        settings: &StoreSettings,
    ) -> Option<Result<OpenedStore, Error>> {
        if !self.store().is_ok_and(Store::is_removed) {
            return None;
        }
        let reopened = self.try_open(settings);
        if reopened.is_ok() {
            let path = self.location.path();
            log::warn(format!("{} was removed and has been recreated", path.display()));
        }
        // The saved state is that of this process and already in memory.
        Some(reopened.map(|opened| OpenedStore { saved: None, ..opened }))
    }

    fn try_open(&mut self, settings: &StoreSettings) -> Result<OpenedStore, Error> {
        match Store::open_at(&self.location, settings.clone(), Arc::clone(&self.clock)) {
            Ok((store, recovery)) => {
                log_recovery(&recovery);
                warnings::clear(DIRECTORY_WARNING_TOPIC);
                let path = store.dir().to_owned();
                let opened =
                    OpenedStore { path, saved: load_saved_state(&store), usage: store.usage() };
                let lock = store.lock_descriptor().and_then(NotInherited::new);
                self.state = DirectoryState::Open { _lock: lock, store };
                Ok(opened)
            }
            Err(error) => {
                let why = error_chain(&error);
                warnings::set(
                    DIRECTORY_WARNING_TOPIC,
                    format!(
                        "incidents are not stored, rules continue: {why}; retried every few seconds"
                    ),
                );
                let mut backoff = match &self.state {
                    DirectoryState::Retrying { backoff, .. } => *backoff,
                    DirectoryState::Open { .. } => RetryBackoff::new(),
                };
                let next = self.clock.now() + backoff.next_delay();
                self.state = DirectoryState::Retrying { reason: why, retry_at: next, backoff };
                Err(error)
            }
        }
    }
}

/// Loads the budgets used by an earlier process. On an error the budgets start from zero.
fn load_saved_state(store: &Store) -> Option<SavedState> {
    let saved = store.load_state::<SavedState>();
    let is_known = |saved: &SavedState| saved.schema == SavedState::SCHEMA;
    saved.map(|saved| saved.filter(is_known)).unwrap_or_else(|error| {
        log::error(format!("cannot load saved budgets, resetting them: {error}"));
        None
    })
}

/// Logs the remains of an earlier process.
fn log_recovery(recovery: &Recovery) {
    for id in &recovery.interrupted {
        log::warn(format!(
            "incident {id} was interrupted by the end of its process; its files are kept"
        ));
    }
    for error in &recovery.errors {
        log::error(format!("cannot recover an earlier incident, left unchanged: {error}"));
    }
    if !recovery.deleted.is_empty() {
        log::info(format!("removed partial files: {}", recovery.deleted.join(", ")));
    }
}
