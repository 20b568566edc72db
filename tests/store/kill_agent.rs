//! Kills an agent two hundred times while it captures, custom collectors write, and incidents are
//! removed to free space. The files on disk are complete and within the limits afterwards.

use std::fs;
use std::io::Write;
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;

use marple::config::StoreSettings;
use marple::internals::model::IncidentState;
use marple::{Builder, CaptureKind, Settings};

use crate::support::host::{WAIT_TIMEOUT, incidents, settings, wait_for};
use crate::support::kill::{Random, check_artifacts, kill_after};
use crate::support::rerun::{self, test_path};

/// Directory in which the child writes; set only for the child.
const CAPTURES_ENV: &str = "MARPLE_TEST_KILL_AGENT";
const KILLS: usize = 200;
const MAX_INCIDENTS: usize = 4;

/// Makes one short capture after another, each of which makes the store remove an incident.
#[test]
fn capture_loop_process() {
    let Some(dir) = std::env::var_os(CAPTURES_ENV) else { return };
    let store = StoreSettings { max_incidents: MAX_INCIDENTS, ..StoreSettings::default() };
    let settings = Settings { dir: dir.into(), store, rules: Vec::new(), ..settings() };
    let agent = Builder::from_settings(settings).start().unwrap();
    let handle = agent.handle();
    let queries = |out: &mut marple::internals::agent::CollectorOutput| {
        // Written in pieces, so that a kill can come between them.
        (0..50).try_for_each(|_| out.write_all(&[b'q'; 1000])).map_err(Into::into)
    };
    handle.add_collector("queries.txt", Default::default(), queries).unwrap();
    loop {
        let _ = handle.capture([CaptureKind::Trace], Duration::from_millis(1)).wait(WAIT_TIMEOUT);
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

/// Returns the names of the incident directories.
fn incident_names(captures: &Path) -> Vec<String> {
    let entries = fs::read_dir(captures).into_iter().flatten();
    let names = entries.map(|entry| entry.unwrap().file_name().to_string_lossy().into_owned());
    names.filter(|name| name.starts_with("20")).collect()
}

#[test]
fn two_hundred_kills_leave_complete_files_within_limits() {
    let home = tempfile::tempdir().unwrap();
    let captures = home.path().join("captures");
    let (mut interrupted, mut swept, mut collected) = (0, 0, 0);
    let mut random = Random(20261123);
    for round in 0..KILLS {
        let mut before = incident_names(&captures);
        before.sort();
        let child = spawn(&captures);
        wait_for("the child to make an incident", || {
            let mut found = incident_names(&captures);
            found.sort();
            (found.last() != before.last()).then_some(())
        });
        kill_after(child, Duration::from_micros(random.below(40_000)));

        // Readers see complete manifests at any time: `incidents` fails on an incomplete one.
        let found = incidents(&captures);
        assert_eq!(
            found.len(),
            incident_names(&captures).len(),
            "round {round}: one without a manifest"
        );
        assert!(found.len() <= MAX_INCIDENTS + 1, "round {round}: {}", found.len());
        for (dir, manifest) in &found {
            check_artifacts(dir, manifest);
            for artifact in &manifest.artifacts {
                if artifact.kind == CaptureKind::Custom {
                    // A collector's file that the kill cut short never got its final name.
                    let size = artifact.bytes.get();
                    assert_eq!(size, 50_000, "round {round}: half a file of a collector");
                    collected += 1;
                }
            }
            interrupted += usize::from(manifest.state == IncidentState::Interrupted);
        }
        let gone = fs::read_dir(&captures).unwrap().filter(|entry| {
            let name = entry.as_ref().unwrap().file_name();
            name.to_string_lossy().starts_with(".gone-")
        });
        swept += gone.count();
    }
    println!(
        "{KILLS} kills: {interrupted} sightings of interrupted incidents, {swept} of removals cut short, \
         {collected} of collectors' files"
    );
    assert!(collected > 0, "no collector wrote: the test proves nothing");
    assert!(interrupted > 0, "no kill hit an open incident: the test proves nothing");
}
