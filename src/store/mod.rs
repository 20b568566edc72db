//! The directory of incidents. It is the database: nothing about it is kept elsewhere.
//!
//! ```text
//! Store::open ── lock, check, sweep, mark ──> Store
//!   begin ──> IncidentDir ── draft ──> Draft: io::Write ── commit ──> Artifact
//!                         ── update ──> incident.json
//!   retain ──> Retained            index, find, open_artifact ──> Entry, File
//! ```
//!
//! What holds at every instant, whatever dies and whenever:
//!
//! - A file under a final name is whole. It was written and synced without a name (or under one that
//!   ends in `.part`) and then linked; see [`Draft::commit`].
//! - A directory under an incident's name has a whole manifest. It was made under another name; see
//!   [`Store::begin`]. A manifest is replaced, never written into.
//! - What [`Store::open`] finds half done is swept, and an incident nobody closed is marked
//!   `interrupted`; an artifact that was finished but not yet listed is listed then.
//! - Nothing is removed but regular files whose names are made here, in directories whose names are made
//!   here. No link is followed. A file somebody else put into an incident keeps the whole incident.
//! - Drafts of an open incident count against the bounds while they are written, and closed incidents
//!   (those that are missed least: the header of `retention` says which) go to make room for them; when none is left, the write is refused and the artifact
//!   dropped. Manifests and `state.json` are written regardless of `max_bytes` and `keep_free` (they are
//!   small, and they are what says that there was no room); only a device that is really full stops them.
//! - A file that went alone, to make room, is taken out of the manifest's `artifacts` and put into its
//!   `removed` before it goes: a manifest never lists what is not there. Of each form of file the first, the
//!   last and the largest of an incident stay as long as the incident does.
//! - Nothing is removed in vain: not when all that may go would not make the room that is missing, and
//!   not because a write met a full device. A disk that somebody else fills costs new evidence, never old.
//!
//! One process writes (`.lock` is held by `flock`, which a kill releases; `lock` says what is done without it); any
//! number read, through [`Location`], [`list`], [`find`] and [`open_artifact`], without the lock. A child the host made by `fork` without
//! `exec` has a copy of the lock: it writes nothing (each change is refused with [`Error::Forked`]) and its
//! end releases nothing, but when the host is killed, the directory stays busy until that child has gone
//! too. The agent keeps its lock from children (`os::fork`). A child that was made by `fork` and `exec` has no copy.
//!
//! File systems lack features: `file_system` lists them and what is done instead. Where incidents go if the
//! directory of the settings is not ours alone is said in `place`.
//!
//! The obvious alternative is an embedded database or an index file: faster to list, and one more thing
//! that can disagree with the files. There are a hundred incidents, not a million: retention looks at
//! names and sizes only, one `statx` a file, and a listing reads the head of each manifest, one at a time.

mod ages;
mod dir;
mod draft;
mod error;
mod file_system;
#[cfg(test)]
mod fixture;
mod incident;
mod index;
mod lifetime;
mod lock;
pub mod manifest;
mod names;
mod place;
mod recovery;
mod removed;
mod retention;
mod room;
mod thin;

use std::fs::File;
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use serde::Serialize;
use serde::de::DeserializeOwned;

pub use draft::Draft;
pub use error::{Bound, Error, ErrorKind};
pub use incident::IncidentDir;
pub use index::{Entries, Entry, find, list, open_artifact};
pub use names::MANIFEST;
pub use place::Location;
pub use recovery::Recovery;
pub use removed::Removed;
pub use retention::{Retained, Standing, Thinned};

use crate::base::{Bytes, Clock, IncidentId};
use crate::config::StoreSettings;
use crate::model::Manifest;
use lock::Lock;
use room::Shared;

/// `state.json` holds budgets: a few numbers a rule.
const MAX_STATE: Bytes = Bytes::mib(1);

/// What a store holds, what there is room for, and what was removed to make room since it was opened.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub struct Holdings {
    /// Bytes in the finished files of incidents and in those being written.
    pub bytes: Bytes,
    /// How many there may be (`store.max_bytes`).
    pub max_bytes: Bytes,
    /// How many the file system has beyond what `store.keep_free` leaves to others, when it says.
    pub free: Option<Bytes>,
    /// Whether the directory is in memory (tmpfs, ramfs): what it holds counts against the memory limit.
    pub in_memory: bool,
    /// How many more such a directory takes, half of what is left below the memory limit; none where the
    /// directory is not in memory or the limit is not known.
    pub memory_left: Option<Bytes>,
    /// Incidents removed, by whatever needed the room.
    pub incidents_removed: u64,
    /// Files removed from incidents that stay.
    pub artifacts_removed: u64,
}

impl Holdings {
    /// Of a directory that is not open.
    pub(crate) fn unknown(settings: &StoreSettings) -> Self {
        Self {
            bytes: Bytes(0),
            max_bytes: settings.max_bytes,
            free: None,
            in_memory: false,
            memory_left: None,
            incidents_removed: 0,
            artifacts_removed: 0,
        }
    }
}

/// The directory of incidents, opened for writing. Clones share it; the last one, and the last
/// [`IncidentDir`] and [`Draft`] made of it, releases the lock.
#[derive(Clone, Debug)]
pub struct Store {
    shared: Arc<Shared>,
}

impl Store {
    /// Opens the directory of incidents at `dir`; see [`Self::open_at`].
    pub fn open(
        dir: &Path,
        settings: StoreSettings,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Recovery), Error> {
        Self::open_at(&Location::new(dir), settings, clock)
    }

    /// Opens the directory of incidents for writing, makes it if it is not there, and puts in order
    /// what an earlier process left. Readers of `location` read there from here on.
    ///
    /// In a directory that is not ours alone a directory of our own is used; see [`Location::path`].
    ///
    /// Reads the head of every manifest, and every unlisted artifact of an interrupted incident. What could not be
    /// put in order is in the [`Recovery`] and does not keep the store from opening.
    ///
    /// May be tried again as often as one likes: a failed attempt costs a few calls and leaves nothing behind but
    /// directories that it made.
    ///
    /// # Errors
    /// If the directory cannot be made or written, is a link, or is in use; see [`Error::kind`].
    pub fn open_at(
        location: &Location,
        settings: StoreSettings,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Recovery), Error> {
        let chosen = place::make(location.configured(), settings.group_read)?;
        let lock = Lock::take(&chosen.dir)?;
        chosen.report();
        chosen.dir.set_group_read(settings.group_read);
        let root = Arc::new(chosen.dir);
        let shared = Arc::new(Shared::new(root, lock, settings, clock, location.clone()));
        let recovery = recovery::recover(&shared)?;
        location.set(&shared.root);
        shared.root.file_system().clear_warnings();
        lifetime::check(shared.root.path(), shared.in_memory);
        Ok((Self { shared }, recovery))
    }

    /// Its place, for readers, and to open it again.
    pub fn location(&self) -> &Location {
        &self.shared.location
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        self.shared.root.path()
    }

    /// The descriptor that holds the lock, if there is one, for those who keep it from forked children.
    pub(crate) fn lock_descriptor(&self) -> Option<BorrowedFd<'_>> {
        self.shared.lock_descriptor()
    }

    /// Whether somebody removed the directory. Everything fails from then on; open it again.
    pub fn is_removed(&self) -> bool {
        self.shared.root.is_removed()
    }

    /// Puts other bounds, and who may read, in force, from the next write or [`Self::retain`] on.
    pub fn set_limits(&self, settings: StoreSettings) {
        self.shared.root.set_group_read(settings.group_read);
        self.shared.ledger().settings = settings;
    }

    /// Whether the directory is in memory (tmpfs, ramfs), so that what is kept counts against the process's
    /// own memory limit.
    pub fn is_in_memory(&self) -> bool {
        self.shared.in_memory
    }

    /// Tells how much memory is left below the limit, if that is known. A directory that is in memory takes
    /// at most half of it until it is told again; with any other it is of no account.
    pub fn set_headroom(&self, left: Option<Bytes>) {
        self.shared.ledger().memory = left.map(|left| left.get() / 2);
    }

    /// Opens an incident: makes its directory, with `manifest` as its first `incident.json`.
    ///
    /// `name` becomes part of the directory's name, in lower case and with what is not a letter, a digit,
    /// `-` or `_` made a `-`. Makes room for one more incident first.
    ///
    /// 1. Make `.new-{id}`, write the manifest in it, sync both. A crash leaves a directory the next
    ///    start sweeps.
    /// 2. Rename it to its final name, if nothing has that. From here it is an incident.
    /// 3. Sync the directory of incidents. From here it outlives a power cut.
    ///
    /// # Errors
    /// When the directory or the manifest cannot be written, or the incident's id is in use. Nothing is
    /// left behind then.
    pub fn begin(&self, name: &str, manifest: Manifest) -> Result<IncidentDir, Error> {
        IncidentDir::begin(&self.shared, name, manifest)
    }

    /// Removes incidents until every bound holds: the first and the last of each rule last, never one whose [`IncidentDir`] or
    /// [`Draft`] lives, never one with a file in it that is not ours.
    ///
    /// 1. Rename the incident to `.gone-…` and sync: it is no incident any more. After a crash the next
    ///    start goes on here.
    /// 2. Remove its files, the manifest last, then the directory.
    ///
    /// Costs one `statx` a file kept. Failures are in the answer; the rest goes on.
    pub fn retain(&self) -> Retained {
        self.shared.retain()
    }

    /// Returns the incidents that were removed since the last call, whatever needed the room, oldest first;
    /// the last thousand of them.
    pub fn take_removed(&self) -> Vec<Removed> {
        std::mem::take(&mut self.shared.ledger().unreported)
    }

    /// What is held, what there is room for, and what was removed for it. Costs one `fstatvfs`; the
    /// directory is not looked at.
    pub fn holdings(&self) -> Holdings {
        self.shared.holdings()
    }

    /// Every incident, the latest first, without vitals.
    ///
    /// # Errors
    /// When the directory cannot be listed. A manifest that cannot be read is part of its entry.
    pub fn index(&self) -> Result<Vec<Entry>, Error> {
        Ok(Entries::of(&self.shared.root)?.collect())
    }

    /// The incident `id`, without vitals.
    ///
    /// # Errors
    /// When there is none, or the directory cannot be listed.
    pub fn find(&self, id: IncidentId) -> Result<Entry, Error> {
        index::entry(&self.shared.root, id)
    }

    /// The file called `file` of incident `id`, to be read: an artifact or `incident.json`.
    ///
    /// # Errors
    /// When there is no such incident or file, or `file` is not a name this store makes.
    pub fn open_artifact(&self, id: IncidentId, file: &str) -> Result<File, Error> {
        index::artifact(&self.shared.root, id, file)
    }

    /// Writes `state` whole to `state.json`, where it outlives the process.
    ///
    /// # Errors
    /// When it cannot be written or is larger than 1 MiB; the former state is kept then.
    pub fn save_state<T: Serialize>(&self, state: &T) -> Result<(), Error> {
        let path = || self.shared.root.at(names::STATE);
        let text =
            serde_json::to_vec(state).map_err(|source| Error::State { path: path(), source })?;
        if text.len() as u64 > MAX_STATE.get() {
            return Err(Error::TooLarge { path: path(), limit: MAX_STATE });
        }
        self.shared.root.replace(names::STATE, &text)
    }

    /// What was last saved; none when nothing was.
    ///
    /// # Errors
    /// When `state.json` cannot be read or holds something else.
    pub fn load_state<T: DeserializeOwned>(&self) -> Result<Option<T>, Error> {
        let root = &self.shared.root;
        if root.stat(names::STATE)?.is_none() {
            return Ok(None);
        }
        serde_json::from_slice(&root.read(names::STATE, MAX_STATE)?)
            .map(Some)
            .map_err(|source| Error::State { path: root.at(names::STATE), source })
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::fixture::{Fixture, roomy};
    use super::*;
    use crate::base::warnings;

    #[test]
    fn one_writer_at_a_time_and_the_message_says_who() {
        let it = Fixture::new(roomy());
        let again = || Store::open(it.dir(), roomy(), Arc::clone(&it.clock) as _);
        let error = again().unwrap_err();
        assert!(matches!(error, Error::Busy { pid: Some(pid), .. } if pid == std::process::id()));
        assert!(error.to_string().contains("another agent in this process"), "{error}");
        std::fs::write(it.dir().join(names::LOCK), "123456789\n").unwrap();
        assert!(again().unwrap_err().to_string().contains("process 123456789"));
        std::fs::write(it.dir().join(names::LOCK), "").unwrap();
        assert!(matches!(again().unwrap_err(), Error::Busy { pid: None, .. }));
    }

    #[test]
    fn a_writer_that_the_lock_did_not_keep_out_is_reported() {
        let it = Fixture::new(roomy());
        let lock = it.dir().join(names::LOCK);
        let ours = std::fs::read_to_string(&lock).unwrap();
        let said = || warnings::list().into_iter().find(|it| it.topic == "store.writer");
        std::fs::write(&lock, "17\nanother\nanother-host\npid:[1]\n").unwrap();
        it.closed(10);
        let said_first = said().expect("a warning");
        assert!(said_first.text.contains("process 17 of host another-host"), "{said_first:?}");
        assert_eq!(std::fs::read_to_string(&lock).unwrap(), ours, "it is told in turn");
        it.closed(10);
        assert_eq!(said(), None, "the other has gone");
    }

    #[test]
    fn the_lock_lives_as_long_as_anything_made_of_the_store() {
        let it = Fixture::new(roomy());
        let incident = it.store.begin("memory", it.manifest()).unwrap();
        let Fixture { temp, clock, store } = it;
        let dir = store.dir().to_owned();
        drop(store);
        assert!(Store::open(&dir, roomy(), Arc::clone(&clock) as _).is_err());
        drop(incident);
        Store::open(&dir, roomy(), clock).unwrap();
        drop(temp);
    }

    #[test]
    fn the_state_is_saved_whole_and_loaded() {
        let it = Fixture::new(roomy());
        assert_eq!(it.store.load_state::<Vec<u32>>().unwrap(), None);
        it.store.save_state(&vec![1, 2]).unwrap();
        it.store.save_state(&vec![3]).unwrap();
        let path = it.dir().join(names::STATE);
        assert_eq!(path.metadata().unwrap().permissions().mode() & 0o7777, 0o600);
        let (it, _) = it.reopen(roomy());
        assert_eq!(it.store.load_state::<Vec<u32>>().unwrap(), Some(vec![3]));
        assert!(it.store.save_state(&"x".repeat(1 << 20)).is_err());
        assert_eq!(it.store.load_state::<Vec<u32>>().unwrap(), Some(vec![3]));
        std::fs::write(&path, "[3").unwrap();
        let error = it.store.load_state::<Vec<u32>>().unwrap_err().to_string();
        assert!(error.contains("state.json"), "{error}");
    }

    #[test]
    fn a_store_is_shared_between_threads() {
        fn is_shared<T: Send + Sync + 'static>() {}
        is_shared::<Store>();
        is_shared::<IncidentDir>();
        is_shared::<Draft>();
        is_shared::<Error>();
    }
}
