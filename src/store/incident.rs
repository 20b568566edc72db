//! An open incident: its directory and its manifest.

use std::io::{self, Seek, SeekFrom, Write};
use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use rustix::io::Errno;

use super::dir::Dir;
use super::draft::ArtifactDraft;
use super::error::{Error, StoreLimit};
use super::manifest::{self, ManifestHead};
use super::names::{IncidentName, MANIFEST, NEW, PART, artifact_stem};
use super::retention::SpaceRequest;
use crate::base::{Bytes, IncidentId};
use crate::model::{FileName, Form, Manifest};
use crate::store::prune::{between, enough, give_up};
use crate::store::usage::{Registration, StoreInner};

/// The directory of an open incident. The incident is not evicted while this handle or a draft of
/// it lives. Dropping the handle does not close the incident: set its state through
/// [`Self::update`] first.
#[derive(Debug)]
#[must_use = "the incident stays open in its manifest until an update closes it"]
pub struct IncidentDir {
    open: Arc<Open>,
    manifest: Manifest,
    size: u64,
}

/// State shared by an incident and its drafts.
#[derive(Debug)]
pub(super) struct Open {
    pub(super) dir: Dir,
    /// `{service}_{domain}`.
    pub(super) stem: String,
    /// The number of the last committed artifact.
    pub(super) seq: Mutex<u32>,
    /// Number of drafts that needed a temporary name.
    pub(super) named_drafts: AtomicU32,
    registration: Registration,
}

impl Open {
    pub(super) fn shared(&self) -> &Arc<StoreInner> {
        &self.registration.shared
    }

    pub(super) fn id(&self) -> IncidentId {
        self.registration.id
    }
}

impl IncidentDir {
    /// Returns `true` if the directory was deleted.
    pub fn is_removed(&self) -> bool {
        self.open.dir.is_removed()
    }

    pub(super) fn begin(
        shared: &Arc<StoreInner>,
        name: &str,
        mut manifest: Manifest,
    ) -> Result<Self, Error> {
        let (id, opened) = (manifest.id, manifest.opened);
        let text = IncidentName { opened, name: name.to_owned(), id }.format();
        let registration = Registration::new(shared, id, name).ok_or_else(|| {
            Error::io("make the directory", shared.root.at(&text), Errno::EXIST.into())
        })?;
        shared.lock.check(&shared.root);
        shared.make_room(
            &mut shared.ledger(),
            SpaceRequest { incidents: 1, incident: Some(id), ..SpaceRequest::default() },
        );

        let temporary = format!("{NEW}{id}");
        let mut made = shared.root.make_subdir(&temporary)?;
        let published = put(&made, &mut manifest)
            .and_then(|size| match shared.root.rename_dir(&temporary, &text)? {
                true => Ok(size),
                false => {
                    made.unlink(MANIFEST)?;
                    shared.root.rmdir(&temporary)?;
                    made = shared.root.make_subdir(&text)?;
                    put(&made, &mut manifest)
                }
            })
            .and_then(|size| shared.root.sync().map(|()| size));
        let size = match published {
            Ok(size) => size,
            Err(error) => {
                // The next start deletes or marks any remains.
                let _ = made.unlink(MANIFEST);
                let _ = made.unlink(&format!("{MANIFEST}{PART}"));
                let _ = shared.root.rmdir(&temporary).or_else(|_| shared.root.rmdir(&text));
                return Err(error);
            }
        };
        shared.ledger().resize(id, 0, size);
        let open = Open {
            dir: made.moved_to(shared.root.at(&text)),
            stem: artifact_stem(&manifest.service, &manifest.domain),
            seq: Mutex::new(0),
            named_drafts: AtomicU32::new(0),
            registration,
        };
        Ok(Self { open: Arc::new(open), manifest, size })
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        self.open.dir.path()
    }

    /// Returns the incident ID.
    pub fn id(&self) -> IncidentId {
        self.open.id()
    }

    /// Returns the manifest as of the last [`Self::update`].
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Starts an artifact of `form` with evidence of the time `taken`. A capture kind selects its
    /// main form. Drafts are independent of each other and of this handle, so other threads can
    /// write them concurrently.
    ///
    /// # Errors
    /// If no file can be created.
    pub fn draft(&self, form: impl Into<Form>, taken: Timestamp) -> Result<ArtifactDraft, Error> {
        ArtifactDraft::begin(&self.open, form.into(), taken)
    }

    /// Starts a custom artifact, named `{service}_{domain}.{seq}.custom.{name}`. Otherwise like
    /// [`Self::draft`].
    ///
    /// # Errors
    /// If no file can be created.
    pub fn draft_custom(&self, name: &FileName, taken: Timestamp) -> Result<ArtifactDraft, Error> {
        ArtifactDraft::custom(&self.open, name, taken)
    }

    /// Returns the tightest limit, and the bytes that can still be written under it after every
    /// possible eviction. Scans all incidents; meant for the start of a capture.
    ///
    /// # Errors
    /// If the incident directory cannot be listed.
    pub fn room(&self) -> Result<(StoreLimit, Bytes), Error> {
        self.open.shared().room(self.id())
    }

    /// Prunes files of this incident to free space for `bytes` more: of each form those between the
    /// first and the last, except the largest. Prunes nothing if all of them would not free enough.
    /// The manifest lists the pruned files. Returns `true` if there is space afterwards.
    ///
    /// # Errors
    /// If the manifest cannot be written; nothing is deleted then. Also if a file cannot be
    /// deleted.
    pub fn make_room(&mut self, bytes: Bytes) -> Result<bool, Error> {
        let shared = Arc::clone(self.open.shared());
        let need = SpaceRequest {
            bytes: bytes.get(),
            incident: Some(self.id()),
            ..SpaceRequest::default()
        };
        let Some(short) = shared.shortage(&shared.ledger(), need) else { return Ok(true) };
        let files = self.manifest.artifacts.iter().map(|it| (it.file.as_str(), it.bytes.get()));
        let spare = between(files);
        let Some(chosen) = enough(&spare, short.missing) else { return Ok(false) };
        let (names, freed): (Vec<String>, Vec<u64>) =
            chosen.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).unzip();
        let before = (self.manifest.artifacts.clone(), self.manifest.removed.clone());
        let now = shared.clock.wall();
        if let Err(error) = self.update(|it| give_up(it, &names, short.bound, now)) {
            (self.manifest.artifacts, self.manifest.removed) = before;
            return Err(error);
        }
        for (name, bytes) in names.iter().zip(freed) {
            self.open.dir.unlink(name)?;
            let mut ledger = shared.ledger();
            ledger.resize(self.id(), bytes, 0);
            ledger.thinned += 1;
        }
        self.open.dir.sync()?;
        Ok(shared.shortage(&shared.ledger(), need).is_none())
    }

    /// Changes the manifest and replaces `incident.json` atomically. It writes and syncs the whole
    /// file, so call it for events, not on every tick.
    ///
    /// 1. Write `incident.json.part` and sync it. A crash leaves it beside the old manifest; the
    ///    next start deletes it.
    /// 2. Rename it over `incident.json` and sync the directory. The change is durable from here
    ///    on.
    ///
    /// # Errors
    /// If the file cannot be written. The change is kept in memory, and the next update writes it
    /// too.
    pub fn update(&mut self, change: impl FnOnce(&mut Manifest)) -> Result<(), Error> {
        change(&mut self.manifest);
        let size = put(&self.open.dir, &mut self.manifest)?;
        self.open.shared().ledger().resize(self.id(), self.size, size);
        self.size = size;
        Ok(())
    }
}

/// Writes `manifest` to `dir`, the directory of an incident, and returns its size.
fn put(dir: &Dir, manifest: &mut Manifest) -> Result<u64, Error> {
    let text = manifest::write_bounded(manifest);
    let text = text.map_err(|source| Error::io("write", dir.at(MANIFEST), source))?;
    dir.replace(MANIFEST, &text)?;
    Ok(text.len() as u64)
}

/// Replaces the head of the manifest in `dir`. The vitals are copied without parsing.
pub(super) fn put_head(dir: &Dir, mut head: ManifestHead) -> Result<(), Error> {
    let Some(rest) = head.rest else { return put(dir, &mut head.manifest).map(drop) };
    let failed = |source| Error::io("read", dir.at(MANIFEST), source);
    let text = manifest::write_head(&head.manifest).map_err(failed)?;
    let mut old = dir.open_file(MANIFEST)?;
    let size = old.metadata().map_err(failed)?.len() - rest + text.len() as u64;
    old.seek(SeekFrom::Start(rest)).map_err(failed)?;
    dir.replace_by(MANIFEST, size, |file| {
        file.write_all(&text)?;
        io::copy(&mut old, file).map(drop)
    })
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::fixture::{Fixture, roomy};
    use super::super::manifest::read;
    use super::*;
    use crate::model::IncidentState;

    #[test]
    fn an_incident_appears_under_its_name_with_a_whole_private_manifest() {
        let it = Fixture::new(roomy());
        let incident = it.store.begin("Memory/Use", it.manifest()).unwrap();
        let name = incident.path().file_name().unwrap().to_str().unwrap();
        assert_eq!(name, format!("20261123T025733.123Z-memory-use-{}", incident.id()));
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
        let manifest = incident.path().join(MANIFEST);
        assert_eq!((mode(it.dir()), mode(incident.path()), mode(&manifest)), (0o700, 0o700, 0o600));
        assert_eq!(&read(&std::fs::read(manifest).unwrap()).unwrap(), incident.manifest());
        let entries = std::fs::read_dir(it.dir()).unwrap().count();
        assert_eq!(entries, 2, "the lock and the incident");
    }

    #[test]
    fn an_update_replaces_the_manifest() {
        let it = Fixture::new(roomy());
        let mut incident = it.store.begin("memory", it.manifest()).unwrap();
        incident.update(|manifest| manifest.state = IncidentState::Closed).unwrap();
        let entry = it.store.find(incident.id()).unwrap();
        assert_eq!(entry.manifest.unwrap().state, IncidentState::Closed);
        assert!(!incident.path().join("incident.json.part").exists());
    }

    #[test]
    fn what_an_update_could_not_write_the_next_one_does() {
        let it = Fixture::new(roomy());
        let mut incident = it.store.begin("memory", it.manifest()).unwrap();
        let obstacle = incident.path().join("incident.json.part");
        std::fs::create_dir(&obstacle).unwrap();
        let error = incident.update(|manifest| manifest.service = "changed".into()).unwrap_err();
        assert!(error.to_string().contains("incident.json.part"), "{error}");
        assert_eq!(it.store.find(incident.id()).unwrap().manifest.unwrap().service, "orders");
        std::fs::remove_dir(&obstacle).unwrap();
        incident.update(|_| ()).unwrap();
        assert_eq!(it.store.find(incident.id()).unwrap().manifest.unwrap().service, "changed");
    }

    #[test]
    fn an_id_is_used_once() {
        let it = Fixture::new(roomy());
        let manifest = it.manifest();
        let first = it.store.begin("memory", manifest.clone()).unwrap();
        assert!(it.store.begin("memory", manifest.clone()).is_err());
        drop(first);
        assert!(it.store.begin("memory", manifest).is_err());
        assert_eq!(it.ids().len(), 1);
        assert_eq!(std::fs::read_dir(it.dir()).unwrap().count(), 3, "it, the lock and ages.json");
        assert!(it.store.shared.ledger().open.is_empty());
    }
}
