//! Manifests and settings for a store, and small file systems to put it on.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use jiff::Timestamp;
use marple::config::{DiskReserve, StoreSettings};
use marple::internals::base::{Bytes, IncidentId};
use marple::internals::model::{
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
        findings: Vec::new(),
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
