//! Recovery of an incident directory at start.
//!
//! The lock is held, so the process that left an unfinished entry has ended: nothing else closes an
//! incident that is `open` in its manifest, or finishes a `.part` file. The pid in a manifest is
//! not checked, because in a container every process can have pid 1.

use std::{fmt, io};

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::dir::{Dir, is_dir, is_file};
use super::draft::hex;
use super::error::Error;
use super::incident::put_head;
use super::index::read_head;
use super::names::{AGES, GONE, IncidentName, NEW, PART, STATE, artifact_form, is_part};
use super::retention::{BlockedRemoval, RetentionReport, finish_removal};
use crate::base::{Bytes, IncidentId};
use crate::model::{Artifact, CaptureKind, IncidentState, Manifest, Outcome};
use crate::store::usage::StoreInner;

/// Seconds after which an unlocked entry counts as abandoned. A later start recovers it.
const RECENT: i64 = 15 * 60;

/// Result of the recovery by [`Store::open`](super::Store::open).
#[derive(Debug, Default)]
pub struct Recovery {
    /// Deleted leftovers, by their names in the incident directory.
    pub swept: Vec<String>,
    /// Incidents marked `interrupted`.
    pub interrupted: Vec<IncidentId>,
    /// Artifacts added to the manifests of those incidents: complete, but not listed.
    pub listed: Vec<Artifact>,
    /// Leftovers not deleted because they contain a foreign entry.
    pub standing: Vec<BlockedRemoval>,
    /// Errors. The affected entries are unchanged.
    pub failed: Vec<Error>,
    /// Result of enforcing the limits.
    pub retained: RetentionReport,
}

impl Recovery {
    /// Returns `true` if there was nothing to recover and nothing failed.
    pub fn is_empty(&self) -> bool {
        self.swept.is_empty()
            && self.interrupted.is_empty()
            && self.standing.is_empty()
            && self.failed.is_empty()
    }
}

impl fmt::Display for Recovery {
    /// Writes one line for a log: the counts, and the first of the errors.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} incidents interrupted, {} unlisted artifacts, {} leftovers swept",
            self.interrupted.len(),
            self.listed.len(),
            self.swept.len(),
        )?;
        if let Some(standing) = self.standing.first() {
            let (count, path) = (self.standing.len(), standing.path.display());
            write!(f, ", {count} leftovers kept because of {path}")?;
        }
        match self.failed.first() {
            Some(error) => write!(f, ", {} failures: {error}", self.failed.len()),
            None => Ok(()),
        }
    }
}

/// Recovers the directory. Deletes leftovers and enforces the limits first, which frees space, and
/// then marks incidents, which may need space. No incident is evicted to mark another: if the
/// device stays full, the next start marks it.
pub(super) fn recover(shared: &StoreInner) -> Result<Recovery, Error> {
    let mut recovery = Recovery::default();
    let root = &shared.root;
    let mut incidents = Vec::new();
    let mut names = root.names()?;
    names.sort();
    let present = shared.clock.wall();
    for name in names {
        if shared.lock.others_may_live() && is_recent(root, &name, present)? {
            continue;
        }
        if IncidentName::parse(&name).is_some() {
            match sweep_parts(root, &name, &mut recovery.swept) {
                Ok(true) => incidents.push(name),
                Ok(false) => {}
                Err(error) => recovery.failed.push(error),
            }
            continue;
        }
        let swept = if name.strip_prefix(NEW).is_some_and(|id| id.parse::<IncidentId>().is_ok())
            || name.strip_prefix(GONE).is_some_and(|of| IncidentName::parse(of).is_some())
        {
            finish_removal(root, &name)
        } else if name.strip_suffix(PART).is_some_and(|of| [STATE, AGES].contains(&of)) {
            root.unlink(&name).map(|()| None)
        } else {
            continue;
        };
        match swept {
            Ok(None) => recovery.swept.push(name),
            Ok(Some(path)) => recovery.standing.push(BlockedRemoval { path }),
            Err(error) => recovery.failed.push(error),
        }
    }
    recovery.retained = shared.retain();
    for name in incidents {
        if root.stat(&name)?.is_some()
            && let Err(error) = root.subdir(&name).and_then(|dir| mark(shared, &dir, &mut recovery))
        {
            recovery.failed.push(error);
        }
    }
    Ok(recovery)
}

/// Returns `true` if `name` changed recently, so that a writer without a lock may still use it.
fn is_recent(root: &Dir, name: &str, present: Timestamp) -> Result<bool, Error> {
    let Some(stat) = root.stat(name)? else { return Ok(false) };
    #[allow(clippy::useless_conversion, reason = "the width differs between systems")]
    let changed = i64::try_from(stat.st_mtime).unwrap_or(i64::MAX);
    Ok(present.as_second().saturating_sub(changed) < RECENT)
}

/// Deletes unfinished files of an incident. Returns `false` if it is not a directory, belongs to
/// another user, or was deleted.
fn sweep_parts(root: &Dir, incident: &str, swept: &mut Vec<String>) -> Result<bool, Error> {
    if !root.stat(incident)?.is_some_and(|stat| is_dir(&stat)) {
        return Ok(false);
    }
    let dir = root.subdir(incident)?;
    if !dir.is_ours() {
        return Ok(false);
    }
    let names = dir.names()?;
    for name in names.iter().filter(|name| is_part(name)) {
        dir.unlink(name)?;
        swept.push(format!("{incident}/{name}"));
    }
    // An unfinished creation or eviction on a file system that cannot rename directories.
    if names.iter().all(|name| is_part(name)) {
        root.rmdir(incident)?;
        swept.push(incident.to_owned());
        return Ok(false);
    }
    Ok(true)
}

/// Marks the incident in `dir` as interrupted if its manifest has the state `open`.
fn mark(shared: &StoreInner, dir: &Dir, recovery: &mut Recovery) -> Result<(), Error> {
    let mut head = read_head(dir)?;
    let manifest = &mut head.manifest;
    for gone in manifest.removed.iter().map(|it| &it.artifact.file) {
        // A crash between writing the manifest and deleting the file.
        if artifact_form(gone).is_some() && dir.stat(gone)?.is_some_and(|stat| is_file(&stat)) {
            dir.unlink(gone)?;
            let incident = dir.path().file_name().unwrap_or_default().to_string_lossy();
            recovery.swept.push(format!("{incident}/{gone}"));
        }
    }
    if manifest.state != IncidentState::Open {
        return Ok(());
    }
    manifest.state = IncidentState::Interrupted;
    manifest.closed = Some(shared.clock.wall());
    for capture in &mut manifest.captures {
        if capture.outcome == Outcome::Running {
            capture.outcome = Outcome::Failed;
            capture.error = Some("the process ended during the capture".to_owned());
        }
    }
    let unlisted = unlisted(dir, manifest)?;
    manifest.artifacts.extend(unlisted.iter().cloned());
    let id = manifest.id;
    put_head(dir, head)?;
    recovery.interrupted.push(id);
    recovery.listed.extend(unlisted);
    Ok(())
}

/// Returns the complete artifacts in `dir` that the manifest does not list.
fn unlisted(dir: &Dir, manifest: &Manifest) -> Result<Vec<Artifact>, Error> {
    let mut artifacts = Vec::new();
    for name in dir.names()? {
        let listed = manifest.artifacts.iter().any(|artifact| artifact.file == name);
        if let Some(form) = artifact_form(&name)
            && !listed
            && dir.stat(&name)?.is_some_and(|stat| is_file(&stat))
        {
            artifacts.push(described(dir, name, form.kind())?);
        }
    }
    // Sorted by length first: numbers have three digits, or more from 1000 on.
    artifacts.sort_by_key(|artifact| (artifact.file.len(), artifact.file.clone()));
    Ok(artifacts)
}

/// Describes an artifact from its content. The time of its last write stands in for the time of its
/// evidence.
fn described(dir: &Dir, file: String, kind: CaptureKind) -> Result<Artifact, Error> {
    let failed = |source| Error::io("read", dir.at(&file), source);
    let mut content = dir.open_file(&file)?;
    let mut hash = HashingReader(Sha256::new());
    let bytes = Bytes(io::copy(&mut content, &mut hash).map_err(failed)?);
    let modified = content.metadata().and_then(|it| it.modified()).map_err(failed)?;
    let taken = Timestamp::try_from(modified).unwrap_or_default();
    Ok(Artifact { file, kind, bytes, sha256: hex(hash.0), taken, part: None, note: None })
}

/// A writer that hashes its input.
struct HashingReader(Sha256);

impl io::Write for HashingReader {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::time::Duration;

    use super::super::fixture::{Fixture, roomy};
    use super::super::names::MANIFEST;
    use super::*;
    use crate::base::Clock;
    use crate::config::StoreSettings;

    #[test]
    fn a_directory_in_order_is_left_as_it_is() {
        let it = Fixture::new(roomy());
        let id = it.closed(10);
        let before = fs::read(it.store.find(id).unwrap().path.join(MANIFEST)).unwrap();
        let (it, recovery) = it.reopen(roomy());
        assert!(recovery.swept.is_empty() && recovery.interrupted.is_empty());
        assert!(recovery.failed.is_empty() && recovery.listed.is_empty() && recovery.is_empty());
        let after = fs::read(it.store.find(id).unwrap().path.join(MANIFEST)).unwrap();
        assert_eq!(before, after);
    }

    #[test]
    fn an_open_incident_is_marked_and_its_unlisted_artifacts_are_listed() {
        let it = Fixture::new(roomy());
        let mut incident = it.store.begin("memory", it.manifest()).unwrap();
        let artifact = |kind, content: &[u8]| {
            let mut draft = incident.draft(kind, it.clock.wall()).unwrap();
            draft.write_all(content).unwrap();
            draft.commit().unwrap()
        };
        let listed = artifact(CaptureKind::Heap, b"listed");
        let unlisted =
            [artifact(CaptureKind::Cpu, b"not listed"), artifact(CaptureKind::Heap, b"nor this")];
        incident.update(|manifest| manifest.artifacts.push(listed.clone())).unwrap();
        let id = incident.id();
        drop(incident);
        it.clock.advance(Duration::from_secs(60));

        let (it, recovery) = it.reopen(roomy());
        assert_eq!(recovery.interrupted, [id]);
        let manifest = it.store.find(id).unwrap().manifest.unwrap();
        assert_eq!(manifest.state, IncidentState::Interrupted);
        assert_eq!(manifest.closed, Some(it.clock.wall()));
        assert_eq!(manifest.captures[0].outcome, Outcome::Failed);
        let error = manifest.captures[0].error.as_deref();
        assert_eq!(error, Some("the process ended during the capture"));
        assert_eq!(manifest.artifacts[0], listed);
        assert_eq!(manifest.artifacts[1..], recovery.listed);
        for (found, committed) in recovery.listed.iter().zip(&unlisted) {
            let as_committed = Artifact { taken: committed.taken, ..found.clone() };
            assert_eq!(&as_committed, committed);
        }
        assert_eq!(recovery.listed.len(), unlisted.len());

        let (_, again) = it.reopen(roomy());
        assert!(again.interrupted.is_empty() && again.listed.is_empty());
    }

    #[test]
    fn leftovers_of_every_step_are_swept_and_nothing_else() {
        let it = Fixture::new(roomy());
        let (kept, going) = (it.closed(10), it.closed(10));
        let kept = it.store.find(kept).unwrap().path;
        let going = it.store.find(going).unwrap().path;
        let name = |path: &std::path::Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        let gone = format!(".gone-{}", name(&going));
        fs::rename(&going, it.dir().join(&gone)).unwrap();
        let fresh = format!(".new-{}", it.manifest().id);
        fs::create_dir(it.dir().join(&fresh)).unwrap();
        fs::write(it.dir().join(&fresh).join("incident.json.part"), "{").unwrap();
        for part in ["state.json.part", "ages.json.part"] {
            fs::write(it.dir().join(part), "{").unwrap();
        }
        for part in ["incident.json.part", ".draft-3.part", "film.part"] {
            fs::write(kept.join(part), "half").unwrap();
        }
        for mine in [".new-idea", ".gone-fishing"] {
            fs::create_dir(it.dir().join(mine)).unwrap();
        }
        let (it, recovery) = it.reopen(roomy());
        let mut swept = recovery.swept;
        swept.sort();
        let kept_name = name(&kept);
        let mut expected = [
            gone,
            fresh,
            format!("{kept_name}/.draft-3.part"),
            format!("{kept_name}/incident.json.part"),
            "state.json.part".to_owned(),
            "ages.json.part".to_owned(),
        ];
        expected.sort();
        assert_eq!(swept, expected);
        let mut left: Vec<_> =
            fs::read_dir(it.dir()).unwrap().map(|entry| name(&entry.unwrap().path())).collect();
        left.sort();
        assert_eq!(left, [".gone-fishing", ".lock", ".new-idea", &kept_name, "ages.json"]);
        assert!(kept.join("film.part").exists() && kept.join(MANIFEST).exists());
    }

    #[test]
    fn a_removal_cut_short_goes_on_from_any_of_its_steps() {
        for removed in [
            vec![],
            vec!["orders_eu-1.001.memory.pprof"],
            vec!["orders_eu-1.001.memory.pprof", MANIFEST],
        ] {
            let it = Fixture::new(roomy());
            let path = it.store.find(it.closed(10)).unwrap().path;
            let gone = format!(".gone-{}", path.file_name().unwrap().to_str().unwrap());
            for file in removed {
                fs::remove_file(path.join(file)).unwrap();
            }
            fs::rename(&path, it.dir().join(&gone)).unwrap();
            let (it, recovery) = it.reopen(roomy());
            assert_eq!(recovery.swept, [gone]);
            assert_eq!(fs::read_dir(it.dir()).unwrap().count(), 1, "the lock");
        }
    }

    #[test]
    fn where_directories_cannot_be_renamed_incidents_are_made_and_removed_in_place() {
        use super::super::file_system::FsFeature;
        let it = Fixture::new(roomy());
        it.store.shared.root.file_system().pretend_without(FsFeature::RenameDir);
        let ids = [it.closed(10), it.closed(10)];
        assert_eq!(it.ids(), [ids[1], ids[0]]);
        it.store.set_limits(StoreSettings { max_incidents: 1, ..roomy() });
        assert_eq!(it.store.retain().removed.len(), 1);
        assert_eq!(
            fs::read_dir(it.dir()).unwrap().count(),
            3,
            "the lock, ages.json and an incident"
        );
        // A kill before the manifest is written, or after all files are deleted.
        let path = it.store.find(ids[1]).unwrap().path;
        for file in [MANIFEST, "orders_eu-1.001.memory.pprof"] {
            fs::remove_file(path.join(file)).unwrap();
        }
        fs::write(path.join("incident.json.part"), "{").unwrap();
        let (it, recovery) = it.reopen(roomy());
        assert!(recovery.failed.is_empty() && !path.exists(), "{recovery}");
        assert!(it.ids().is_empty());
    }

    #[test]
    fn a_leftover_with_a_file_of_somebody_elses_stays() {
        let it = Fixture::new(roomy());
        let fresh = it.dir().join(format!(".new-{}", it.manifest().id));
        fs::create_dir(&fresh).unwrap();
        fs::write(fresh.join("notes.txt"), "mine").unwrap();
        let (_it, recovery) = it.reopen(roomy());
        assert_eq!(recovery.standing, [BlockedRemoval { path: fresh.join("notes.txt") }]);
        assert!(fresh.join("notes.txt").exists());
    }

    #[test]
    fn one_bad_manifest_does_not_keep_the_others_from_being_marked() {
        let it = Fixture::new(roomy());
        let bad = it.store.begin("memory", it.manifest()).unwrap();
        fs::write(bad.path().join(MANIFEST), "{\"schema\": 1,").unwrap();
        let good = it.store.begin("memory", it.manifest()).unwrap();
        let ids = (bad.id(), good.id());
        drop((bad, good));
        let (bad, good) = ids;
        let (it, recovery) = it.reopen(roomy());
        assert_eq!(recovery.interrupted, [good]);
        assert_eq!(recovery.failed.len(), 1);
        assert!(recovery.failed[0].to_string().contains(&bad.to_string()));
        assert!(!recovery.is_empty() && recovery.to_string().contains("incident.json"));
        assert_eq!(it.ids().len(), 2);
    }
}
