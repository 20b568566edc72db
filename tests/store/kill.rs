//! Kills a process that writes incidents two hundred times at random moments; the files it leaves
//! are complete each time.
//!
//! A kill tests the order of the steps, not the syncs between them: the page cache outlives a
//! process.

use std::collections::BTreeMap;
use std::fs;
use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::Stdio;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use marple::config::StoreSettings;
use marple::internals::base::SystemClock;
use marple::internals::model::{CaptureKind, IncidentState, Manifest, Outcome};
use marple::internals::store::manifest::read;
use marple::internals::store::{Store, list};
use sha2::{Digest, Sha256};

use crate::support::kill::{Random, check_artifacts, kill_after};
use crate::support::rerun::{self, test_path};
use crate::support::store;

const KILLS: u32 = 200;
const CHILD_DIR_ENV: &str = "STORE_KILL_DIR";

fn settings() -> StoreSettings {
    // A small limit, so that incidents are also being removed at the time of a kill.
    StoreSettings { max_incidents: 4, ..store::generous_limits() }
}

#[test]
fn two_hundred_kills_leave_complete_files() {
    if let Some(dir) = std::env::var_os(CHILD_DIR_ENV) {
        write_incidents(Path::new(&dir));
    }
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("captures");
    let mut random = Random(0x5EED);
    let mut seen = BTreeMap::<&str, usize>::new();
    for round in 0..KILLS {
        kill_writer(&dir, &mut random);
        for entry in list(&dir).unwrap() {
            check(&entry.path, &entry.manifest.unwrap_or_else(|error| panic!("{round}: {error}")));
        }

        let (opened, recovery) = Store::open(&dir, settings(), Arc::new(SystemClock)).unwrap();
        assert!(recovery.errors.is_empty(), "{round}: {:?}", recovery.errors);
        assert!(recovery.blocked.is_empty(), "{round}: {:?}", recovery.blocked);
        *seen.entry("interrupted").or_default() += recovery.interrupted.len();
        *seen.entry("listed").or_default() += recovery.added_artifacts.len();
        for swept in &recovery.deleted {
            let kind = if swept.starts_with(".new-") {
                "incident half made"
            } else if swept.starts_with(".gone-") {
                "incident half removed"
            } else if swept.ends_with("incident.json.part") {
                "manifest half written"
            } else {
                "other"
            };
            *seen.entry(kind).or_default() += 1;
        }
        let entries = opened.list_incidents().unwrap();
        assert!(entries.len() <= settings().max_incidents);
        for entry in &entries {
            let manifest = entry.manifest.as_ref().unwrap();
            check(&entry.path, manifest);
            assert_ne!(manifest.state, IncidentState::Open, "{round}: nobody will close it");
            assert!(manifest.closed.is_some());
            assert!(manifest.captures.iter().all(|capture| capture.outcome != Outcome::Running));
            let listed = manifest.artifacts.len();
            assert_eq!(files(&entry.path).len(), listed + 1, "{round}: a file that is not listed");
        }
        let rest = files(&dir).len() - entries.len();
        assert!(
            rest <= 3,
            "{round}: besides incidents only `.lock`, `state.json` and `ages.json` may stand"
        );
        let count: Option<u64> = opened.load_state().unwrap();
        assert!(round == 0 || count.is_some());
    }
    println!("{KILLS} kills: {seen:?}");
    for kind in ["interrupted", "incident half made"] {
        assert!(seen.get(kind).is_some_and(|&times| times > 0), "no kill hit `{kind}`: {seen:?}");
    }
}

/// Starts the writer, waits until it works, and kills it after a random time.
fn kill_writer(dir: &Path, random: &mut Random) {
    let mut child = rerun::command(test_path!(two_hundred_kills_leave_complete_files))
        .env(CHILD_DIR_ENV, dir)
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut first = [0];
    child.stderr.as_mut().unwrap().read_exact(&mut first).expect("the writer did not start");
    kill_after(child, Duration::from_micros(random.below(30_000)));
}

/// Writes incidents of a few artifacts without end.
fn write_incidents(dir: &Path) -> ! {
    let (store, _) = Store::open(dir, settings(), Arc::new(SystemClock)).unwrap();
    let mut count = store.load_state::<u64>().unwrap().unwrap_or_default();
    store.save_state(&count).unwrap();
    eprint!(".");
    let mut random = Random(u64::from(std::process::id()));
    loop {
        let mut incident = store.create_incident("memory", store::manifest()).unwrap();
        for kind in CaptureKind::ALL {
            let mut draft = incident.draft(kind, Timestamp::now()).unwrap();
            draft.write_all(&self_checking_content(random.below(200_000) as usize)).unwrap();
            let artifact = draft.commit().unwrap();
            incident.update(|manifest| manifest.artifacts.push(artifact)).unwrap();
        }
        let close = |manifest: &mut Manifest| {
            manifest.state = IncidentState::Closed;
            manifest.closed = Some(Timestamp::now());
            manifest.captures[0].outcome = Outcome::Done;
        };
        incident.update(close).unwrap();
        count += 1;
        store.save_state(&count).unwrap();
        store.enforce_limits();
    }
}

/// Returns content that can be checked by itself: its last 32 bytes are the hash of the rest.
fn self_checking_content(length: usize) -> Vec<u8> {
    let mut content: Vec<u8> = (0..length).map(|at| (at % 253) as u8).collect();
    content.extend(Sha256::digest(&content));
    content
}

/// Checks that every file with a final name is complete, and equal to its entry in the manifest if
/// it has one.
fn check(incident: &Path, manifest: &Manifest) {
    let again = read(&fs::read(incident.join("incident.json")).unwrap()).unwrap();
    assert_eq!(again.id, manifest.id);
    for path in files(incident) {
        if path.extension().is_some_and(|suffix| suffix == "part" || suffix == "json") {
            continue;
        }
        let content = fs::read(&path).unwrap();
        let (body, hash) = content.split_at(content.len() - 32);
        assert_eq!(Sha256::digest(body)[..], *hash, "{} is half a file", path.display());
    }
    check_artifacts(incident, manifest);
}

fn files(dir: &Path) -> Vec<PathBuf> {
    fs::read_dir(dir).unwrap().map(|entry| entry.unwrap().path()).collect()
}
