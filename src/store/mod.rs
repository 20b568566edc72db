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
//! One process writes (`.lock` is held by `flock`, which a kill releases); any number read, through
//! [`list`], [`find`] and [`open_artifact`], without the lock. A child the host made by `fork` without
//! `exec` has a copy of the lock: it writes nothing (each change is refused with [`Error::Forked`]) and its
//! end releases nothing, but when the host is killed, the directory stays busy until that child has gone
//! too. The agent keeps its lock from children (`os::fork`). A child that was made by `fork` and `exec` has no copy.
//!
//! The obvious alternative is an embedded database or an index file: faster to list, and one more thing
//! that can disagree with the files. There are a hundred incidents, not a million: retention looks at
//! names and sizes only, one `statx` a file, and a listing reads each manifest once.

mod dir;
mod draft;
mod error;
#[cfg(test)]
mod fixture;
mod incident;
mod index;
pub mod manifest;
mod names;
mod recovery;
mod retention;
mod room;
mod thin;

use std::fs::File;
use std::io::{Read, Seek, Write};
use std::os::fd::BorrowedFd;
use std::path::Path;
use std::sync::Arc;

use rustix::fs::{FlockOperation, flock};
use rustix::io::Errno;
use serde::Serialize;
use serde::de::DeserializeOwned;

pub use draft::Draft;
pub use error::{Bound, Error};
pub use incident::IncidentDir;
pub use index::{Entry, find, list, open_artifact};
pub use names::MANIFEST;
pub use recovery::Recovery;
pub use retention::{Removed, Retained, Standing, Thinned};

use crate::base::{Bytes, Clock, IncidentId};
use crate::config::StoreSettings;
use crate::model::Manifest;
use dir::Dir;
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
    /// Opens the directory of incidents for writing, makes it if it is not there, and puts in order
    /// what an earlier process left.
    ///
    /// Reads every manifest, and every unlisted artifact of an interrupted incident. What could not be
    /// put in order is told in the [`Recovery`] and does not keep the store from opening.
    ///
    /// # Errors
    /// When the directory cannot be made or written, is a link, belongs to another user, can be written
    /// by others, or is in use.
    pub fn open(
        dir: &Path,
        settings: StoreSettings,
        clock: Arc<dyn Clock>,
    ) -> Result<(Self, Recovery), Error> {
        let root = Dir::make(dir)?;
        let lock = lock(&root)?;
        let shared = Arc::new(Shared::new(root, lock, settings, clock));
        let recovery = recovery::recover(&shared)?;
        Ok((Self { shared }, recovery))
    }

    /// Where it is.
    pub fn dir(&self) -> &Path {
        self.shared.root.path()
    }

    /// The descriptor that holds the lock, for those who keep it from forked children.
    pub(crate) fn lock_descriptor(&self) -> BorrowedFd<'_> {
        self.shared.lock_descriptor()
    }

    /// Whether somebody removed the directory. Everything fails from then on; open it again.
    pub fn is_removed(&self) -> bool {
        self.shared.root.is_removed()
    }

    /// Puts other bounds in force, from the next write or [`Self::retain`] on.
    pub fn set_limits(&self, settings: StoreSettings) {
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

    /// What is held, what there is room for, and what was removed for it. Costs one `fstatvfs`; the
    /// directory is not looked at.
    pub fn holdings(&self) -> Holdings {
        self.shared.holdings()
    }

    /// Every incident, the latest first.
    ///
    /// # Errors
    /// When the directory cannot be listed. A manifest that cannot be read is part of its entry.
    pub fn index(&self) -> Result<Vec<Entry>, Error> {
        index::entries(&self.shared.root)
    }

    /// The incident `id`.
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

/// Takes the lock and writes our pid into it, for the message another process would give.
fn lock(root: &Dir) -> Result<File, Error> {
    let mut file = root.open_or_create(names::LOCK)?;
    match flock(&file, FlockOperation::NonBlockingLockExclusive) {
        Ok(()) => {}
        Err(Errno::WOULDBLOCK) => {
            let mut text = String::new();
            let pid =
                file.take(32).read_to_string(&mut text).ok().and_then(|_| text.trim().parse().ok());
            return Err(Error::Busy { path: root.path().to_owned(), pid });
        }
        Err(errno) => return Err(Error::io("lock", root.at(names::LOCK), errno.into())),
    }
    // On a full disk the pid is not written, and the lock is held all the same.
    let _ = file
        .set_len(0)
        .and_then(|()| file.rewind())
        .and_then(|()| writeln!(file, "{}", std::process::id()));
    Ok(file)
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::fixture::{Fixture, roomy};
    use super::*;

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
