//! The incident directory as the capture thread holds it: open, or waited for.
//!
//! A directory that another process has locked, that cannot be written or whose file system is full keeps neither the
//! agent nor the service from starting. Until it can be opened, an incident has no directory and says why; the
//! attempts go on, and the budgets that an earlier process has saved are loaded once one succeeds.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use crate::agent::budget::State as Saved;
use crate::agent::fence::chain;
use crate::base::retry::Backoff;
use crate::base::{Clock, Moment, log, warnings};
use crate::config::StoreSettings;
use crate::os::fork::NotInherited;
use crate::store::{Error, Holdings, Location, Recovery, Store};

/// The topic of the warning while the directory is not open.
pub(in crate::agent) const TOPIC: &str = "dir";

/// A directory that was opened, for the agent's loop.
#[derive(Debug)]
pub(in crate::agent) struct Opened {
    pub(in crate::agent) path: PathBuf,
    /// Budgets that an earlier process has used up.
    pub(in crate::agent) saved: Option<Saved>,
    pub(in crate::agent) holdings: Holdings,
}

/// The incident directory, open or waited for.
pub(in crate::agent) struct Directory {
    location: Location,
    clock: Arc<dyn Clock>,
    state: State,
}

enum State {
    // The guard is dropped first: its descriptor is the store's.
    Open { _lock: Option<NotInherited>, store: Store },
    Waiting { why: String, next: Moment, backoff: Backoff },
}

impl Directory {
    /// Opens the directory at `location`. If that fails the error is returned beside the directory, which is waited for
    /// from then on.
    pub(in crate::agent) fn open(
        location: Location,
        settings: &StoreSettings,
        clock: Arc<dyn Clock>,
    ) -> (Self, Result<Opened, Error>) {
        let next = clock.now();
        let state = State::Waiting { why: String::new(), next, backoff: Backoff::new() };
        let mut this = Self { location, clock, state };
        let first = this.attempt(settings);
        (this, first)
    }

    /// The store, or why there is none.
    pub(in crate::agent) fn store(&self) -> Result<&Store, &str> {
        match &self.state {
            State::Open { store, .. } => Ok(store),
            State::Waiting { why, .. } => Err(why),
        }
    }

    /// Returns how long until [`Self::retry`] is due, or `None` if the directory is open.
    pub(in crate::agent) fn until_retry(&self) -> Option<Duration> {
        match &self.state {
            State::Open { .. } => None,
            State::Waiting { next, .. } => Some(next.since(self.clock.now())),
        }
    }

    /// Tries to open a directory that is waited for.
    pub(in crate::agent) fn retry(&mut self, settings: &StoreSettings) -> Option<Opened> {
        if matches!(self.state, State::Open { .. }) {
            return None;
        }
        self.attempt(settings).ok()
    }

    /// Makes a directory again that was removed while it was open.
    pub(in crate::agent) fn replace_if_removed(
        &mut self,
        settings: &StoreSettings,
    ) -> Option<Result<Opened, Error>> {
        if !self.store().is_ok_and(Store::is_removed) {
            return None;
        }
        let made = self.attempt(settings);
        if made.is_ok() {
            let path = self.location.path();
            log::warn(format!("{} was removed and is made again", path.display()));
        }
        // What was saved is of this process, which knows it.
        Some(made.map(|opened| Opened { saved: None, ..opened }))
    }

    fn attempt(&mut self, settings: &StoreSettings) -> Result<Opened, Error> {
        match Store::open_at(&self.location, settings.clone(), Arc::clone(&self.clock)) {
            Ok((store, recovery)) => {
                report(&recovery);
                warnings::clear(TOPIC);
                let path = store.dir().to_owned();
                let opened = Opened { path, saved: saved(&store), holdings: store.holdings() };
                let lock = store.lock_descriptor().and_then(NotInherited::new);
                self.state = State::Open { _lock: lock, store };
                Ok(opened)
            }
            Err(error) => {
                let why = chain(&error);
                warnings::set(
                    TOPIC,
                    format!(
                        "no incident is stored, and rules go on without: {why}; tried again every few seconds"
                    ),
                );
                let mut backoff = match &self.state {
                    State::Waiting { backoff, .. } => *backoff,
                    State::Open { .. } => Backoff::new(),
                };
                let next = self.clock.now() + backoff.delay();
                self.state = State::Waiting { why, next, backoff };
                Err(error)
            }
        }
    }
}

/// Loads what an earlier process had used up. If that cannot be read, the budgets begin anew.
fn saved(store: &Store) -> Option<Saved> {
    let saved = store.load_state::<Saved>();
    let is_known = |saved: &Saved| saved.schema == Saved::SCHEMA;
    saved.map(|saved| saved.filter(is_known)).unwrap_or_else(|error| {
        log::error(format!("budgets begin anew: {error}"));
        None
    })
}

/// Logs what an earlier process left behind, if it did.
fn report(recovery: &Recovery) {
    for id in &recovery.interrupted {
        log::warn(format!("the process ended during incident {id}; its files are kept"));
    }
    for error in &recovery.failed {
        log::error(format!("an earlier incident stays as it was found: {error}"));
    }
    if !recovery.swept.is_empty() {
        log::info(format!("unfinished files swept: {}", recovery.swept.join(", ")));
    }
}
