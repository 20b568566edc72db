//! Who has how much room: what is stored, what drafts are writing, and which incidents are open.
//!
//! The figures are those of the last look at the directory plus what was written since, so that a write
//! of a draft costs one lock and one `fstatvfs`; before a write is refused the directory is looked at
//! again. The lock is held during a retention: drafts wait for the room it makes.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::PathBuf;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use rustix::fs::{FlockOperation, flock};

use super::dir::{Dir, Space};
use super::error::{Bound, Error};
use super::retention::{Need, Retained};
use crate::base::{Clock, IncidentId};
use crate::config::{Room, StoreSettings};

/// What every handle of one store shares.
pub(super) struct Shared {
    pub(super) root: Dir,
    pub(super) clock: Arc<dyn Clock>,
    /// Whether drafts are written to files without names. They need a file system that has such and
    /// a `/proc` to link them through.
    pub(super) unnamed: AtomicBool,
    ledger: Mutex<Ledger>,
    /// Held for its lock.
    lock: File,
}

/// The figures.
pub(super) struct Ledger {
    pub(super) settings: StoreSettings,
    /// Incidents with a live handle.
    pub(super) open: BTreeSet<IncidentId>,
    /// Bytes in finished files of incidents.
    pub(super) stored: u64,
    /// Bytes that drafts have written or are about to.
    pub(super) reserved: u64,
    /// How many incidents were removed.
    pub(super) removed: u64,
}

impl Ledger {
    /// A stored file of `from` bytes has `to` bytes.
    pub(super) fn resize(&mut self, from: u64, to: u64) {
        self.stored = self.stored.saturating_sub(from).saturating_add(to);
    }
}

impl Shared {
    pub(super) fn new(
        root: Dir,
        lock: File,
        settings: StoreSettings,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let unnamed = AtomicBool::new(std::path::Path::new("/proc/thread-self/fd").is_dir());
        let ledger = Ledger { settings, open: BTreeSet::new(), stored: 0, reserved: 0, removed: 0 };
        Self { root, clock, unnamed, ledger: Mutex::new(ledger), lock }
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

    /// Which of the bounds on room would not hold with `bytes` more, and by how much.
    pub(super) fn shortage(&self, ledger: &Ledger, bytes: u64) -> Option<(Bound, u64)> {
        let held = ledger.stored.saturating_add(ledger.reserved).saturating_add(bytes);
        let over = held.saturating_sub(ledger.settings.max_bytes.get());
        if over > 0 {
            return Some((Bound::Bytes, over));
        }
        // When the file system does not say, the write itself will.
        let space = self.root.space().ok()?;
        let keep = keep_free(ledger.settings.keep_free, space);
        let missing = keep.saturating_sub(space.free.saturating_sub(bytes));
        (missing > 0).then_some((Bound::Free, missing))
    }
}

impl Drop for Shared {
    /// Closing would do, but for a child of the host that is between `fork` and `exec` at this moment:
    /// it holds a copy of the descriptor, and the lock with it.
    fn drop(&mut self) {
        // The lock is the opener's: a child made by `fork` that ends by itself must not release it.
        if self.root.is_inherited() {
            return;
        }
        let _ = flock(&self.lock, FlockOperation::Unlock);
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
    bytes: u64,
}

impl Reservation {
    pub(super) fn new(shared: &Arc<Shared>) -> Self {
        Self { shared: Arc::clone(shared), bytes: 0 }
    }

    /// Takes `bytes` more, for the file at `path`; the oldest closed incidents go if need be.
    pub(super) fn grow(&mut self, bytes: u64, path: impl FnOnce() -> PathBuf) -> Result<(), Error> {
        let mut ledger = self.shared.ledger();
        if self.shared.shortage(&ledger, bytes).is_some() {
            self.shared.make_room(&mut ledger, Need { bytes, ..Need::default() });
            if let Some((bound, _)) = self.shared.shortage(&ledger, bytes) {
                return Err(Error::Full { path: path(), bound });
            }
        }
        ledger.reserved += bytes;
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
            ledger.reserved -= self.bytes;
            ledger.stored += self.bytes;
            self.bytes = 0;
        }
        Ok(published)
    }
}

impl Drop for Reservation {
    fn drop(&mut self) {
        self.shared.ledger().reserved -= self.bytes;
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
    pub(super) fn new(shared: &Arc<Shared>, id: IncidentId) -> Option<Self> {
        let fresh = shared.ledger().open.insert(id);
        fresh.then(|| Self { shared: Arc::clone(shared), id })
    }
}

impl Drop for Registration {
    fn drop(&mut self) {
        self.shared.ledger().open.remove(&self.id);
    }
}

/// Whether drafts may try files without names; told that they cannot, none tries again.
pub(super) fn unnamed_file(shared: &Shared, dir: &Dir) -> Result<Option<File>, Error> {
    if !shared.unnamed.load(Ordering::Relaxed) {
        return Ok(None);
    }
    let file = dir.unnamed()?;
    if file.is_none() {
        shared.unnamed.store(false, Ordering::Relaxed);
    }
    Ok(file)
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
    use crate::base::{Bytes, Percent};

    #[test]
    fn a_child_between_fork_and_exec_does_not_keep_a_closed_store_locked() {
        let it = Fixture::new(roomy());
        let copy = it.store.shared.lock.try_clone().unwrap();
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
