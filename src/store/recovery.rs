//! Recovery of an incident directory at start.
//!
//! The lock is held, so the process that left an unfinished entry has ended: nothing else closes an
//! incident that is `open` in its manifest, or finishes a `.part` file. The pid in a manifest is
//! not checked, because in a container every process can have pid 1.

mod unlisted_artifacts;

use std::fmt;

use jiff::Timestamp;

use super::dir::{Dir, is_dir, is_file};
use super::error::Error;
use super::index::read_manifest_head;
use super::names::{
    AGES_FILE, EVICTED_PREFIX, IncidentName, NEW_PREFIX, PART_SUFFIX, STATE_FILE, artifact_form,
    is_part_file,
};
use super::retention::finish_eviction;
use crate::base::IncidentId;
use crate::model::{Artifact, IncidentState, Outcome};
use crate::store::manifest_head::write_manifest_head;
use crate::store::space::{BlockedRemoval, RetentionReport};
use crate::store::usage::StoreInner;
use unlisted_artifacts::unlisted_artifacts;

/// Seconds after which an unlocked entry counts as abandoned. A later start recovers it.
const RECENT_SECONDS: i64 = 15 * 60;

/// Result of the recovery by [`Store::open`](super::Store::open).
#[derive(Debug, Default)]
pub struct Recovery {
    /// Deleted leftovers, by their names in the incident directory.
    pub deleted: Vec<String>,
    /// Incidents marked `interrupted`.
    pub interrupted: Vec<IncidentId>,
    /// Artifacts added to the manifests of those incidents: complete, but not listed.
    pub added_artifacts: Vec<Artifact>,
    /// Leftovers not deleted because they contain a foreign entry.
    pub blocked: Vec<BlockedRemoval>,
    /// Errors. The affected entries are unchanged.
    pub errors: Vec<Error>,
    /// Result of enforcing the limits.
    pub retention: RetentionReport,
}

impl Recovery {
    /// Returns `true` if there was nothing to recover and nothing failed.
    pub fn is_empty(&self) -> bool {
        self.deleted.is_empty()
            && self.interrupted.is_empty()
            && self.blocked.is_empty()
            && self.errors.is_empty()
    }
}

impl fmt::Display for Recovery {
    /// Writes one line for a log: the counts, and the first of the errors.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{} incidents marked interrupted, {} unlisted artifacts added, {} leftovers deleted",
            self.interrupted.len(),
            self.added_artifacts.len(),
            self.deleted.len(),
        )?;
        if let Some(blocked) = self.blocked.first() {
            let count = self.blocked.len();
            let path = blocked.path.display();
            write!(f, ", {count} leftovers kept because of foreign files, such as {path}")?;
        }
        match self.errors.first() {
            Some(error) => write!(f, ", {} failures: {error}", self.errors.len()),
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
    let mut names = root.entry_names()?;
    names.sort();
    let now = shared.clock.wall();
    for name in names {
        if shared.lock.previous_writer_may_run() && is_recent(root, &name, now)? {
            continue;
        }
        if IncidentName::parse(&name).is_some() {
            match delete_part_files(root, &name, &mut recovery.deleted) {
                Ok(true) => incidents.push(name),
                Ok(false) => {}
                Err(error) => recovery.errors.push(error),
            }
            continue;
        }
        let result =
            if name.strip_prefix(NEW_PREFIX).is_some_and(|id| id.parse::<IncidentId>().is_ok())
                || name
                    .strip_prefix(EVICTED_PREFIX)
                    .is_some_and(|rest| IncidentName::parse(rest).is_some())
            {
                finish_eviction(root, &name)
            } else if name
                .strip_suffix(PART_SUFFIX)
                .is_some_and(|base| [STATE_FILE, AGES_FILE].contains(&base))
            {
                root.unlink(&name).map(|()| None)
            } else {
                continue;
            };
        match result {
            Ok(None) => recovery.deleted.push(name),
            Ok(Some(path)) => recovery.blocked.push(BlockedRemoval { path }),
            Err(error) => recovery.errors.push(error),
        }
    }
    recovery.retention = shared.enforce_limits();
    for name in incidents {
        if root.stat(&name)?.is_some()
            && let Err(error) =
                root.subdir(&name).and_then(|dir| mark_interrupted(shared, &dir, &mut recovery))
        {
            recovery.errors.push(error);
        }
    }
    Ok(recovery)
}

/// Returns `true` if `name` changed recently, so that a writer without a lock may still use it.
fn is_recent(root: &Dir, name: &str, now: Timestamp) -> Result<bool, Error> {
    let Some(stat) = root.stat(name)? else { return Ok(false) };
    #[allow(clippy::useless_conversion, reason = "the width differs between systems")]
    let changed = i64::try_from(stat.st_mtime).unwrap_or(i64::MAX);
    Ok(now.as_second().saturating_sub(changed) < RECENT_SECONDS)
}

/// Deletes unfinished files of an incident. Returns `false` if it is not a directory, belongs to
/// another user, or was deleted.
fn delete_part_files(root: &Dir, incident: &str, deleted: &mut Vec<String>) -> Result<bool, Error> {
    if !root.stat(incident)?.is_some_and(|stat| is_dir(&stat)) {
        return Ok(false);
    }
    let dir = root.subdir(incident)?;
    if !dir.is_owned_by_this_user() {
        return Ok(false);
    }
    let names = dir.entry_names()?;
    for name in names.iter().filter(|name| is_part_file(name)) {
        dir.unlink(name)?;
        deleted.push(format!("{incident}/{name}"));
    }
    // An unfinished creation or eviction on a file system that cannot rename directories.
    if names.iter().all(|name| is_part_file(name)) {
        root.rmdir(incident)?;
        deleted.push(incident.to_owned());
        return Ok(false);
    }
    Ok(true)
}

/// Marks the incident in `dir` as interrupted if its manifest has the state `open`.
fn mark_interrupted(shared: &StoreInner, dir: &Dir, recovery: &mut Recovery) -> Result<(), Error> {
    let mut head = read_manifest_head(dir)?;
    let manifest = &mut head.manifest;
    for removed_file in manifest.removed.iter().map(|removed| &removed.artifact.file) {
        // A crash between writing the manifest and deleting the file.
        if artifact_form(removed_file).is_some()
            && dir.stat(removed_file)?.is_some_and(|stat| is_file(&stat))
        {
            dir.unlink(removed_file)?;
            let incident = dir.path().file_name().unwrap_or_default().to_string_lossy();
            recovery.deleted.push(format!("{incident}/{removed_file}"));
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
    let added = unlisted_artifacts(dir, manifest)?;
    manifest.artifacts.extend(added.iter().cloned());
    let id = manifest.id;
    write_manifest_head(dir, head)?;
    recovery.interrupted.push(id);
    recovery.added_artifacts.extend(added);
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::fs;
    use std::io::Write;
    use std::time::Duration;

    use super::super::fixture::{Fixture, generous_settings};
    use super::super::names::MANIFEST_FILE;
    use super::*;
    use crate::base::Clock;
    use crate::config::StoreSettings;
    use crate::model::CaptureKind;

    #[test]
    fn clean_directory_is_unchanged() {
        let fixture = Fixture::new(generous_settings());
        let id = fixture.create_closed(10);
        let before = fs::read(fixture.store.find(id).unwrap().path.join(MANIFEST_FILE)).unwrap();
        let (fixture, recovery) = fixture.reopen(generous_settings());
        assert!(recovery.deleted.is_empty() && recovery.interrupted.is_empty());
        assert!(
            recovery.errors.is_empty()
                && recovery.added_artifacts.is_empty()
                && recovery.is_empty()
        );
        let after = fs::read(fixture.store.find(id).unwrap().path.join(MANIFEST_FILE)).unwrap();
        assert_eq!(before, after);
    }

    #[test]
    fn open_incident_is_marked_interrupted_with_unlisted_artifacts_added() {
        let fixture = Fixture::new(generous_settings());
        let mut incident = fixture.store.create_incident("memory", fixture.manifest()).unwrap();
        let artifact = |kind, content: &[u8]| {
            let mut draft = incident.draft(kind, fixture.clock.wall()).unwrap();
            draft.write_all(content).unwrap();
            draft.commit().unwrap()
        };
        let listed = artifact(CaptureKind::Heap, b"listed");
        let unlisted =
            [artifact(CaptureKind::Cpu, b"not listed"), artifact(CaptureKind::Heap, b"nor this")];
        incident.update(|manifest| manifest.artifacts.push(listed.clone())).unwrap();
        let id = incident.id();
        drop(incident);
        fixture.clock.advance(Duration::from_secs(60));

        let (fixture, recovery) = fixture.reopen(generous_settings());
        assert_eq!(recovery.interrupted, [id]);
        let manifest = fixture.store.find(id).unwrap().manifest.unwrap();
        assert_eq!(manifest.state, IncidentState::Interrupted);
        assert_eq!(manifest.closed, Some(fixture.clock.wall()));
        assert_eq!(manifest.captures[0].outcome, Outcome::Failed);
        let error = manifest.captures[0].error.as_deref();
        assert_eq!(error, Some("the process ended during the capture"));
        assert_eq!(manifest.artifacts[0], listed);
        assert_eq!(manifest.artifacts[1..], recovery.added_artifacts);
        for (found, committed) in recovery.added_artifacts.iter().zip(&unlisted) {
            let as_committed = Artifact { taken: committed.taken, ..found.clone() };
            assert_eq!(&as_committed, committed);
        }
        assert_eq!(recovery.added_artifacts.len(), unlisted.len());

        let (_, again) = fixture.reopen(generous_settings());
        assert!(again.interrupted.is_empty() && again.added_artifacts.is_empty());
    }

    #[test]
    fn deletes_leftovers_of_every_step_and_nothing_else() {
        let fixture = Fixture::new(generous_settings());
        let kept = fixture.create_closed(10);
        let evicting = fixture.create_closed(10);
        let kept = fixture.store.find(kept).unwrap().path;
        let evicting = fixture.store.find(evicting).unwrap().path;
        let name = |path: &std::path::Path| path.file_name().unwrap().to_str().unwrap().to_owned();
        let gone = format!(".gone-{}", name(&evicting));
        fs::rename(&evicting, fixture.dir().join(&gone)).unwrap();
        let fresh = format!(".new-{}", fixture.manifest().id);
        fs::create_dir(fixture.dir().join(&fresh)).unwrap();
        fs::write(fixture.dir().join(&fresh).join("incident.json.part"), "{").unwrap();
        for part in ["state.json.part", "ages.json.part"] {
            fs::write(fixture.dir().join(part), "{").unwrap();
        }
        for part in ["incident.json.part", ".draft-3.part", "film.part"] {
            fs::write(kept.join(part), "half").unwrap();
        }
        for mine in [".new-idea", ".gone-fishing"] {
            fs::create_dir(fixture.dir().join(mine)).unwrap();
        }
        let (fixture, recovery) = fixture.reopen(generous_settings());
        let mut deleted = recovery.deleted;
        deleted.sort();
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
        assert_eq!(deleted, expected);
        let mut remaining: Vec<_> = fs::read_dir(fixture.dir())
            .unwrap()
            .map(|entry| name(&entry.unwrap().path()))
            .collect();
        remaining.sort();
        assert_eq!(remaining, [".gone-fishing", ".lock", ".new-idea", &kept_name, "ages.json"]);
        assert!(kept.join("film.part").exists() && kept.join(MANIFEST_FILE).exists());
    }

    #[test]
    fn interrupted_eviction_resumes_from_any_step() {
        for removed in [
            vec![],
            vec!["orders_eu-1.001.memory.pprof"],
            vec!["orders_eu-1.001.memory.pprof", MANIFEST_FILE],
        ] {
            let fixture = Fixture::new(generous_settings());
            let path = fixture.store.find(fixture.create_closed(10)).unwrap().path;
            let gone = format!(".gone-{}", path.file_name().unwrap().to_str().unwrap());
            for file in removed {
                fs::remove_file(path.join(file)).unwrap();
            }
            fs::rename(&path, fixture.dir().join(&gone)).unwrap();
            let (fixture, recovery) = fixture.reopen(generous_settings());
            assert_eq!(recovery.deleted, [gone]);
            assert_eq!(fs::read_dir(fixture.dir()).unwrap().count(), 1, "the lock");
        }
    }

    #[test]
    fn creates_and_evicts_in_place_without_directory_rename() {
        use super::super::file_system::FsFeature;
        let fixture = Fixture::new(generous_settings());
        fixture.store.inner.root.file_system().disable(FsFeature::RenameDir);
        let ids = [fixture.create_closed(10), fixture.create_closed(10)];
        assert_eq!(fixture.incident_ids(), [ids[1], ids[0]]);
        fixture.store.set_settings(StoreSettings { max_incidents: 1, ..generous_settings() });
        assert_eq!(fixture.store.enforce_limits().evicted.len(), 1);
        assert_eq!(
            fs::read_dir(fixture.dir()).unwrap().count(),
            3,
            "the lock, ages.json and an incident"
        );
        // A kill before the manifest is written, or after all files are deleted.
        let path = fixture.store.find(ids[1]).unwrap().path;
        for file in [MANIFEST_FILE, "orders_eu-1.001.memory.pprof"] {
            fs::remove_file(path.join(file)).unwrap();
        }
        fs::write(path.join("incident.json.part"), "{").unwrap();
        let (fixture, recovery) = fixture.reopen(generous_settings());
        assert!(recovery.errors.is_empty() && !path.exists(), "{recovery}");
        assert!(fixture.incident_ids().is_empty());
    }

    #[test]
    fn leftover_with_foreign_file_is_kept() {
        let fixture = Fixture::new(generous_settings());
        let fresh = fixture.dir().join(format!(".new-{}", fixture.manifest().id));
        fs::create_dir(&fresh).unwrap();
        fs::write(fresh.join("notes.txt"), "mine").unwrap();
        let (_fixture, recovery) = fixture.reopen(generous_settings());
        assert_eq!(recovery.blocked, [BlockedRemoval { path: fresh.join("notes.txt") }]);
        assert!(fresh.join("notes.txt").exists());
    }

    #[test]
    fn unreadable_manifest_does_not_stop_recovery_of_others() {
        let fixture = Fixture::new(generous_settings());
        let bad = fixture.store.create_incident("memory", fixture.manifest()).unwrap();
        fs::write(bad.path().join(MANIFEST_FILE), "{\"schema\": 1,").unwrap();
        let good = fixture.store.create_incident("memory", fixture.manifest()).unwrap();
        let ids = (bad.id(), good.id());
        drop((bad, good));
        let (bad, good) = ids;
        let (fixture, recovery) = fixture.reopen(generous_settings());
        assert_eq!(recovery.interrupted, [good]);
        assert_eq!(recovery.errors.len(), 1);
        assert!(recovery.errors[0].to_string().contains(&bad.to_string()));
        assert!(!recovery.is_empty() && recovery.to_string().contains("incident.json"));
        assert_eq!(fixture.incident_ids().len(), 2);
    }
}
