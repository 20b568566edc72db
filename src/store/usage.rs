//! Space accounting: bytes stored, bytes reserved by drafts, and open incidents.
//!
//! The figures are those of the last directory scan plus later writes. So a write to a draft costs
//! one lock and one `fstatvfs`. Before a write is rejected, the directory is scanned again. The
//! lock is held while limits are enforced, so drafts wait for the space that this frees.

use std::collections::BTreeMap;
use std::os::fd::BorrowedFd;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::ages::IncidentAges;
use super::dir::{Dir, DiskSpace};
use super::error::StoreLimit;
use super::evicted::EvictedIncident;
use super::lock::WriterLock;
use super::names::sanitize_incident_name;
use crate::base::{Bytes, Clock, IncidentId};
use crate::config::{DiskReserve, RuleStoreSettings, StoreSettings};
use crate::store::space::{RetentionReport, SpaceRequest, StoreUsage};

/// State shared by all handles of a store.
pub(super) struct StoreInner {
    pub(super) root: Arc<Dir>,
    pub(super) clock: Arc<dyn Clock>,
    usage: Mutex<SpaceUsage>,
    /// `true` if files are in memory and count against the memory limit.
    pub(super) in_memory: bool,
    pub(super) lock: WriterLock,
}

/// Usage figures of a store.
pub(super) struct SpaceUsage {
    pub(super) settings: StoreSettings,
    pub(super) open_incidents: BTreeMap<IncidentId, OpenIncidentUsage>,
    /// Bytes in the files of closed incidents, by the rule in the directory name.
    pub(super) closed_bytes: BTreeMap<String, u64>,
    /// Bytes in finished files of all incidents.
    pub(super) stored_bytes: u64,
    /// Bytes that drafts have written or are about to write.
    pub(super) reserved_bytes: u64,
    pub(super) ages: IncidentAges,
    /// Number of incidents evicted since the store was opened.
    pub(super) evicted_count: u64,
    /// Evicted incidents that are not yet reported.
    pub(super) unreported_evictions: Vec<EvictedIncident>,
    /// Number of files pruned from incidents that stay.
    pub(super) pruned_count: u64,
    /// Bytes of memory that files may still take, or `None` if unknown.
    pub(super) memory_left: Option<u64>,
}

/// An incident with a live handle.
#[derive(Debug, Default)]
pub(super) struct OpenIncidentUsage {
    /// The rule, as written in the directory name.
    pub(super) rule: String,
    /// Bytes in its finished files.
    pub(super) stored_bytes: u64,
    /// Bytes that its drafts have written or are about to write.
    pub(super) reserved_bytes: u64,
}

impl OpenIncidentUsage {
    fn total_bytes(&self) -> u64 {
        self.stored_bytes.saturating_add(self.reserved_bytes)
    }
}

impl SpaceUsage {
    /// Records that a file of the open incident `id` changed from `from` to `to` bytes.
    pub(super) fn resize(&mut self, id: IncidentId, from: u64, to: u64) {
        let resized = |bytes: u64| bytes.saturating_sub(from).saturating_add(to);
        self.stored_bytes = resized(self.stored_bytes);
        if let Some(open) = self.open_incidents.get_mut(&id) {
            open.stored_bytes = resized(open.stored_bytes);
        }
    }

    /// Returns the bytes held by incidents of `rule`, drafts included.
    pub(super) fn bytes_of_rule(&self, rule: &str) -> u64 {
        let open = self
            .open_incidents
            .values()
            .filter(|open| open.rule == rule)
            .map(OpenIncidentUsage::total_bytes);
        open.fold(self.closed_bytes.get(rule).copied().unwrap_or(0), u64::saturating_add)
    }

    pub(super) fn reserve(&mut self, id: IncidentId, bytes: u64) {
        self.reserved_bytes += bytes;
        self.memory_left = self.memory_left.map(|left| left.saturating_sub(bytes));
        if let Some(open) = self.open_incidents.get_mut(&id) {
            open.reserved_bytes += bytes;
        }
    }

    /// Releases a reservation. Counts it as stored if `is_stored` is `true`.
    pub(super) fn release(&mut self, id: IncidentId, bytes: u64, is_stored: bool) {
        let stored_bytes = if is_stored { bytes } else { 0 };
        self.reserved_bytes = self.reserved_bytes.saturating_sub(bytes);
        self.stored_bytes = self.stored_bytes.saturating_add(stored_bytes);
        if let Some(open) = self.open_incidents.get_mut(&id) {
            open.reserved_bytes = open.reserved_bytes.saturating_sub(bytes);
            open.stored_bytes = open.stored_bytes.saturating_add(stored_bytes);
        }
    }

    /// Returns the limits of `rule`, as written in a directory name, if it has any.
    pub(super) fn limits_of_rule(&self, rule: &str) -> Option<&RuleStoreSettings> {
        let mut rules = self.settings.rules.iter();
        rules.find(|(name, _)| sanitize_incident_name(name) == rule).map(|(_, limits)| limits)
    }
}

/// An exceeded limit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LimitExceeded {
    pub(super) limit: StoreLimit,
    /// Bytes by which the limit is exceeded.
    pub(super) missing_bytes: u64,
    /// The rule whose incidents count against the limit, or `None` if all do.
    pub(super) rule: Option<String>,
}

impl StoreInner {
    pub(super) fn new(
        root: Arc<Dir>,
        lock: WriterLock,
        settings: StoreSettings,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let usage = SpaceUsage {
            settings,
            open_incidents: BTreeMap::new(),
            closed_bytes: BTreeMap::new(),
            stored_bytes: 0,
            reserved_bytes: 0,
            ages: IncidentAges::default(),
            evicted_count: 0,
            unreported_evictions: Vec::new(),
            pruned_count: 0,
            memory_left: None,
        };
        let in_memory = root.is_in_memory();
        Self { root, clock, usage: Mutex::new(usage), in_memory, lock }
    }

    pub(super) fn lock_usage(&self) -> MutexGuard<'_, SpaceUsage> {
        // A panic cannot leave the figures inconsistent: they are valid after every statement.
        self.usage.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Evicts incidents until every limit holds.
    pub(super) fn enforce_limits(&self) -> RetentionReport {
        self.free_space(&mut self.lock_usage(), SpaceRequest::default())
    }

    /// Returns the first space limit, from narrow to wide, that would not hold with `request`
    /// added.
    pub(super) fn exceeded_limit(
        &self,
        usage: &SpaceUsage,
        request: SpaceRequest,
    ) -> Option<LimitExceeded> {
        let check_limit = |used: u64, max: Bytes, limit, rule: Option<&str>| {
            let missing_bytes = used.saturating_sub(max.get());
            let rule = rule.map(str::to_owned);
            (missing_bytes > 0).then_some(LimitExceeded { limit, missing_bytes, rule })
        };
        let settings = &usage.settings;
        let open = request.incident.and_then(|id| usage.open_incidents.get(&id));
        if let Some(open) = open {
            let used = open.total_bytes().saturating_add(request.bytes);
            let exceeded = check_limit(
                used,
                settings.max_bytes_per_incident,
                StoreLimit::IncidentBytes,
                Some(&open.rule),
            );
            if exceeded.is_some() {
                return exceeded;
            }
        }
        for (name, limits) in &settings.rules {
            let Some(max_bytes) = limits.max_bytes else { continue };
            let rule = sanitize_incident_name(name);
            let is_own_rule = open.is_some_and(|open| open.rule == rule);
            let used = usage.bytes_of_rule(&rule).saturating_add(if is_own_rule {
                request.bytes
            } else {
                0
            });
            let exceeded = check_limit(used, max_bytes, StoreLimit::RuleBytes, Some(&rule));
            // The usage of another rule does not fail this write; it is reduced when limits are
            // enforced.
            if exceeded.is_some() && (is_own_rule || open.is_none()) {
                return exceeded;
            }
        }
        let used =
            usage.stored_bytes.saturating_add(usage.reserved_bytes).saturating_add(request.bytes);
        let exceeded = check_limit(used, settings.max_bytes, StoreLimit::Bytes, None);
        if exceeded.is_some() {
            return exceeded;
        }
        let memory = usage.memory_left.filter(|_| self.in_memory).map_or(u64::MAX, |left| left);
        let exceeded = check_limit(request.bytes, Bytes(memory), StoreLimit::Memory, None);
        if exceeded.is_some() {
            return exceeded;
        }
        // If the file system does not report its space, a full device fails the write itself.
        let space = self.root.disk_space()?;
        let min_free = min_free_bytes(settings.min_free_space, space);
        let missing_bytes = min_free.saturating_sub(space.free.saturating_sub(request.bytes));
        (missing_bytes > 0).then_some(LimitExceeded {
            limit: StoreLimit::MinFreeSpace,
            missing_bytes,
            rule: None,
        })
    }

    /// Returns the descriptor that holds the lock.
    pub(super) fn lock_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.lock.descriptor()
    }

    /// Returns the usage, from the figures and one `fstatvfs`.
    pub(super) fn usage(&self) -> StoreUsage {
        let usage = self.lock_usage();
        StoreUsage {
            bytes: Bytes(usage.stored_bytes.saturating_add(usage.reserved_bytes)),
            max_bytes: usage.settings.max_bytes,
            free: self.free_beyond_reserve(&usage.settings).map(Bytes),
            in_memory: self.in_memory,
            memory_left: usage.memory_left.filter(|_| self.in_memory).map(Bytes),
            incidents_removed: usage.evicted_count,
            artifacts_removed: usage.pruned_count,
        }
    }

    /// Returns the bytes the store may still write to the file system, or `None` if it does not
    /// report its space.
    pub(super) fn free_beyond_reserve(&self, settings: &StoreSettings) -> Option<u64> {
        let space = self.root.disk_space()?;
        Some(space.free.saturating_sub(min_free_bytes(settings.min_free_space, space)))
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
        f.debug_struct("StoreInner").field("dir", &self.root.path()).finish_non_exhaustive()
    }
}

/// A guard that marks an incident as open while it lives.
#[derive(Debug)]
pub(super) struct Registration {
    pub(super) store: Arc<StoreInner>,
    pub(super) id: IncidentId,
}

impl Registration {
    /// Returns `None` if the incident is already open.
    pub(super) fn new(store: &Arc<StoreInner>, id: IncidentId, name: &str) -> Option<Self> {
        let mut usage = store.lock_usage();
        if usage.open_incidents.contains_key(&id) {
            return None;
        }
        usage.open_incidents.insert(
            id,
            OpenIncidentUsage {
                rule: sanitize_incident_name(name),
                ..OpenIncidentUsage::default()
            },
        );
        drop(usage);
        Some(Self { store: Arc::clone(store), id })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        let mut usage = self.store.lock_usage();
        if let Some(OpenIncidentUsage { rule, stored_bytes, .. }) =
            usage.open_incidents.remove(&self.id)
        {
            *usage.closed_bytes.entry(rule).or_default() += stored_bytes;
        }
    }
}

/// Returns the number of bytes that must stay free on the file system.
fn min_free_bytes(reserve: DiskReserve, space: DiskSpace) -> u64 {
    match reserve {
        DiskReserve::Bytes(bytes) => bytes.get(),
        DiskReserve::Percent(percent) => (space.total as f64 * percent.get() / 100.0) as u64,
    }
}

#[cfg(test)]
mod tests {
    use super::super::fixture::{Fixture, generous_settings};
    use super::*;
    use crate::base::Percent;

    #[test]
    fn forked_child_does_not_keep_closed_store_locked() {
        let fixture = Fixture::new(generous_settings());
        let copy = fixture.store.inner.lock.clone_file();
        let (_fixture, recovery) = fixture.reopen(generous_settings());
        assert!(recovery.is_empty());
        drop(copy);
    }

    #[test]
    fn min_free_space_is_bytes_or_percent() {
        let space = DiskSpace { total: 2000, free: 150 };
        assert_eq!(min_free_bytes(DiskReserve::Bytes(Bytes(70)), space), 70);
        assert_eq!(min_free_bytes(DiskReserve::Percent(Percent(5.0)), space), 100);
        assert_eq!(min_free_bytes(DiskReserve::Percent(Percent(0.0)), space), 0);
    }

    #[test]
    fn store_works_after_panic_while_usage_is_locked() {
        let fixture = Fixture::new(generous_settings());
        let shared = Arc::clone(&fixture.store.inner);
        let panicked = std::thread::spawn(move || {
            let _usage = shared.lock_usage();
            panic!("as a collector might");
        });
        assert!(panicked.join().is_err());
        let id = fixture.create_closed(10);
        assert_eq!(fixture.incident_ids(), [id]);
    }
}
