//! Listing and reading of incidents. Needs no lock, because every visible file is complete.

use std::fs::File;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use jiff::Timestamp;

use super::dir::{Dir, is_dir};
use super::error::Error;
use super::manifest::{self, MAX_MANIFEST, ManifestHead};
use super::names::{IncidentName, MANIFEST, artifact_form};
use super::place::Location;
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
    pub(super) fn of(root: &Arc<Dir>) -> Result<Self, Error> {
        let mut names = incidents(root)?;
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
        IncidentEntries::of(&self.root()?)
    }

    /// Returns the incident `id`.
    ///
    /// # Errors
    /// If there is no such incident, or the directory cannot be listed.
    pub fn find(&self, id: IncidentId) -> Result<IncidentEntry, Error> {
        entry(&*self.root()?, id)
    }

    /// Opens `file` of incident `id` for reading: an artifact or `incident.json`.
    ///
    /// # Errors
    /// If there is no such incident or file, or `file` is not a valid artifact name. A name from a
    /// request can therefore be passed unchecked.
    pub fn open_artifact(&self, id: IncidentId, file: &str) -> Result<File, Error> {
        artifact(&*self.root()?, id, file)
    }
}

/// Returns all incidents in `dir`, latest first.
///
/// # Errors
/// If `dir` cannot be listed. An unreadable manifest is reported in its entry.
pub fn list(dir: &Path) -> Result<Vec<IncidentEntry>, Error> {
    Ok(Location::new(dir).entries()?.collect())
}

/// Returns the incident `id` in `dir`.
///
/// # Errors
/// If there is no such incident, or `dir` cannot be listed.
pub fn find(dir: &Path, id: IncidentId) -> Result<IncidentEntry, Error> {
    Location::new(dir).find(id)
}

/// Opens `file` of incident `id` in `dir` for reading: an artifact or `incident.json`.
///
/// # Errors
/// Same as [`Location::open_artifact`].
pub fn open_artifact(dir: &Path, id: IncidentId, file: &str) -> Result<File, Error> {
    Location::new(dir).open_artifact(id, file)
}

pub(super) fn entry(root: &Dir, id: IncidentId) -> Result<IncidentEntry, Error> {
    incidents(root)?
        .into_iter()
        .find(|(_, name)| name.id == id)
        .and_then(|(text, name)| read_entry(root, &text, name))
        .ok_or_else(|| Error::NoIncident { id, dir: root.path().to_owned() })
}

pub(super) fn artifact(root: &Dir, id: IncidentId, file: &str) -> Result<File, Error> {
    let (text, _) = incidents(root)?
        .into_iter()
        .find(|(_, name)| name.id == id)
        .ok_or_else(|| Error::NoIncident { id, dir: root.path().to_owned() })?;
    if file != MANIFEST && artifact_form(file).is_none() {
        // The name is not joined to the path: it may be `../../etc/passwd`.
        return Err(Error::NoArtifact { path: root.at(&text).join("…") });
    }
    let dir = root.subdir(&text)?;
    match dir.stat(file)? {
        Some(_) => dir.open_file(file),
        None => Err(Error::NoArtifact { path: dir.at(file) }),
    }
}

/// Reads the head of the manifest in `dir`.
pub(super) fn read_head(dir: &Dir) -> Result<ManifestHead, Error> {
    let file = dir.open_file(MANIFEST)?;
    let failed = |source| Error::io("read", dir.at(MANIFEST), source);
    if file.metadata().map_err(failed)?.len() > MAX_MANIFEST.get() {
        return Err(Error::TooLarge { path: dir.at(MANIFEST), limit: MAX_MANIFEST });
    }
    let head = manifest::read_head(file).map_err(failed)?;
    head.map_err(|source| Error::Manifest { path: dir.at(MANIFEST), source })
}

fn incidents(root: &Dir) -> Result<Vec<(String, IncidentName)>, Error> {
    let names = root.names()?.into_iter();
    Ok(names.filter_map(|text| IncidentName::parse(&text).map(|name| (text, name))).collect())
}

/// Returns `None` if the incident was removed meanwhile: it is missing or no longer a directory.
fn read_entry(root: &Dir, text: &str, name: IncidentName) -> Option<IncidentEntry> {
    let head = root.subdir(text).and_then(|dir| read_head(&dir));
    let manifest = head.map(|head| head.manifest);
    if manifest.is_err() && !root.stat(text).is_ok_and(|stat| stat.is_some_and(|it| is_dir(&it))) {
        return None;
    }
    let IncidentName { opened, name, id } = name;
    Some(IncidentEntry { path: root.at(text), id, name, opened, manifest })
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Read;

    use super::super::fixture::{Fixture, roomy};
    use super::*;
    use crate::model::IncidentState;

    #[test]
    fn incidents_are_listed_latest_first_with_and_without_the_lock() {
        let it = Fixture::new(roomy());
        let ids = [it.closed(10), it.closed(10)];
        let listed = list(it.dir()).unwrap();
        assert_eq!(listed.iter().map(|it| it.id).collect::<Vec<_>>(), [ids[1], ids[0]]);
        assert_eq!(it.ids(), [ids[1], ids[0]]);
        assert_eq!(listed[0].name, "memory");
        assert_eq!(listed[1].manifest.as_ref().unwrap().state, IncidentState::Closed);
        assert_eq!(listed[1].opened, listed[1].manifest.as_ref().unwrap().opened);
        assert_eq!(find(it.dir(), ids[0]).unwrap().path, listed[1].path);
    }

    #[test]
    fn a_manifest_that_cannot_be_read_is_an_entry_that_says_why() {
        let it = Fixture::new(roomy());
        let ids = [it.closed(10), it.closed(10), it.closed(10)];
        let manifest = |id| it.store.find(id).unwrap().path.join(MANIFEST);
        fs::remove_file(manifest(ids[0])).unwrap();
        fs::write(manifest(ids[1]), "not json").unwrap();
        let large = fs::File::create(manifest(ids[2])).unwrap();
        large.set_len(MAX_MANIFEST.get() + 1).unwrap();
        let listed = list(it.dir()).unwrap();
        assert_eq!(listed.len(), 3);
        for (entry, message) in listed.iter().zip(["is larger than", "not a manifest", "No such"]) {
            let error = entry.manifest.as_ref().unwrap_err().to_string();
            assert!(error.contains(message) && error.contains(MANIFEST), "{error}");
        }
    }

    #[test]
    fn files_of_incidents_are_opened_by_name_and_nothing_else_is() {
        let it = Fixture::new(roomy());
        let id = it.closed(10);
        let path = it.store.find(id).unwrap().path;
        let mut content = String::new();
        let mut file = it.store.open_artifact(id, "orders_eu-1.001.memory.pprof").unwrap();
        file.read_to_string(&mut content).unwrap();
        assert_eq!(content, "x".repeat(10));
        assert!(open_artifact(it.dir(), id, MANIFEST).is_ok());

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
            let error = it.store.open_artifact(id, file).unwrap_err();
            assert!(matches!(error, Error::NoArtifact { .. }), "{file}: {error}");
        }
        let nobody = IncidentId::new(Timestamp::UNIX_EPOCH);
        let error = it.store.open_artifact(nobody, MANIFEST).unwrap_err();
        assert!(matches!(error, Error::NoIncident { .. }), "{error}");
    }
}
