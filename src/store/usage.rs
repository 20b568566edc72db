//! Space accounting: bytes stored, bytes reserved by drafts, and open incidents.
//!
//! The figures are those of the last directory scan plus later writes. So a write to a draft costs
//! one lock and one `fstatvfs`. Before a write is rejected, the directory is scanned again. The
//! lock is held while limits are enforced, so drafts wait for the space that this frees.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::StoreUsage;
use super::ages::IncidentAges;
use super::dir::{Dir, DiskSpace};
use super::error::{Error, StoreLimit};
use super::lock::WriterLock;
use super::names::incident_name;
use super::place::Location;
use super::removed::Removed;
use super::retention::{RetentionReport, SpaceRequest};
use crate::base::{Bytes, Clock, IncidentId};
use crate::config::{DiskReserve, RuleStoreSettings, StoreSettings};

/// State shared by all handles of a store.
pub(super) struct StoreInner {
    pub(super) root: Arc<Dir>,
    pub(super) clock: Arc<dyn Clock>,
    pub(super) location: Location,
    ledger: Mutex<SpaceUsage>,
    /// `true` if files are in memory and count against the memory limit.
    pub(super) in_memory: bool,
    pub(super) lock: WriterLock,
}

/// Usage figures of a store.
pub(super) struct SpaceUsage {
    pub(super) settings: StoreSettings,
    pub(super) open: BTreeMap<IncidentId, OpenIncidents>,
    /// Bytes in the files of closed incidents, by the rule in the directory name.
    pub(super) closed: BTreeMap<String, u64>,
    /// Bytes in finished files of all incidents.
    pub(super) stored: u64,
    /// Bytes that drafts have written or are about to write.
    pub(super) reserved: u64,
    pub(super) ages: IncidentAges,
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
pub(super) struct OpenIncidents {
    /// The rule, as written in the directory name.
    pub(super) rule: String,
    /// Bytes in its finished files.
    pub(super) stored: u64,
    /// Bytes that its drafts have written or are about to write.
    pub(super) reserved: u64,
}

impl OpenIncidents {
    fn held(&self) -> u64 {
        self.stored.saturating_add(self.reserved)
    }
}

impl SpaceUsage {
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
        let open = self.open.values().filter(|open| open.rule == rule).map(OpenIncidents::held);
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
pub(super) struct LimitExceeded {
    pub(super) bound: StoreLimit,
    /// Bytes by which the limit is exceeded.
    pub(super) missing: u64,
    /// The rule whose incidents count against the limit, or `None` if all do.
    pub(super) rule: Option<String>,
}

impl StoreInner {
    pub(super) fn new(
        root: Arc<Dir>,
        lock: WriterLock,
        settings: StoreSettings,
        clock: Arc<dyn Clock>,
        location: Location,
    ) -> Self {
        let ledger = SpaceUsage {
            settings,
            open: BTreeMap::new(),
            closed: BTreeMap::new(),
            stored: 0,
            reserved: 0,
            ages: IncidentAges::default(),
            removed: 0,
            unreported: Vec::new(),
            thinned: 0,
            memory: None,
        };
        let in_memory = root.is_in_memory();
        Self { root, clock, location, ledger: Mutex::new(ledger), in_memory, lock }
    }

    pub(super) fn ledger(&self) -> MutexGuard<'_, SpaceUsage> {
        // A panic cannot leave the figures inconsistent: they are valid after every statement.
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Evicts incidents until every limit holds.
    pub(super) fn retain(&self) -> RetentionReport {
        self.make_room(&mut self.ledger(), SpaceRequest::default())
    }

    /// Returns the first space limit, from narrow to wide, that would not hold with `need` added.
    pub(super) fn shortage(
        &self,
        ledger: &SpaceUsage,
        need: SpaceRequest,
    ) -> Option<LimitExceeded> {
        let over = |held: u64, most: Bytes, bound, rule: Option<&str>| {
            let missing = held.saturating_sub(most.get());
            let rule = rule.map(str::to_owned);
            (missing > 0).then_some(LimitExceeded { bound, missing, rule })
        };
        let settings = &ledger.settings;
        let open = need.incident.and_then(|id| ledger.open.get(&id));
        if let Some(open) = open {
            let held = open.held().saturating_add(need.bytes);
            let short =
                over(held, settings.max_incident_bytes, StoreLimit::Incident, Some(&open.rule));
            if short.is_some() {
                return short;
            }
        }
        for (name, bounds) in &settings.rules {
            let Some(most) = bounds.max_bytes else { continue };
            let rule = incident_name(name);
            let own = open.is_some_and(|open| open.rule == rule);
            let held = ledger.held_by(&rule).saturating_add(if own { need.bytes } else { 0 });
            let short = over(held, most, StoreLimit::RuleBytes, Some(&rule));
            // The usage of another rule does not fail this write; it is reduced when limits are
            // enforced.
            if short.is_some() && (own || open.is_none()) {
                return short;
            }
        }
        let held = ledger.stored.saturating_add(ledger.reserved).saturating_add(need.bytes);
        let short = over(held, settings.max_bytes, StoreLimit::Bytes, None);
        if short.is_some() {
            return short;
        }
        let memory = ledger.memory.filter(|_| self.in_memory).map_or(u64::MAX, |left| left);
        let short = over(need.bytes, Bytes(memory), StoreLimit::Memory, None);
        if short.is_some() {
            return short;
        }
        // If the file system does not report its space, a full device fails the write itself.
        let space = self.root.space()?;
        let keep = keep_free(settings.keep_free, space);
        let missing = keep.saturating_sub(space.free.saturating_sub(need.bytes));
        (missing > 0).then_some(LimitExceeded { bound: StoreLimit::Free, missing, rule: None })
    }

    /// Returns the descriptor that holds the lock.
    pub(super) fn lock_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.lock.descriptor()
    }

    /// Returns the usage, from the figures and one `fstatvfs`.
    pub(super) fn holdings(&self) -> StoreUsage {
        let ledger = self.ledger();
        StoreUsage {
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

impl Drop for StoreInner {
    fn drop(&mut self) {
        // The lock belongs to the process that opened the store. The exit of a forked child must
        // not release it.
        if !self.root.is_inherited() {
            self.lock.release();
        }
    }
}

impl std::fmt::Debug for StoreInner {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Shared").field("dir", &self.root.path()).finish_non_exhaustive()
    }
}

/// A space reservation of one draft. Dropping it releases the space.
#[derive(Debug)]
pub(super) struct SpaceReservation {
    shared: Arc<StoreInner>,
    incident: IncidentId,
    bytes: u64,
}

impl SpaceReservation {
    pub(super) fn new(shared: &Arc<StoreInner>, incident: IncidentId) -> Self {
        Self { shared: Arc::clone(shared), incident, bytes: 0 }
    }

    /// Reserves `bytes` more for the file at `path`. Prunes and evicts closed incidents if
    /// necessary.
    pub(super) fn grow(&mut self, bytes: u64, path: impl FnOnce() -> PathBuf) -> Result<(), Error> {
        let mut ledger = self.shared.ledger();
        let need = SpaceRequest { bytes, incident: Some(self.incident), ..SpaceRequest::default() };
        if self.shared.shortage(&ledger, need).is_some() {
            self.shared.make_room(&mut ledger, need);
            if let Some(LimitExceeded { bound, .. }) = self.shared.shortage(&ledger, need) {
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

impl Drop for SpaceReservation {
    fn drop(&mut self) {
        self.shared.ledger().settle(self.incident, self.bytes, false);
    }
}

/// A guard that marks an incident as open while it lives.
#[derive(Debug)]
pub(super) struct Registration {
    pub(super) shared: Arc<StoreInner>,
    pub(super) id: IncidentId,
}

impl Registration {
    /// Returns `None` if the incident is already open.
    pub(super) fn new(shared: &Arc<StoreInner>, id: IncidentId, name: &str) -> Option<Self> {
        let mut ledger = shared.ledger();
        if ledger.open.contains_key(&id) {
            return None;
        }
        ledger
            .open
            .insert(id, OpenIncidents { rule: incident_name(name), ..OpenIncidents::default() });
        drop(ledger);
        Some(Self { shared: Arc::clone(shared), id })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut ledger = self.shared.ledger();
        if let Some(OpenIncidents { rule, stored, .. }) = ledger.open.remove(&self.id) {
            *ledger.closed.entry(rule).or_default() += stored;
        }
    }
}

/// Returns the number of bytes that must stay free on the file system.
fn keep_free(room: DiskReserve, space: DiskSpace) -> u64 {
    match room {
        DiskReserve::Bytes(bytes) => bytes.get(),
        DiskReserve::Percent(percent) => (space.total as f64 * percent.get() / 100.0) as u64,
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
        let space = DiskSpace { total: 2000, free: 150 };
        assert_eq!(keep_free(DiskReserve::Bytes(Bytes(70)), space), 70);
        assert_eq!(keep_free(DiskReserve::Percent(Percent(5.0)), space), 100);
        assert_eq!(keep_free(DiskReserve::Percent(Percent(0.0)), space), 0);
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
