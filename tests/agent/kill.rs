//! `kill -9` during captures: every file found afterwards is complete.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::Read;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use flate2::read::GzDecoder;
use marple::internals::base::IncidentId;
use marple::internals::model::{IncidentState, Manifest, Outcome};
use marple::{Builder, CaptureSet, Settings};

use crate::support::host::{WAIT_TIMEOUT, incidents, settings, wait_for};
use crate::support::kill::{Random, check_artifacts, kill_after};
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

#[test]
fn twenty_kills_leave_no_partial_file() {
    let home = tempfile::tempdir().unwrap();
    let captures = home.path().join("captures");
    let mut random = Random(20261123);
    let mut open_before: Vec<IncidentId> = Vec::new();
    let mut interrupted = 0;
    for round in 0..20 {
        let seen = incidents(&captures).len();
        let child = spawn(&captures);
        wait_for("the child to make an incident", || {
            (incidents(&captures).len() > seen).then_some(())
        });
        kill_after(child, Duration::from_millis(random.below(700)));

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
    check_artifacts(dir, manifest);
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
