//! Who has how much room: what is stored, what drafts are writing, and which incidents are open.
//!
//! The figures are those of the last look at the directory plus what was written since, so that a write
//! of a draft costs one lock and one `fstatvfs`; before a write is refused the directory is looked at
//! again. The lock is held during a retention: drafts wait for the room it makes.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::Holdings;
use super::ages::Ages;
use super::dir::{Dir, Space};
use super::error::{Bound, Error};
use super::lock::Lock;
use super::names::incident_name;
use super::place::Location;
use super::removed::Removed;
use super::retention::{Need, Retained};
use crate::base::{Bytes, Clock, IncidentId};
use crate::config::{Room, RuleStoreSettings, StoreSettings};

/// What every handle of one store shares.
pub(super) struct Shared {
    pub(super) root: Arc<Dir>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) location: Location,
    ledger: Mutex<Ledger>,
    /// Whether what is written takes memory.
    pub(super) in_memory: bool,
    pub(super) lock: Lock,
}

/// The figures.
pub(super) struct Ledger {
    pub(super) settings: StoreSettings,
    /// Incidents with a live handle.
    pub(super) open: BTreeMap<IncidentId, Opened>,
    /// Bytes in the files of closed incidents, by the rule in their names.
    pub(super) closed: BTreeMap<String, u64>,
    /// Bytes in finished files of incidents.
    pub(super) stored: u64,
    /// Bytes that drafts have written or are about to.
    pub(super) reserved: u64,
    /// How old the incidents are.
    pub(super) ages: Ages,
    /// How many incidents were removed.
    pub(super) removed: u64,
    /// The incidents that were removed and not yet reported.
    pub(super) unreported: Vec<Removed>,
    /// How many files were removed from incidents that stay.
    pub(super) thinned: u64,
    /// How much memory files may still take, where they do.
    pub(super) memory: Option<u64>,
}

/// An incident with a live handle.
#[derive(Debug, Default)]
pub(super) struct Opened {
    /// The rule, as in its directory's name.
    pub(super) rule: String,
    /// Bytes in its finished files.
    pub(super) stored: u64,
    /// Bytes that its drafts have written or are about to.
    pub(super) reserved: u64,
}

impl Opened {
    fn held(&self) -> u64 {
        self.stored.saturating_add(self.reserved)
    }
}

impl Ledger {
    /// A stored file of the open incident `id` that had `from` bytes has `to` bytes.
    pub(super) fn resize(&mut self, id: IncidentId, from: u64, to: u64) {
        let moved = |held: u64| held.saturating_sub(from).saturating_add(to);
        self.stored = moved(self.stored);
        if let Some(open) = self.open.get_mut(&id) {
            open.stored = moved(open.stored);
        }
    }

    /// Bytes that incidents of `rule` hold, those being written included.
    pub(super) fn held_by(&self, rule: &str) -> u64 {
        let open = self.open.values().filter(|open| open.rule == rule).map(Opened::held);
        open.fold(self.closed.get(rule).copied().unwrap_or(0), u64::saturating_add)
    }

    fn reserve(&mut self, id: IncidentId, bytes: u64) {
        self.reserved += bytes;
        self.memory = self.memory.map(|left| left.saturating_sub(bytes));
        if let Some(open) = self.open.get_mut(&id) {
            open.reserved += bytes;
        }
    }

    /// Gives up what was reserved, or, `stored`, counts it as stored.
    fn settle(&mut self, id: IncidentId, bytes: u64, stored: bool) {
        let stored = if stored { bytes } else { 0 };
        self.reserved = self.reserved.saturating_sub(bytes);
        self.stored = self.stored.saturating_add(stored);
        if let Some(open) = self.open.get_mut(&id) {
            open.reserved = open.reserved.saturating_sub(bytes);
            open.stored = open.stored.saturating_add(stored);
        }
    }

    /// What `rule`, as in a directory's name, may hold by a bound of its own.
    pub(super) fn bounds_of(&self, rule: &str) -> Option<&RuleStoreSettings> {
        let mut rules = self.settings.rules.iter();
        rules.find(|(name, _)| incident_name(name) == rule).map(|(_, bounds)| bounds)
    }
}

/// A bound that does not hold.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shortage {
    pub(super) bound: Bound,
    /// By how many bytes.
    pub(super) missing: u64,
    /// Of whose incidents; none: of all.
    pub(super) rule: Option<String>,
}

impl Shared {
    pub(super) fn new(
        root: Arc<Dir>,
        lock: Lock,
        settings: StoreSettings,
        clock: Arc<dyn Clock>,
        location: Location,
    ) -> Self {
        let ledger = Ledger {
            settings,
            open: BTreeMap::new(),
            closed: BTreeMap::new(),
            stored: 0,
            reserved: 0,
            ages: Ages::default(),
            removed: 0,
            unreported: Vec::new(),
            thinned: 0,
            memory: None,
        };
        let in_memory = root.is_in_memory();
        Self { root, clock, location, ledger: Mutex::new(ledger), in_memory, lock }
    }

    /// The figures, to be read or changed.
    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // The figures are sound between any two statements that change them.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Removes until every bound holds.
    pub(super) fn retain(&self) -> Retained {
        self.make_room(&mut self.ledger(), Need::default())
    }

    /// Which of the bounds on room would not hold with `need` more, the narrowest first.
    pub(super) fn shortage(&self, ledger: &Ledger, need: Need) -> Option<Shortage> {
        let over = |held: u64, most: Bytes, bound, rule: Option<&str>| {
            let missing = held.saturating_sub(most.get());
            let rule = rule.map(str::to_owned);
            (missing > 0).then_some(Shortage { bound, missing, rule })
        };
        let settings = &ledger.settings;
        let open = need.incident.and_then(|id| ledger.open.get(&id));
        if let Some(open) = open {
            let held = open.held().saturating_add(need.bytes);
            let short = over(held, settings.max_incident_bytes, Bound::Incident, Some(&open.rule));
            if short.is_some() {
                return short;
            }
        }
        for (name, bounds) in &settings.rules {
            let Some(most) = bounds.max_bytes else { continue };
            let rule = incident_name(name);
            let own = open.is_some_and(|open| open.rule == rule);
            let held = ledger.held_by(&rule).saturating_add(if own { need.bytes } else { 0 });
            let short = over(held, most, Bound::RuleBytes, Some(&rule));
            // Another rule that holds too much is a retention's matter, not this write's.
            if short.is_some() && (own || open.is_none()) {
                return short;
            }
        }
        let held = ledger.stored.saturating_add(ledger.reserved).saturating_add(need.bytes);
        let short = over(held, settings.max_bytes, Bound::Bytes, None);
        if short.is_some() {
            return short;
        }
        let memory = ledger.memory.filter(|_| self.in_memory).map_or(u64::MAX, |left| left);
        let short = over(need.bytes, Bytes(memory), Bound::Memory, None);
        if short.is_some() {
            return short;
        }
        // When the file system does not say, the write itself will.
        let space = self.root.space()?;
        let keep = keep_free(settings.keep_free, space);
        let missing = keep.saturating_sub(space.free.saturating_sub(need.bytes));
        (missing > 0).then_some(Shortage { bound: Bound::Free, missing, rule: None })
    }

    /// The descriptor that holds the lock.
    pub(super) fn lock_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.lock.descriptor()
    }

    /// How things stand, by the figures and one `fstatvfs`.
    pub(super) fn holdings(&self) -> Holdings {
        let ledger = self.ledger();
        Holdings {
            bytes: Bytes(ledger.stored.saturating_add(ledger.reserved)),
            max_bytes: ledger.settings.max_bytes,
            free: self.free(&ledger.settings).map(Bytes),
            in_memory: self.in_memory,
            memory_left: ledger.memory.filter(|_| self.in_memory).map(Bytes),
            incidents_removed: ledger.removed,
            artifacts_removed: ledger.thinned,
        }
    }

    /// What the file system has for us, if it says.
    pub(super) fn free(&self, settings: &StoreSettings) -> Option<u64> {
        let space = self.root.space()?;
        Some(space.free.saturating_sub(keep_free(settings.keep_free, space)))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The lock is the opener's: a child made by `fork` that ends by itself must not release it.
        if !self.root.is_inherited() {
            self.lock.release();
        }
    }
}

impl std::fmt::Debug for Shared {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("dir", &self.root.path()).finish_non_exhaustive()
    }
}

/// The room one draft takes, given back when it is dropped.
#[derive(Debug)]
pub(super) struct Reservation {
    shared: Arc<Shared>,
    incident: IncidentId,
    bytes: u64,
}

impl Reservation {
    pub(super) fn new(shared: &Arc<Shared>, incident: IncidentId) -> Self {
        Self { shared: Arc::clone(shared), incident, bytes: 0 }
    }

    /// Takes `bytes` more, for the file at `path`; of closed incidents what is missed least goes if need
    /// be.
    pub(super) fn grow(&mut self, bytes: u64, path: impl FnOnce() -> PathBuf) -> Result<(), Error> {
        let mut ledger = self.shared.ledger();
        let need = Need { bytes, incident: Some(self.incident), ..Need::default() };
        if self.shared.shortage(&ledger, need).is_some() {
            self.shared.make_room(&mut ledger, need);
            if let Some(Shortage { bound, .. }) = self.shared.shortage(&ledger, need) {
                return Err(Error::Full { path: path(), bound });
            }
        }
        ledger.reserve(self.incident, bytes);
        self.bytes += bytes;
        Ok(())
    }

    /// Runs `publish`, which gives the file its name, and counts the room as stored if it did. No look at
    /// the directory falls between the two, so the file is counted once.
    pub(super) fn settle(
        &mut self,
        publish: impl FnOnce() -> Result<bool, Error>,
    ) -> Result<bool, Error> {
        let mut ledger = self.shared.ledger();
        let published = publish()?;
        if published {
            ledger.settle(self.incident, std::mem::take(&mut self.bytes), true);
        }
        Ok(published)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shared.ledger().settle(self.incident, self.bytes, false);
    }
}

/// An incident that is open for as long as this lives.
#[derive(Debug)]
pub(super) struct Registration {
    pub(super) shared: Arc<Shared>,
    pub(super) id: IncidentId,
}

impl Registration {
    /// None when it is open already.
    pub(super) fn new(shared: &Arc<Shared>, id: IncidentId, name: &str) -> Option<Self> {
        let mut ledger = shared.ledger();
        if ledger.open.contains_key(&id) {
            return None;
        }
        ledger.open.insert(id, Opened { rule: incident_name(name), ..Opened::default() });
        drop(ledger);
        Some(Self { shared: Arc::clone(shared), id })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut ledger = self.shared.ledger();
        if let Some(Opened { rule, stored, .. }) = ledger.open.remove(&self.id) {
            *ledger.closed.entry(rule).or_default() += stored;
        }
    }
}

/// How many bytes of a file system are left to others.
fn keep_free(room: Room, space: Space) -> u64 {
    match room {
        Room::Bytes(bytes) => bytes.get(),
        Room::Percent(percent) => (space.total as f64 * percent.get() / 100.0) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, roomy};
    use super::*;
    use crate::base::Percent;

    #[test]
    fn a_child_between_fork_and_exec_does_not_keep_a_closed_store_locked() {
        let it = Fixture::new(roomy());
        let copy = it.store.shared.lock.copy();
        let (_it, recovery) = it.reopen(roomy());
        assert!(recovery.is_empty());
        drop(copy);
    }

    #[test]
    fn room_is_left_by_bytes_or_by_share() {
        let space = Space { total: 2000, free: 150 };
        assert_eq!(keep_free(Room::Bytes(Bytes(70)), space), 70);
        assert_eq!(keep_free(Room::Percent(Percent(5.0)), space), 100);
        assert_eq!(keep_free(Room::Percent(Percent(0.0)), space), 0);
    }

    #[test]
    fn a_store_of_which_a_thread_panicked_goes_on() {
        let it = Fixture::new(roomy());
        let shared = Arc::clone(&it.store.shared);
        let panicked = std::thread::spawn(move || {
            let _ledger = shared.ledger();
            panic!("as a collector might");
        });
        assert!(panicked.join().is_err());
        let id = it.closed(10);
        assert_eq!(it.ids(), [id]);
    }
}
