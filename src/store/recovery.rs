//! What a start finds, and puts in order.
//!
//! We hold the lock, so whoever left what lies here is gone: a manifest that says `open` speaks of an
//! incident nobody will close, and a `.part` will not be finished. Pids are not asked: in a container
//! every process is number 1.

use std::{fmt, io};

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::dir::{Dir, is_dir, is_file};
use super::draft::hex;
use super::error::Error;
use super::incident::put_head;
use super::index::read_head;
use super::names::{AGES, GONE, IncidentName, NEW, PART, STATE, artifact_form, is_part};
use super::retention::{Retained, Standing, finish_removal};
use super::room::Shared;
use crate::base::{Bytes, IncidentId};
use crate::model::{Artifact, CaptureKind, IncidentState, Manifest, Outcome};

/// How long a writer may leave an incident as it is, in seconds. What it left unfinished is put in order by the next
/// start after that.
const RECENT: i64 = 15 * 60;

/// What [`Store::open`](super::Store::open) found and did.
#[derive(Debug, Default)]
pub struct Recovery {
    /// Leftovers it removed, by their names in the directory of incidents.
    pub swept: Vec<String>,
    /// Incidents it marked `interrupted`.
    pub interrupted: Vec<IncidentId>,
    /// Artifacts it added to those incidents' manifests: finished, but not yet listed.
    pub listed: Vec<Artifact>,
    /// Leftovers it did not remove, because something in them is not ours.
    pub standing: Vec<Standing>,
    /// What it could not do; it is left as it was found.
    pub failed: Vec<Error>,
    /// What was removed to keep the bounds.
    pub retained: Retained,
}

impl Recovery {
    /// Whether everything was in order.
    pub fn is_empty(&self) -> bool {
        self.swept.is_empty()
            && self.interrupted.is_empty()
            && self.standing.is_empty()
            && self.failed.is_empty()
    }
}

impl fmt::Display for Recovery {
    /// One line for a log: numbers of everything, and the first of what could not be done.
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

/// Sweeps and keeps the bounds first, which makes room, and then marks, which may need it. No incident is
/// given up to mark another: on a device that stays full, the next start marks.
pub(super) fn recover(shared: &Shared) -> Result<Recovery, Error> {
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
            Ok(Some(path)) => recovery.standing.push(Standing { path }),
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

/// Whether `name` changed so lately that a writer that no lock keeps out may be at work in it.
fn is_recent(root: &Dir, name: &str, present: Timestamp) -> Result<bool, Error> {
    let Some(stat) = root.stat(name)? else { return Ok(false) };
    #[allow(clippy::useless_conversion, reason = "the width differs between systems")]
    let changed = i64::try_from(stat.st_mtime).unwrap_or(i64::MAX);
    Ok(present.as_second().saturating_sub(changed) < RECENT)
}

/// Removes what was being written in an incident. False when it is not a directory, or not ours.
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
    // Where directories cannot be renamed, one that was being made or removed looks like this.
    if names.iter().all(|name| is_part(name)) {
        root.rmdir(incident)?;
        swept.push(incident.to_owned());
        return Ok(false);
    }
    Ok(true)
}

/// Marks the incident in `dir` interrupted if it says that it is open.
fn mark(shared: &Shared, dir: &Dir, recovery: &mut Recovery) -> Result<(), Error> {
    let mut head = read_head(dir)?;
    let manifest = &mut head.manifest;
    for gone in manifest.removed.iter().map(|it| &it.artifact.file) {
        // A crash came between the manifest and the removal it tells of.
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

/// The artifacts in `dir` that were committed but not yet listed.
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
    // Numbers are padded, and a pad overflows at a thousand: the shorter is the earlier.
    artifacts.sort_by_key(|artifact| (artifact.file.len(), artifact.file.clone()));
    Ok(artifacts)
}

/// What is known of a whole artifact by looking at it; its last write stands for when it was taken.
fn described(dir: &Dir, file: String, kind: CaptureKind) -> Result<Artifact, Error> {
    let failed = |source| Error::io("read", dir.at(&file), source);
    let mut content = dir.open_file(&file)?;
    let mut hash = Hashing(Sha256::new());
    let bytes = Bytes(io::copy(&mut content, &mut hash).map_err(failed)?);
    let modified = content.metadata().and_then(|it| it.modified()).map_err(failed)?;
    let taken = Timestamp::try_from(modified).unwrap_or_default();
    Ok(Artifact { file, kind, bytes, sha256: hex(hash.0), taken, part: None, note: None })
}

/// A writer that keeps the hash of what it is given.
struct Hashing(Sha256);

impl io::Write for Hashing {
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
        use super::super::file_system::Feature;
        let it = Fixture::new(roomy());
        it.store.shared.root.file_system().pretend_without(Feature::RenameDir);
        let ids = [it.closed(10), it.closed(10)];
        assert_eq!(it.ids(), [ids[1], ids[0]]);
        it.store.set_limits(StoreSettings { max_incidents: 1, ..roomy() });
        assert_eq!(it.store.retain().removed.len(), 1);
        assert_eq!(
            fs::read_dir(it.dir()).unwrap().count(),
            3,
            "the lock, ages.json and an incident"
        );
        // A kill before the manifest is there, or after all of it is gone.
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
        assert_eq!(recovery.standing, [Standing { path: fresh.join("notes.txt") }]);
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
