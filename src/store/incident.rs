//! An open incident: its directory and its manifest.

use std::path::Path;
use std::sync::atomic::AtomicU32;
use std::sync::{Arc, Mutex};

use jiff::Timestamp;
use rustix::io::Errno;

use super::draft::ArtifactDraft;
use super::error::{Error, StoreLimit};
use super::names::{
    IncidentName, MANIFEST_FILE, NEW_PREFIX, PART_SUFFIX, REPORT_FILE, artifact_stem,
};
use crate::base::{Bytes, IncidentId};
use crate::model::{ArtifactFormat, FileName, Manifest};
use crate::store::manifest_head::write_manifest;
use crate::store::open_incident::IncidentInner;
use crate::store::prune::{discard, removable_files, select_to_free};
use crate::store::space::SpaceRequest;
use crate::store::usage::{Registration, StoreInner};

/// The directory of an open incident. The incident is not evicted while this handle or a draft of
/// it lives. Dropping the handle does not close the incident: set its state through
/// [`Self::update`] first.
#[derive(Debug)]
#[must_use = "the incident stays open in its manifest until an update closes it"]
pub struct IncidentDir {
    inner: Arc<IncidentInner>,
    manifest: Manifest,
    manifest_bytes: u64,
    report_bytes: u64,
}

impl IncidentDir {
    /// Returns `true` if the directory was deleted.
    pub fn is_removed(&self) -> bool {
        self.inner.dir.is_removed()
    }

    pub(super) fn create(
        store: &Arc<StoreInner>,
        name: &str,
        mut manifest: Manifest,
    ) -> Result<Self, Error> {
        let id = manifest.id;
        let opened = manifest.opened;
        let text = IncidentName { opened, name: name.to_owned(), id }.format();
        let registration = Registration::new(store, id, name).ok_or_else(|| {
            Error::io("create directory", store.root.path_of(&text), Errno::EXIST.into())
        })?;
        store.lock.detect_other_writer(&store.root);
        store.free_space(
            &mut store.lock_usage(),
            SpaceRequest { incidents: 1, incident: Some(id), ..SpaceRequest::default() },
        );

        let temporary = format!("{NEW_PREFIX}{id}");
        let mut dir = store.root.make_subdir(&temporary)?;
        let published = write_manifest(&dir, &mut manifest)
            .and_then(|size| match store.root.rename_dir(&temporary, &text)? {
                true => Ok(size),
                false => {
                    dir.unlink(MANIFEST_FILE)?;
                    store.root.rmdir(&temporary)?;
                    dir = store.root.make_subdir(&text)?;
                    write_manifest(&dir, &mut manifest)
                }
            })
            .and_then(|size| store.root.sync().map(|()| size));
        let size = match published {
            Ok(size) => size,
            Err(error) => {
                // The next start deletes or marks any remains.
                let _ = dir.unlink(MANIFEST_FILE);
                let _ = dir.unlink(&format!("{MANIFEST_FILE}{PART_SUFFIX}"));
                let _ = store.root.rmdir(&temporary).or_else(|_| store.root.rmdir(&text));
                return Err(error);
            }
        };
        store.lock_usage().resize(id, 0, size);
        let inner = IncidentInner {
            dir: dir.with_path(store.root.path_of(&text)),
            stem: artifact_stem(&manifest.service, &manifest.instance),
            seq: Mutex::new(0),
            named_drafts: AtomicU32::new(0),
            registration,
        };
        Ok(Self { inner: Arc::new(inner), manifest, manifest_bytes: size, report_bytes: 0 })
    }

    /// Returns the path of the directory.
    pub fn path(&self) -> &Path {
        self.inner.dir.path()
    }

    /// Returns the incident ID.
    pub fn id(&self) -> IncidentId {
        self.inner.id()
    }

    /// Returns the manifest as of the last [`Self::update`].
    pub fn manifest(&self) -> &Manifest {
        &self.manifest
    }

    /// Starts an artifact of `form` with evidence of the time `taken_at`. A capture kind selects
    /// its main form. Drafts are independent of each other and of this handle, so other threads can
    /// write them concurrently.
    ///
    /// # Errors
    /// If no file can be created.
    pub fn draft(
        &self,
        form: impl Into<ArtifactFormat>,
        taken_at: Timestamp,
    ) -> Result<ArtifactDraft, Error> {
        ArtifactDraft::begin(&self.inner, form.into(), taken_at)
    }

    /// Starts a custom artifact, named `{service}_{instance}.{seq}.custom.{name}`. Otherwise like
    /// [`Self::draft`].
    ///
    /// # Errors
    /// If no file can be created.
    pub fn draft_custom(
        &self,
        name: &FileName,
        taken_at: Timestamp,
    ) -> Result<ArtifactDraft, Error> {
        ArtifactDraft::begin_custom(&self.inner, name, taken_at)
    }

    /// Returns the tightest limit, and the bytes that can still be written under it after every
    /// possible eviction. Scans all incidents; meant for the start of a capture.
    ///
    /// # Errors
    /// If the incident directory cannot be listed.
    pub fn available_space(&self) -> Result<(StoreLimit, Bytes), Error> {
        self.inner.store().available_space(self.id())
    }

    /// Prunes files of this incident to free space for `bytes` more: of each form those between the
    /// first and the last, except the largest. Prunes nothing if all of them would not free enough.
    /// The manifest lists the pruned files. Returns `true` if there is space afterwards.
    ///
    /// # Errors
    /// If the manifest cannot be written; nothing is deleted then. Also if a file cannot be
    /// deleted.
    pub fn free_space(&mut self, bytes: Bytes) -> Result<bool, Error> {
        let store = Arc::clone(self.inner.store());
        let request = SpaceRequest {
            bytes: bytes.get(),
            incident: Some(self.id()),
            ..SpaceRequest::default()
        };
        let Some(exceeded) = store.exceeded_limit(&store.lock_usage(), request) else {
            return Ok(true);
        };
        let files = self
            .manifest
            .artifacts
            .iter()
            .map(|artifact| (artifact.file.as_str(), artifact.bytes.get()));
        let removable = removable_files(files);
        let Some(chosen) = select_to_free(&removable, exceeded.missing_bytes) else {
            return Ok(false);
        };
        let (names, freed): (Vec<String>, Vec<u64>) =
            chosen.iter().map(|(name, bytes)| ((*name).to_owned(), *bytes)).unzip();
        let artifacts_before = self.manifest.artifacts.clone();
        let removed_before = self.manifest.removed.clone();
        let now = store.clock.wall();
        if let Err(error) = self.update(|manifest| discard(manifest, &names, exceeded.limit, now)) {
            self.manifest.artifacts = artifacts_before;
            self.manifest.removed = removed_before;
            return Err(error);
        }
        for (name, bytes) in names.iter().zip(freed) {
            self.inner.dir.unlink(name)?;
            let mut usage = store.lock_usage();
            usage.resize(self.id(), bytes, 0);
            usage.pruned_count += 1;
        }
        self.inner.dir.sync()?;
        Ok(store.exceeded_limit(&store.lock_usage(), request).is_none())
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
        let size = write_manifest(&self.inner.dir, &mut self.manifest)?;
        self.inner.store().lock_usage().resize(self.id(), self.manifest_bytes, size);
        self.manifest_bytes = size;
        Ok(())
    }

    /// Replaces the report, `incident.md`, atomically, in the same way as the manifest.
    ///
    /// # Errors
    /// If the file cannot be written, or would exceed a limit of the store. The earlier report is
    /// kept.
    pub fn write_report(&mut self, text: &str) -> Result<(), Error> {
        let bytes = text.len() as u64;
        let store = self.inner.store();
        let request = SpaceRequest {
            bytes: bytes.saturating_sub(self.report_bytes),
            incident: Some(self.id()),
            ..SpaceRequest::default()
        };
        let exceeded = store.exceeded_limit(&store.lock_usage(), request);
        if let Some(exceeded) = exceeded {
            let path = self.inner.dir.path_of(REPORT_FILE);
            return Err(Error::Full { path, limit: exceeded.limit });
        }
        self.inner.dir.replace(REPORT_FILE, text.as_bytes())?;
        store.lock_usage().resize(self.id(), self.report_bytes, bytes);
        self.report_bytes = bytes;
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::fs::PermissionsExt;

    use super::super::fixture::{Fixture, generous_settings};
    use super::super::manifest::read;
    use super::*;
    use crate::config::StoreSettings;
    use crate::model::IncidentState;

    #[test]
    fn new_incident_has_complete_private_manifest() {
        let fixture = Fixture::new(generous_settings());
        let incident = fixture.store.create_incident("Memory/Use", fixture.manifest()).unwrap();
        let name = incident.path().file_name().unwrap().to_str().unwrap();
        assert_eq!(name, format!("20261123T025733.123Z-memory-use-{}", incident.id()));
        let mode = |path: &Path| path.metadata().unwrap().permissions().mode() & 0o7777;
        let manifest = incident.path().join(MANIFEST_FILE);
        assert_eq!(
            (mode(fixture.dir()), mode(incident.path()), mode(&manifest)),
            (0o700, 0o700, 0o600)
        );
        assert_eq!(&read(&std::fs::read(manifest).unwrap()).unwrap(), incident.manifest());
        let entries = std::fs::read_dir(fixture.dir()).unwrap().count();
        assert_eq!(entries, 2, "the lock and the incident");
    }

    #[test]
    fn report_is_replaced_and_counted() {
        let fixture = Fixture::new(generous_settings());
        let mut incident = fixture.store.create_incident("memory", fixture.manifest()).unwrap();
        let without_report = fixture.store.usage().bytes;
        for text in ["# first", "# the second is longer"] {
            incident.write_report(text).unwrap();
            assert_eq!(std::fs::read_to_string(incident.path().join(REPORT_FILE)).unwrap(), text);
            let bytes = Bytes(without_report.get() + text.len() as u64);
            assert_eq!(fixture.store.usage().bytes, bytes);
        }
        let files = std::fs::read_dir(incident.path()).unwrap().count();
        assert_eq!(files, 2, "the manifest and the report");
        let settings = StoreSettings { max_bytes_per_incident: Bytes(1), ..generous_settings() };
        fixture.store.set_settings(settings);
        let error = incident.write_report(&"x".repeat(100)).unwrap_err().to_string();
        assert!(error.contains("max_bytes_per_incident"), "{error}");
        let kept = std::fs::read_to_string(incident.path().join(REPORT_FILE)).unwrap();
        assert_eq!(kept, "# the second is longer");
    }

    #[test]
    fn update_replaces_manifest() {
        let fixture = Fixture::new(generous_settings());
        let mut incident = fixture.store.create_incident("memory", fixture.manifest()).unwrap();
        incident.update(|manifest| manifest.state = IncidentState::Closed).unwrap();
        let entry = fixture.store.find(incident.id()).unwrap();
        assert_eq!(entry.manifest.unwrap().state, IncidentState::Closed);
        assert!(!incident.path().join("incident.json.part").exists());
    }

    #[test]
    fn next_update_writes_change_of_failed_update() {
        let fixture = Fixture::new(generous_settings());
        let mut incident = fixture.store.create_incident("memory", fixture.manifest()).unwrap();
        let obstacle = incident.path().join("incident.json.part");
        std::fs::create_dir(&obstacle).unwrap();
        let error = incident.update(|manifest| manifest.service = "changed".into()).unwrap_err();
        assert!(error.to_string().contains("incident.json.part"), "{error}");
        assert_eq!(fixture.store.find(incident.id()).unwrap().manifest.unwrap().service, "orders");
        std::fs::remove_dir(&obstacle).unwrap();
        incident.update(|_| ()).unwrap();
        assert_eq!(fixture.store.find(incident.id()).unwrap().manifest.unwrap().service, "changed");
    }

    #[test]
    fn incident_id_is_used_once() {
        let fixture = Fixture::new(generous_settings());
        let manifest = fixture.manifest();
        let first = fixture.store.create_incident("memory", manifest.clone()).unwrap();
        assert!(fixture.store.create_incident("memory", manifest.clone()).is_err());
        drop(first);
        assert!(fixture.store.create_incident("memory", manifest).is_err());
        assert_eq!(fixture.incident_ids().len(), 1);
        assert_eq!(
            std::fs::read_dir(fixture.dir()).unwrap().count(),
            3,
            "it, the lock and ages.json"
        );
        assert!(fixture.store.inner.lock_usage().open_incidents.is_empty());
    }
}
