//! Space accounting: bytes stored, bytes reserved by drafts, and open incidents.
//!
//! The figures are those of the last directory scan plus later writes. So a write to a draft costs
//! one lock and one `fstatvfs`. Before a write is rejected, the directory is scanned again. The
//! lock is held while limits are enforced, so drafts wait for the space that this frees.

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

/// State shared by all handles of a store.
pub(super) struct Shared {
    pub(super) root: Arc<Dir>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) location: Location,
    ledger: Mutex<Ledger>,
    /// `true` if files are in memory and count against the memory limit.
    pub(super) in_memory: bool,
    pub(super) lock: Lock,
}

/// Usage figures of a store.
pub(super) struct Ledger {
    pub(super) settings: StoreSettings,
    pub(super) open: BTreeMap<IncidentId, Opened>,
    /// Bytes in the files of closed incidents, by the rule in the directory name.
    pub(super) closed: BTreeMap<String, u64>,
    /// Bytes in finished files of all incidents.
    pub(super) stored: u64,
    /// Bytes that drafts have written or are about to write.
    pub(super) reserved: u64,
    pub(super) ages: Ages,
    /// Number of incidents evicted since the store was opened.
    pub(super) removed: u64,
    /// Evicted incidents that are not yet reported.
    pub(super) unreported: Vec<Removed>,
    /// Number of files pruned from incidents that stay.
    pub(super) thinned: u64,
    /// Bytes of memory that files may still take, or `None` if unknown.
    pub(super) memory: Option<u64>,
}

/// An incident with a live handle.
#[derive(Debug, Default)]
pub(super) struct Opened {
    /// The rule, as written in the directory name.
    pub(super) rule: String,
    /// Bytes in its finished files.
    pub(super) stored: u64,
    /// Bytes that its drafts have written or are about to write.
    pub(super) reserved: u64,
}

impl Opened {
    fn held(&self) -> u64 {
        self.stored.saturating_add(self.reserved)
    }
}

impl Ledger {
    /// Records that a file of the open incident `id` changed from `from` to `to` bytes.
    pub(super) fn resize(&mut self, id: IncidentId, from: u64, to: u64) {
        let moved = |held: u64| held.saturating_sub(from).saturating_add(to);
        self.stored = moved(self.stored);
        if let Some(open) = self.open.get_mut(&id) {
            open.stored = moved(open.stored);
        }
    }

    /// Returns the bytes held by incidents of `rule`, drafts included.
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

    /// Releases a reservation. Counts it as stored if `stored` is `true`.
    fn settle(&mut self, id: IncidentId, bytes: u64, stored: bool) {
        let stored = if stored { bytes } else { 0 };
        self.reserved = self.reserved.saturating_sub(bytes);
        self.stored = self.stored.saturating_add(stored);
        if let Some(open) = self.open.get_mut(&id) {
            open.reserved = open.reserved.saturating_sub(bytes);
            open.stored = open.stored.saturating_add(stored);
        }
    }

    /// Returns the limits of `rule`, as written in a directory name, if it has any.
    pub(super) fn bounds_of(&self, rule: &str) -> Option<&RuleStoreSettings> {
        let mut rules = self.settings.rules.iter();
        rules.find(|(name, _)| incident_name(name) == rule).map(|(_, bounds)| bounds)
    }
}

/// An exceeded limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Shortage {
    pub(super) bound: Bound,
    /// Bytes by which the limit is exceeded.
    pub(super) missing: u64,
    /// The rule whose incidents count against the limit, or `None` if all do.
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

    pub(super) fn ledger(&self) -> MutexGuard<'_, Ledger> {
        // A panic cannot leave the figures inconsistent: they are valid after every statement.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Evicts incidents until every limit holds.
    pub(super) fn retain(&self) -> Retained {
        self.make_room(&mut self.ledger(), Need::default())
    }

    /// Returns the first space limit, from narrow to wide, that would not hold with `need` added.
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
            // The usage of another rule does not fail this write; it is reduced when limits are
            // enforced.
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
        // If the file system does not report its space, a full device fails the write itself.
        let space = self.root.space()?;
        let keep = keep_free(settings.keep_free, space);
        let missing = keep.saturating_sub(space.free.saturating_sub(need.bytes));
        (missing > 0).then_some(Shortage { bound: Bound::Free, missing, rule: None })
    }

    /// Returns the descriptor that holds the lock.
    pub(super) fn lock_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.lock.descriptor()
    }

    /// Returns the usage, from the figures and one `fstatvfs`.
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

    /// Returns the bytes the store may still write to the file system, or `None` if it does not
    /// report its space.
    pub(super) fn free(&self, settings: &StoreSettings) -> Option<u64> {
        let space = self.root.space()?;
        Some(space.free.saturating_sub(keep_free(settings.keep_free, space)))
    }
}

impl Drop for Shared {
    fn drop(&mut self) {
        // The lock belongs to the process that opened the store. The exit of a forked child must
        // not release it.
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

/// A space reservation of one draft. Dropping it releases the space.
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

    /// Reserves `bytes` more for the file at `path`. Prunes and evicts closed incidents if
    /// necessary.
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

    /// Runs `publish`, which names the file, and counts the reservation as stored if it returns
    /// `true`. The lock is held during both: a directory scan in between would count the file
    /// twice.
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

/// A guard that marks an incident as open while it lives.
#[derive(Debug)]
pub(super) struct Registration {
    pub(super) shared: Arc<Shared>,
    pub(super) id: IncidentId,
}

impl Registration {
    /// Returns `None` if the incident is already open.
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

/// Returns the number of bytes that must stay free on the file system.
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
