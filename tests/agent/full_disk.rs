//! A full disk under the incident directory: captures fail with a reason, and work again once space
//! is free.

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use marple::config::{DiskReserve, StoreSettings};
use marple::internals::base::Bytes;
use marple::internals::model::{IncidentState, Outcome};
use marple::{Builder, CaptureKind, CaptureSet, Settings};

use crate::support::host::{WAIT_TIMEOUT, incidents, settings, wait_for};

/// A tmpfs of 1 MiB, mounted while this value lives.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn mount(mount_point: &Path) -> Option<Self> {
        fs::create_dir(mount_point).unwrap();
        let done = Command::new("mount")
            .args(["-t", "tmpfs", "-o", "size=1m,mode=0700", "marple-test"])
            .arg(mount_point)
            .output();
        done.is_ok_and(|output| output.status.success()).then(|| Self(mount_point.to_owned()))
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

const SHORT: Duration = Duration::from_millis(50);

#[test]
fn full_disk_is_reported_and_captures_resume_afterwards() {
    let home = tempfile::tempdir().unwrap();
    let Some(disk) = Tmpfs::mount(&home.path().join("disk")) else {
        assert!(std::env::var_os("CI").is_none(), "CI mounts file systems");
        eprintln!("skipped: mounting a tmpfs needs root");
        return;
    };
    let captures = disk.0.join("captures");
    let agent = Builder::from_settings(Settings {
        dir: captures.clone(),
        store: StoreSettings {
            min_free_space: DiskReserve::Bytes(Bytes(0)),
            ..StoreSettings::default()
        },
        ..settings()
    })
    .start()
    .unwrap();
    let handle = agent.handle();
    let status = || handle.status().wait(WAIT_TIMEOUT).unwrap();
    let at_rest = || wait_for("it to close", || status().incidents.is_empty().then_some(()));

    handle.capture([CaptureKind::Heap], SHORT).wait(WAIT_TIMEOUT).unwrap();
    at_rest();
    let complete = incidents(&captures);
    assert_eq!(complete[0].1.artifacts.len(), 2);

    // Fills the disk while an incident is open.
    let open = handle.start_capture(CaptureSet::all()).wait(WAIT_TIMEOUT).unwrap();
    wait_for("the captures to run", || {
        let all = CaptureSet::all().iter().count();
        incidents(&captures)
            .iter()
            .any(|(_, manifest)| manifest.captures.len() == all)
            .then_some(())
    });
    let filler = disk.0.join("filler");
    fill(&filler);
    handle.stop_capture().wait(WAIT_TIMEOUT).unwrap();
    let failed = wait_for("the failure to be told", || {
        let status = status();
        let is_reported = status.failures.iter().any(|loss| loss.cause == "artifact not written");
        is_reported.then_some(status)
    });
    let words = failed.last_failure.clone().unwrap();
    assert!(words.contains(captures.to_str().unwrap()), "the path is named: {words}");
    let ticks = failed.counters.ticks;
    wait_for("the next tick", || (status().counters.ticks > ticks).then_some(()));
    for (dir, manifest) in &complete {
        for artifact in &manifest.artifacts {
            let file_bytes = fs::metadata(dir.join(&artifact.file)).unwrap().len();
            assert_eq!(file_bytes, artifact.bytes.get(), "what was written is still there");
        }
    }
    // The directory of a further incident cannot be created, and the caller gets the error.
    let error = handle.capture([CaptureKind::Heap], SHORT).wait(WAIT_TIMEOUT);
    let full = incidents(&captures).len();

    // With space again, the open incident is closed with its outcomes, and the next one is
    // complete.
    fs::remove_file(&filler).unwrap();
    at_rest();
    let found = incidents(&captures);
    let (_, late) = found.iter().find(|(_, m)| Some(m.id) == open.incident).unwrap();
    assert_eq!(late.state, IncidentState::Closed);
    assert!(
        late.captures.iter().any(|c| c.outcome == Outcome::Failed && c.error.is_some()),
        "{:?}",
        late.captures
    );
    if let Err(error) = error {
        assert!(error.to_string().contains("no incident directory"), "{error}");
        assert_eq!(full, 2, "no half incident is left");
    }
    let next = handle.capture([CaptureKind::Heap], SHORT).wait(WAIT_TIMEOUT).unwrap();
    at_rest();
    let found = incidents(&captures);
    let (_, next) = found.iter().find(|(_, manifest)| manifest.id == next.incident).unwrap();
    assert_eq!(next.artifacts.len(), 2);
}

/// Fills the file system to the last byte.
fn fill(path: &Path) {
    let mut file = File::create(path).unwrap();
    let mut chunk = vec![0; 64 << 10];
    while !chunk.is_empty() {
        if file.write_all(&chunk).is_err() {
            chunk.truncate(chunk.len() / 2);
        }
    }
}
