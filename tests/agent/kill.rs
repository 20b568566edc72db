//! `kill -9` during captures: every file found afterwards is complete.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Child, Stdio};
use std::thread;
use std::time::Duration;

use flate2::read::GzDecoder;
use marple::internals::base::IncidentId;
use marple::internals::model::{IncidentState, Manifest, Outcome};
use marple::{Builder, CaptureSet, Settings};
use sha2::{Digest, Sha256};

use crate::support::host::{WAIT_TIMEOUT, incidents, settings, wait_for};
use crate::support::rerun::{self, test_path};

/// Environment variable with the child's incident directory; set only for the child.
const CAPTURES_ENV: &str = "MARPLE_TEST_KILL_CAPTURES";

/// The child process: captures everything in a loop until it is killed.
#[test]
fn capture_loop_process() {
    let Some(dir) = std::env::var_os(CAPTURES_ENV) else { return };
    let agent = Builder::from_settings(Settings { dir: dir.into(), ..settings() }).start().unwrap();
    let handle = agent.handle();
    let mut kept = Vec::new();
    loop {
        kept.push(vec![1u8; 1 << 20]);
        kept.truncate(50);
        let _ = handle.capture(CaptureSet::all(), Duration::from_millis(30)).wait(WAIT_TIMEOUT);
        wait_for("the incident to close", || {
            handle.status().wait(WAIT_TIMEOUT).unwrap().incidents.is_empty().then_some(())
        });
    }
}

fn spawn(captures: &Path) -> Child {
    rerun::command(test_path!(capture_loop_process))
        .env(CAPTURES_ENV, captures)
        .stdout(Stdio::null())
        .spawn()
        .unwrap()
}

/// A small random number generator. The delays differ from round to round but not from run to run.
fn next_random(seed: &mut u64) -> u64 {
    *seed = seed.wrapping_mul(6364136223846793005).wrapping_add(1442695040888963407);
    *seed >> 33
}

#[test]
fn twenty_kills_leave_no_partial_file() {
    let home = tempfile::tempdir().unwrap();
    let captures = home.path().join("captures");
    let mut seed = 20261123;
    let mut open_before: Vec<IncidentId> = Vec::new();
    let mut interrupted = 0;
    for round in 0..20 {
        let seen = incidents(&captures).len();
        let mut child = spawn(&captures);
        wait_for("the child to make an incident", || {
            (incidents(&captures).len() > seen).then_some(())
        });
        thread::sleep(Duration::from_millis(next_random(&mut seed) % 700));
        child.kill().unwrap();
        let status = child.wait().unwrap();
        assert_eq!(status.signal(), Some(9), "round {round}: the child ended by itself: {status}");

        let found = incidents(&captures);
        let states: HashMap<_, _> =
            found.iter().map(|(_, manifest)| (manifest.id, manifest.state)).collect();
        for id in open_before.drain(..) {
            assert_eq!(states[&id], IncidentState::Interrupted, "round {round}");
            interrupted += 1;
        }
        for (dir, manifest) in &found {
            check(dir, manifest, round);
            if manifest.state == IncidentState::Open {
                open_before.push(manifest.id);
            }
        }
    }
    assert!(interrupted > 0, "no kill hit an open incident: the test proves nothing");
}

fn check(dir: &Path, manifest: &Manifest, round: u32) {
    for artifact in &manifest.artifacts {
        let bytes = fs::read(dir.join(&artifact.file)).unwrap();
        assert_eq!(bytes.len() as u64, artifact.bytes.get(), "round {round}: {artifact:?}");
        let digest: String = Sha256::digest(&bytes).iter().map(|b| format!("{b:02x}")).collect();
        assert_eq!(digest, artifact.sha256, "round {round}: {artifact:?}");
    }
    // A file may have its final name before the manifest lists it; it must be complete even then.
    for entry in fs::read_dir(dir).unwrap() {
        let path = entry.unwrap().path();
        let name = path.file_name().unwrap().to_string_lossy().into_owned();
        if name.ends_with(".pprof") || name.ends_with(".trace") {
            let mut decoded = Vec::new();
            GzDecoder::new(File::open(&path).unwrap())
                .read_to_end(&mut decoded)
                .unwrap_or_else(|error| panic!("round {round}: half a file: {path:?}: {error}"));
        }
    }
    if manifest.state == IncidentState::Interrupted {
        assert!(manifest.captures.iter().all(|capture| capture.outcome != Outcome::Running));
    }
    if manifest.state == IncidentState::Closed {
        for capture in &manifest.captures {
            assert_eq!(capture.outcome, Outcome::Done, "round {round}: {dir:?}: {capture:?}");
            let of_it = manifest.artifacts.iter().filter(|artifact| artifact.kind == capture.kind);
            assert!(of_it.count() > 0, "round {round}: {dir:?}: nothing of {}", capture.kind);
        }
    }
}
