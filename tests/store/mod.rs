//! Shared by the tests of the store: manifests, settings, and running a test again under other
//! conditions.

#![allow(dead_code, reason = "each test binary uses its own part")]

use std::fs::Permissions;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use jiff::Timestamp;
use marple::base::{Bytes, IncidentId};
use marple::config::{DiskReserve, StoreSettings};
use marple::model::{
    CaptureKind, CaptureRecord, IncidentState, Limits, Losses, Manifest, Outcome, ProcessInfo,
    Versions,
};

/// Returns the manifest of an incident that opens at this moment, with a capture running.
pub(crate) fn manifest() -> Manifest {
    let opened = Timestamp::now();
    Manifest {
        schema: 1,
        id: IncidentId::new(opened),
        service: "orders".into(),
        instance: "eu-1".into(),
        state: IncidentState::Open,
        opened,
        closed: None,
        reasons: Vec::new(),
        limits: Limits::default(),
        process: ProcessInfo {
            pid: std::process::id(),
            exe: "/bin/orders".into(),
            build_id: String::new(),
            agent_started: opened,
        },
        versions: Versions { marple: "0".into(), kernel: "0".into(), arch: "any".into() },
        captures: vec![CaptureRecord {
            kind: CaptureKind::Heap,
            engine: "test".into(),
            started: opened,
            stopped: None,
            outcome: Outcome::Running,
            error: None,
            losses: Losses::default(),
        }],
        artifacts: Vec::new(),
        removed: Vec::new(),
        vitals: Vec::new(),
        losses: Losses::default(),
    }
}

/// Returns limits that no test reaches.
pub(crate) fn generous_limits() -> StoreSettings {
    StoreSettings {
        max_bytes: Bytes::gib(1),
        max_incidents: 100,
        max_age: Duration::from_secs(86_400),
        min_free_space: DiskReserve::Bytes(Bytes(0)),
        ..StoreSettings::default()
    }
}

const RERUN_ENV: &str = "STORE_TEST_AGAIN";

/// Runs `body` in a copy of this test binary started by `wrapper`, a command that takes a program
/// and its arguments, with `env` set. `test` is the name of the calling test. Returns `false` if
/// the wrapper is not available on this machine; this fails under `CI=true` and prints one line
/// elsewhere.
pub(crate) fn rerun_under(test: &str, wrapper: &[&str], body: impl FnOnce()) -> bool {
    if std::env::var_os(RERUN_ENV).is_some() {
        body();
        return true;
    }
    let (program, arguments) = wrapper.split_first().unwrap();
    let possible = Command::new(program)
        .args(arguments)
        .arg("true")
        .output()
        .is_ok_and(|result| result.status.success());
    if !possible {
        assert!(
            std::env::var_os("CI").is_none_or(|ci| ci != "true"),
            "`{program}` must work in CI"
        );
        eprintln!("{test}: not run, `{}` does not work here", wrapper.join(" "));
        return false;
    }
    // Copies the binary to a place that any user can read.
    let temp = tempfile::tempdir().unwrap();
    std::fs::set_permissions(temp.path(), Permissions::from_mode(0o755)).unwrap();
    let copy = temp.path().join("again");
    std::fs::copy(std::env::current_exe().unwrap(), &copy).unwrap();
    let output = Command::new(program)
        .args(arguments)
        .arg(copy)
        .args(["--exact", test, "--nocapture"])
        .env(RERUN_ENV, "1")
        .output()
        .unwrap();
    let (out, err) =
        (String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && out.contains("1 passed"), "{out}\n{err}");
    true
}

/// Returns the command that creates a private mount namespace.
pub(crate) fn private_mounts_command() -> &'static [&'static str] {
    if rustix::process::geteuid().is_root() {
        &["unshare", "-m"]
    } else {
        &["unshare", "-Ur", "-m"]
    }
}

/// Mounts a tmpfs of 1 MiB at `at`; only for a private mount namespace.
pub(crate) fn mount_small_tmpfs(mount_point: &Path) {
    mount(&["-t", "tmpfs", "-o", "size=1m,mode=0700", "tmpfs", mount_point.to_str().unwrap()]);
}

pub(crate) fn mount(arguments: &[&str]) {
    let status = Command::new("mount").args(arguments).status().unwrap();
    assert!(status.success(), "mount {arguments:?}");
}
