//! The incident directory. All incident state is in its files; there is no separate database or
//! index.
//!
//! ```text
//! Store::open ── lock, check, sweep, mark ──> Store
//!   create_incident ──> IncidentDir ── draft ──> ArtifactDraft: io::Write ── commit ──> Artifact
//!                                   ── update ──> incident.json
//!   enforce_limits ──> RetentionReport
//!   list_incidents, find, open_artifact ──> IncidentEntry, File
//! ```
//!
//! Invariants. They hold at every instant, also if the process is killed or the machine loses
//! power:
//!
//! - A file under a final name is complete. It is written and synced without a name (or under a
//!   name that ends in `.part`) and then linked; see [`ArtifactDraft::commit`].
//! - A directory under an incident name contains a complete manifest, because it is created under
//!   another name; see [`Store::create_incident`]. A manifest is replaced, never modified in place.
//! - [`Store::open`] deletes unfinished files and marks incidents that are still open as
//!   `interrupted`. It adds artifacts that are complete but not listed to the manifest.
//! - The store deletes only regular files whose names it generates, in directories whose names it
//!   generates. It never follows a link. An incident that contains a foreign file is never evicted.
//! - Drafts of an open incident count against the limits while they are written. Closed incidents
//!   are evicted to free space for them; the header of `retention` defines the order. If no
//!   incident can be evicted, the write fails and the artifact is discarded.
//! - Manifests and `state.json` are written regardless of `max_bytes` and `min_free_space`. They
//!   are small, and they record that space ran out. Only a full device prevents the write.
//! - A file pruned from an incident that stays is moved from `artifacts` to `removed` in the
//!   manifest before it is deleted. So a manifest never lists a missing file. The first, the last
//!   and the largest file of each form stay as long as the incident does.
//! - Nothing is deleted for space unless deleting it frees enough, and nothing is deleted because a
//!   write found the device full. If another program fills the disk, new evidence is lost, never
//!   old evidence.
//!
//! One process writes. It holds `.lock` by `flock`, which the kernel releases if the process is
//! killed; `lock` describes the fallback. Any number of processes read without the lock, through
//! [`Location`] and [`list`].
//!
//! A child that the service creates by `fork` without `exec` has a copy of the lock. Its writes
//! fail with [`Error::Forked`], and its exit does not release the lock. If the service is killed,
//! the directory stays locked until that child exits. The agent closes the descriptor in
//! children (`os::fork`). A child created by `fork` and `exec` has no copy.
//!
//! File systems lack features; `file_system` lists them with the fallbacks. `location` describes
//! the directory that is used if other users can write to the configured one.
//!
//! The alternative is an embedded database or an index file. It lists faster, but its content can
//! disagree with the files. There are a hundred incidents, not a million. Retention reads only
//! names and sizes, with one `statx` per file. A listing reads the head of each manifest, one at a
//! time.

mod ages;
mod dir;
mod draft;
mod entries;
mod error;
mod evicted;
mod file_system;
#[cfg(test)]
mod fixture;
mod incident;
mod index;
mod lifetime;
mod location;
mod lock;
pub mod manifest;
mod manifest_head;
mod names;
mod open_incident;
mod prune;
mod recovery;
mod reservation;
mod retention;
mod space;
mod usage;

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use draft::ArtifactDraft;
pub use error::{Error, ErrorKind, StoreLimit};
pub use evicted::EvictedIncident;
pub use incident::IncidentDir;
pub use index::{IncidentEntries, IncidentEntry, list};
pub use location::Location;
pub use names::{MANIFEST_FILE, REPORT_FILE};
pub use recovery::Recovery;
pub use space::{BlockedRemoval, PrunedArtifacts, RetentionReport, StoreUsage};

use crate::base::{Bytes, Clock, IncidentId};
use crate::config::StoreSettings;
use crate::model::Manifest;
use lock::WriterLock;
use usage::StoreInner;

/// A limit for `state.json`, which holds a few numbers per rule.
const MAX_STATE_BYTES: Bytes = Bytes::mib(1);

/// An incident directory opened for writing. Clones share it. The lock is released when the last
/// clone, [`IncidentDir`] and [`ArtifactDraft`] of it is dropped.
#[derive(Clone, Debug)]
pub struct Store {
    inner: Arc<StoreInner>,
}

impl Store {
    /// Opens the incident directory at `dir`; see [`Self::open_at`].
    pub fn open(
        dir: &Path,
        settings: StoreSettings,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Recovery), Error> {
        Self::open_at(&Location::new(dir), settings, clock)
    }

    /// Opens the incident directory for writing, creates it if it is missing, and repairs what an
    /// earlier process left. Later reads through `location` use this directory.
    ///
    /// If other users can write to the directory, the store uses a private directory in it; see
    /// [`Location::path`].
    ///
    /// Reads the head of every manifest and every unlisted artifact of an interrupted incident.
    /// Repairs that fail are listed in the [`Recovery`] and do not prevent opening.
    ///
    /// A failed attempt costs a few system calls and leaves nothing but the directories it created,
    /// so it can be repeated any number of times.
    ///
    /// # Errors
    /// If the directory cannot be created or written, is a link, or is in use; see [`Error::kind`].
    pub fn open_at(
        location: &Location,
        settings: StoreSettings,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Recovery), Error> {
        let chosen = location::open_or_create(location.configured(), settings.group_read)?;
        let lock = WriterLock::acquire(&chosen.dir)?;
        chosen.report();
        chosen.dir.set_group_read(settings.group_read);
        let root = Arc::new(chosen.dir);
        let inner = Arc::new(StoreInner::new(root, lock, settings, clock));
        let recovery = recovery::recover(&inner)?;
        location.set_opened(&inner.root);
        inner.root.file_system().clear_warnings();
        lifetime::check(inner.root.path(), inner.in_memory);
        Ok((Self { inner }, recovery))
    }

    /// Returns the path of the directory.
    pub fn dir(&self) -> &Path {
        self.inner.root.path()
    }

    /// Returns the descriptor that holds the lock, so that it can be closed in forked children.
    pub(crate) fn lock_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.inner.lock_descriptor()
    }

    /// Returns `true` if the directory was deleted. All later operations fail; reopen the store
    /// then.
    pub fn is_removed(&self) -> bool {
        self.inner.root.is_removed()
    }

    /// Replaces the settings. They apply from the next write or [`Self::enforce_limits`].
    pub fn set_settings(&self, settings: StoreSettings) {
        self.inner.root.set_group_read(settings.group_read);
        self.inner.lock_usage().settings = settings;
    }

    /// Returns `true` if the directory is in memory (tmpfs, ramfs), where files count against the
    /// memory limit of the process.
    pub fn is_in_memory(&self) -> bool {
        self.inner.in_memory
    }

    /// Sets the memory left below the limit, or `None` if it is unknown. A directory in memory
    /// takes at most half of it until the next call. Other directories ignore it.
    pub fn set_memory_left(&self, memory_left: Option<Bytes>) {
        self.inner.lock_usage().memory_left = memory_left.map(|left| left.get() / 2);
    }

    /// Creates the directory of an incident, with `manifest` as its first `incident.json`. Frees
    /// space for one more incident first.
    ///
    /// `name` becomes part of the directory name, in lower case. Every character other than a
    /// letter, a digit, `-` or `_` is replaced by `-`.
    ///
    /// 1. Create `.new-{id}`, write the manifest into it and sync both. A crash leaves a directory
    ///    that the next start deletes.
    /// 2. Rename it to its final name, without replacing. It is an incident from here on.
    /// 3. Sync the incident directory. The incident survives a power failure from here on.
    ///
    /// # Errors
    /// If the directory or the manifest cannot be written, or the incident ID is in use. Nothing is
    /// left in the directory then.
    pub fn create_incident(&self, name: &str, manifest: Manifest) -> Result<IncidentDir, Error> {
        IncidentDir::create(&self.inner, name, manifest)
    }

    /// Evicts incidents until every limit holds. The first and the last incident of each rule are
    /// evicted last. An incident with a live [`IncidentDir`] or [`ArtifactDraft`], or with a
    /// foreign file, is never evicted.
    ///
    /// 1. Rename the incident to `.gone-…` and sync. It is no longer an incident. After a crash the
    ///    next start resumes here.
    /// 2. Delete its files, the manifest last, and then the directory.
    ///
    /// Costs one `statx` per remaining file. Failures are listed in the result and do not stop the
    /// eviction.
    pub fn enforce_limits(&self) -> RetentionReport {
        self.inner.enforce_limits()
    }

    /// Returns the incidents evicted since the last call, for any reason, oldest first. Only the
    /// last 1000 of them are kept.
    pub fn take_evicted(&self) -> Vec<EvictedIncident> {
        std::mem::take(&mut self.inner.lock_usage().unreported_evictions)
    }

    /// Returns the usage and the number of deletions. Costs one `fstatvfs`; the directory is not
    /// read.
    pub fn usage(&self) -> StoreUsage {
        self.inner.usage()
    }

    /// Returns all incidents without vitals, latest first.
    ///
    /// # Errors
    /// If the directory cannot be listed. An unreadable manifest is reported in its entry.
    pub fn list_incidents(&self) -> Result<Vec<IncidentEntry>, Error> {
        Ok(IncidentEntries::from_dir(&self.inner.root)?.collect())
    }

    /// Returns the incident `id` without vitals.
    ///
    /// # Errors
    /// If there is no such incident, or the directory cannot be listed.
    pub fn find(&self, id: IncidentId) -> Result<IncidentEntry, Error> {
        index::find_entry(&self.inner.root, id)
    }

    /// Opens `file` of incident `id` for reading: an artifact, the manifest or the report.
    ///
    /// # Errors
    /// If there is no such incident or file, or `file` is not a valid artifact name.
    pub fn open_artifact(&self, id: IncidentId, file: &str) -> Result<File, Error> {
        index::open_artifact_in(&self.inner.root, id, file)
    }

    /// Replaces `state.json` atomically by `state`, which survives restarts.
    ///
    /// # Errors
    /// If it cannot be written or is larger than 1 MiB. The previous state is kept then.
    pub fn save_state<T: Serialize>(&self, state: &T) -> Result<(), Error> {
        let path = || self.inner.root.path_of(names::STATE_FILE);
        let text =
            serde_json::to_vec(state).map_err(|source| Error::State { path: path(), source })?;
        if text.len() as u64 > MAX_STATE_BYTES.get() {
            return Err(Error::TooLarge { path: path(), limit: MAX_STATE_BYTES });
        }
        self.inner.root.replace(names::STATE_FILE, &text)
    }

    /// Returns the saved state, or `None` if there is none.
    ///
    /// # Errors
    /// If `state.json` cannot be read or does not parse as `T`.
    pub fn load_state<T: DeserializeOwned>(&self) -> Result<Option<T>, Error> {
        let root = &self.inner.root;
        if root.stat(names::STATE_FILE)?.is_none() {
            return Ok(None);
        }
        serde_json::from_slice(&root.read(names::STATE_FILE, MAX_STATE_BYTES)?)
            .map(Some)
            .map_err(|source| Error::State { path: root.path_of(names::STATE_FILE), source })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::fixture::{Fixture, generous_settings};
    use super::*;
    use crate::base::warnings;

    #[test]
    fn second_open_fails_and_names_process() {
        let fixture = Fixture::new(generous_settings());
        let open_again =
            || Store::open(fixture.dir(), generous_settings(), Arc::clone(&fixture.clock) as _);
        let error = open_again().unwrap_err();
        assert!(matches!(error, Error::Busy { pid: Some(pid), .. } if pid == std::process::id()));
        assert!(error.to_string().contains("another agent in this process"), "{error}");
        std::fs::write(fixture.dir().join(names::LOCK_FILE), "123456789\n").unwrap();
        assert!(open_again().unwrap_err().to_string().contains("process 123456789"));
        std::fs::write(fixture.dir().join(names::LOCK_FILE), "").unwrap();
        assert!(matches!(open_again().unwrap_err(), Error::Busy { pid: None, .. }));
    }

    #[test]
    fn writer_not_excluded_by_lock_is_reported() {
        let fixture = Fixture::new(generous_settings());
        let lock = fixture.dir().join(names::LOCK_FILE);
        let ours = std::fs::read_to_string(&lock).unwrap();
        let writer_warning =
            || warnings::list().into_iter().find(|warning| warning.topic == "store.writer");
        std::fs::write(&lock, "17\nanother\nanother-host\npid:[1]\n").unwrap();
        fixture.create_closed(10);
        let warning = writer_warning().expect("a warning");
        assert!(warning.text.contains("process 17 on host another-host"), "{warning:?}");
        assert_eq!(
            std::fs::read_to_string(&lock).unwrap(),
            ours,
            "the record of this writer is restored"
        );
        fixture.create_closed(10);
        assert_eq!(writer_warning(), None, "the other writer has ended");
    }

    #[test]
    fn lock_is_held_while_any_handle_lives() {
        let fixture = Fixture::new(generous_settings());
        let incident = fixture.store.create_incident("memory", fixture.manifest()).unwrap();
        let Fixture { temp, clock, store } = fixture;
        let dir = store.dir().to_owned();
        drop(store);
        assert!(Store::open(&dir, generous_settings(), Arc::clone(&clock) as _).is_err());
        drop(incident);
        Store::open(&dir, generous_settings(), clock).unwrap();
        drop(temp);
    }

    #[test]
    fn state_is_saved_atomically_and_loaded() {
        let fixture = Fixture::new(generous_settings());
        assert_eq!(fixture.store.load_state::<Vec<u32>>().unwrap(), None);
        fixture.store.save_state(&vec![1, 2]).unwrap();
        fixture.store.save_state(&vec![3]).unwrap();
        let path = fixture.dir().join(names::STATE_FILE);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
        let (fixture, _) = fixture.reopen(generous_settings());
        assert_eq!(fixture.store.load_state::<Vec<u32>>().unwrap(), Some(vec![3]));
        assert!(fixture.store.save_state(&"x".repeat(1 << 20)).is_err());
        assert_eq!(fixture.store.load_state::<Vec<u32>>().unwrap(), Some(vec![3]));
        std::fs::write(&path, "[3").unwrap();
        let error = fixture.store.load_state::<Vec<u32>>().unwrap_err().to_string();
        assert!(error.contains("state.json"), "{error}");
    }

    #[test]
    fn store_types_are_send_and_sync() {
        fn assert_send_sync<T: Send + Sync + 'static>() {}
        assert_send_sync::<Store>();
        assert_send_sync::<IncidentDir>();
        assert_send_sync::<ArtifactDraft>();
        assert_send_sync::<Error>();
    }
}
