//! Tests that the incident directory is created again for the next incident if it is removed while
//! the agent runs.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::time::Duration;

use marple::internals::model::IncidentState;
use marple::{CaptureKind, Settings};

use crate::support::host::{Host, WAIT_TIMEOUT, gauge_rule, settings, wait_for};

const SHORT: Duration = Duration::from_millis(50);

/// Removes the incident directory, retrying while files are written into it.
fn remove(host: &Host) {
    wait_for("the directory to go", || fs::remove_dir_all(host.captures()).ok());
}

#[test]
fn removed_directory_is_recreated_for_next_incident() {
    let rule = gauge_rule("queue", [CaptureKind::Trace], SHORT);
    let host = Host::start(Settings { rules: vec![rule], ..settings() });
    let capture = || host.handle().capture([CaptureKind::Trace], SHORT).wait(WAIT_TIMEOUT).unwrap();
    capture();
    host.wait_for_closed(1);
    remove(&host);
    let dir = capture().dir;
    let (_, manifest) = host.wait_for_closed(1).remove(0);
    assert!(dir.starts_with(host.captures()) && dir.is_dir());
    assert_eq!((manifest.state, manifest.artifacts.len()), (IncidentState::Closed, 1));
    assert_eq!(fs::metadata(host.captures()).unwrap().permissions().mode() & 0o777, 0o700);

    // Also removed during an open incident: the incident is lost, and ends when its rule clears.
    let gauge = host.handle().gauge("queue").unwrap();
    gauge.set(11.0);
    wait_for("the second", || (host.incidents().len() == 2).then_some(()));
    remove(&host);
    gauge.set(0.0);
    wait_for("it to be over", || {
        host.handle().status().wait(WAIT_TIMEOUT).unwrap().incidents.is_empty().then_some(())
    });
    capture();
    assert_eq!(host.wait_for_closed(1)[0].1.artifacts.len(), 1);
    let failures = host.handle().status().wait(WAIT_TIMEOUT).unwrap().failures;
    assert!(!failures.is_empty(), "what was lost is counted");
}
