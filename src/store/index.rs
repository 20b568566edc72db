//! Listing and reading of incidents. Needs no lock, because every visible file is complete.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;

use super::dir::{Dir, is_dir};
use super::error::Error;
use super::location::Location;
use super::manifest::{self, MAX_MANIFEST_BYTES, ManifestHead};
use super::names::{IncidentName, MANIFEST_FILE, is_incident_file};
use crate::base::IncidentId;
use crate::model::Manifest;

/// An incident in the index.
#[derive(Debug)]
pub struct IncidentEntry {
    /// Its directory.
    pub path: PathBuf,
    /// Its ID.
    pub id: IncidentId,
    /// The name it was opened under: the rule, or the requester.
    pub name: String,
    /// Time at which it opened, to the millisecond.
    pub opened: Timestamp,
    /// Its manifest without vitals and losses, or the error if it cannot be read. Vitals are most
    /// of a manifest; read them from the file.
    pub manifest: Result<Manifest, Error>,
}

/// An iterator over the incidents of a directory, latest first. Reads each manifest when it is
/// reached.
#[derive(Debug)]
pub struct IncidentEntries {
    root: Arc<Dir>,
    names: std::vec::IntoIter<(String, IncidentName)>,
}

impl IncidentEntries {
    pub(super) fn from_dir(root: &Arc<Dir>) -> Result<Self, Error> {
        let mut names = incident_names(root)?;
        names.sort_by(|(a, _), (b, _)| b.cmp(a));
        Ok(Self { root: Arc::clone(root), names: names.into_iter() })
    }
}

impl Iterator for IncidentEntries {
    type Item = IncidentEntry;

    fn next(&mut self) -> Option<IncidentEntry> {
        self.names.find_map(|(text, name)| read_entry(&self.root, &text, name))
    }
}

impl Location {
    /// Returns all incidents, latest first.
    ///
    /// # Errors
    /// If the directory cannot be listed. An unreadable manifest is reported in its entry.
    pub fn entries(&self) -> Result<IncidentEntries, Error> {
        IncidentEntries::from_dir(&self.open_root()?)
    }

    /// Returns the incident `id`.
    ///
    /// # Errors
    /// If there is no such incident, or the directory cannot be listed.
    pub fn find(&self, id: IncidentId) -> Result<IncidentEntry, Error> {
        find_entry(&*self.open_root()?, id)
    }

    /// Opens `file` of incident `id` for reading: an artifact, the manifest or the report.
    ///
    /// # Errors
    /// If there is no such incident or file, or `file` is not a valid artifact name. A name from a
    /// request can therefore be passed unchecked.
    pub fn open_artifact(&self, id: IncidentId, file: &str) -> Result<File, Error> {
        open_artifact_in(&*self.open_root()?, id, file)
    }
}

/// Returns all incidents in `dir`, latest first.
///
/// # Errors
/// If `dir` cannot be listed. An unreadable manifest is reported in its entry.
pub fn list(dir: &Path) -> Result<Vec<IncidentEntry>, Error> {
    Ok(Location::new(dir).entries()?.collect())
}

pub(super) fn find_entry(root: &Dir, id: IncidentId) -> Result<IncidentEntry, Error> {
    incident_names(root)?
        .into_iter()
        .find(|(_, name)| name.id == id)
        .and_then(|(text, name)| read_entry(root, &text, name))
        .ok_or_else(|| Error::NoIncident { id, dir: root.path().to_owned() })
}

pub(super) fn open_artifact_in(root: &Dir, id: IncidentId, file: &str) -> Result<File, Error> {
    let (text, _) = incident_names(root)?
        .into_iter()
        .find(|(_, name)| name.id == id)
        .ok_or_else(|| Error::NoIncident { id, dir: root.path().to_owned() })?;
    if !is_incident_file(file) {
        // The name is not joined to the path: it may be `../../etc/passwd`.
        return Err(Error::NoArtifact { path: root.path_of(&text).join("…") });
    }
    let dir = root.subdir(&text)?;
    match dir.stat(file)? {
        Some(_) => dir.open_file(file),
        None => Err(Error::NoArtifact { path: dir.path_of(file) }),
    }
}

/// Reads the head of the manifest in `dir`.
pub(super) fn read_manifest_head(dir: &Dir) -> Result<ManifestHead, Error> {
    let file = dir.open_file(MANIFEST_FILE)?;
    let read_error = |source| Error::io("read", dir.path_of(MANIFEST_FILE), source);
    if file.metadata().map_err(read_error)?.len() > MAX_MANIFEST_BYTES.get() {
        return Err(Error::TooLarge {
            path: dir.path_of(MANIFEST_FILE),
            limit: MAX_MANIFEST_BYTES,
        });
    }
    let head = manifest::read_head(file).map_err(read_error)?;
    head.map_err(|source| Error::Manifest { path: dir.path_of(MANIFEST_FILE), source })
}

fn incident_names(root: &Dir) -> Result<Vec<(String, IncidentName)>, Error> {
    let names = root.entry_names()?.into_iter();
    Ok(names.filter_map(|text| IncidentName::parse(&text).map(|name| (text, name))).collect())
}

/// Returns `None` if the incident was removed meanwhile: it is missing or no longer a directory.
fn read_entry(root: &Dir, text: &str, name: IncidentName) -> Option<IncidentEntry> {
    let head = root.subdir(text).and_then(|dir| read_manifest_head(&dir));
    let manifest = head.map(|head| head.manifest);
    if manifest.is_err()
        && !root.stat(text).is_ok_and(|stat| stat.is_some_and(|status| is_dir(&status)))
    {
        return None;
    }
    let IncidentName { opened, name, id } = name;
    Some(IncidentEntry { path: root.path_of(text), id, name, opened, manifest })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;

    use super::super::fixture::{Fixture, generous_settings};
    use super::*;
    use crate::model::IncidentState;

    #[test]
    fn lists_incidents_latest_first_with_and_without_lock() {
        let fixture = Fixture::new(generous_settings());
        let ids = [fixture.create_closed(10), fixture.create_closed(10)];
        let listed = list(fixture.dir()).unwrap();
        assert_eq!(listed.iter().map(|entry| entry.id).collect::<Vec<_>>(), [ids[1], ids[0]]);
        assert_eq!(fixture.incident_ids(), [ids[1], ids[0]]);
        assert_eq!(listed[0].name, "memory");
        assert_eq!(listed[1].manifest.as_ref().unwrap().state, IncidentState::Closed);
        assert_eq!(listed[1].opened, listed[1].manifest.as_ref().unwrap().opened);
        assert_eq!(Location::new(fixture.dir()).find(ids[0]).unwrap().path, listed[1].path);
    }

    #[test]
    fn unreadable_manifest_is_listed_with_its_error() {
        let fixture = Fixture::new(generous_settings());
        let ids = [fixture.create_closed(10), fixture.create_closed(10), fixture.create_closed(10)];
        let manifest = |id| fixture.store.find(id).unwrap().path.join(MANIFEST_FILE);
        fs::remove_file(manifest(ids[0])).unwrap();
        fs::write(manifest(ids[1]), "not json").unwrap();
        let large = fs::File::create(manifest(ids[2])).unwrap();
        large.set_len(MAX_MANIFEST_BYTES.get() + 1).unwrap();
        let listed = list(fixture.dir()).unwrap();
        assert_eq!(listed.len(), 3);
        for (entry, message) in
            listed.iter().zip(["is larger than", "not a valid manifest", "No such"])
        {
            let error = entry.manifest.as_ref().unwrap_err().to_string();
            assert!(error.contains(message) && error.contains(MANIFEST_FILE), "{error}");
        }
    }

    #[test]
    fn opens_only_manifest_and_artifacts_by_name() {
        let fixture = Fixture::new(generous_settings());
        let id = fixture.create_closed(10);
        let path = fixture.store.find(id).unwrap().path;
        let mut content = String::new();
        let mut file = fixture.store.open_artifact(id, "orders_eu-1.001.memory.pprof").unwrap();
        file.read_to_string(&mut content).unwrap();
        assert_eq!(content, "x".repeat(10));
        assert!(Location::new(fixture.dir()).open_artifact(id, MANIFEST_FILE).is_ok());

        fs::write(path.join("notes.txt"), "private").unwrap();
        std::os::unix::fs::symlink("/etc/hostname", path.join("orders_eu-1.002.cpu.pprof"))
            .unwrap();
        fs::create_dir(path.join("orders_eu-1.003.cpu.pprof")).unwrap();
        for file in [
            "",
            ".",
            "..",
            "../.lock",
            "../../etc/passwd",
            "/etc/passwd",
            "notes.txt",
            "orders_eu-1.002.cpu.pprof",
            "orders_eu-1.003.cpu.pprof",
            "orders_eu-1.004.cpu.pprof",
            "a\0b",
        ] {
            let error = fixture.store.open_artifact(id, file).unwrap_err();
            assert!(matches!(error, Error::NoArtifact { .. }), "{file}: {error}");
        }
        let unknown_id = IncidentId::new(Timestamp::UNIX_EPOCH);
        let error = fixture.store.open_artifact(unknown_id, MANIFEST_FILE).unwrap_err();
        assert!(matches!(error, Error::NoIncident { .. }), "{error}");
    }
}
