//! `Agent::shutdown`: what it writes, how long it and a drop within async code block, and the kinds
//! of the errors around it.

use std::time::Duration;

use marple::internals::model::{IncidentState, Outcome};
use marple::{Builder, CaptureKind, ErrorKind, Settings};
use tempfile::TempDir;

use crate::support::host::{self, WAIT_TIMEOUT, incidents, settings};
#[cfg(target_os = "linux")]
use crate::support::seccomp;

fn settings_in(dir: &TempDir) -> Settings {
    Settings { dir: dir.path().to_owned(), rules: Vec::new(), ..settings() }
}

#[test]
fn shutdown_writes_running_captures_and_closes_incident() {
    let _serial = host::serial_guard();
    let dir = TempDir::new().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    let handle = runtime.block_on(async {
        let agent = Builder::from_settings(settings_in(&dir)).start().unwrap();
        let handle = agent.handle();
        handle.start_capture(CaptureKind::Threads).await.unwrap();
        // The executor has one thread: the task runs only if the shutdown does not block it.
        let ticks = tokio::spawn(async {
            let mut ticks = 0;
            loop {
                tokio::time::sleep(Duration::from_millis(1)).await;
                ticks += 1;
                if ticks == 5 {
                    return ticks;
                }
            }
        });
        agent.shutdown().await.unwrap();
        assert_eq!(ticks.await.unwrap(), 5);
        handle
    });
    let [(_, manifest)] = &incidents(dir.path())[..] else { panic!("one incident") };
    assert_eq!(manifest.state, IncidentState::Closed);
    assert!(manifest.captures.iter().all(|capture| capture.outcome == Outcome::Done));
    assert!(!manifest.artifacts.is_empty());
    let error = handle.status().wait(WAIT_TIMEOUT).unwrap_err();
    assert!(error.is_stopped(), "{:?}: {error}", error.kind());
}

#[test]
fn drop_in_async_code_leaves_the_shutdown_to_the_agents_threads() {
    let _serial = host::serial_guard();
    let dir = TempDir::new().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let agent = Builder::from_settings(settings_in(&dir)).start().unwrap();
        agent.handle().start_capture(CaptureKind::Threads).await.unwrap();
        drop(agent);
    });
    host::wait_for("the incident to be closed", || {
        let incidents = incidents(dir.path());
        incidents.iter().any(|(_, it)| it.state == IncidentState::Closed).then_some(())
    });
}

#[cfg(target_os = "linux")]
#[test]
fn shutdown_without_a_thread_reports_if_it_is_complete() {
    let _serial = host::serial_guard();
    let dir = TempDir::new().unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let agent = Builder::from_settings(settings_in(&dir)).start().unwrap();
        agent.handle().start_capture(CaptureKind::Threads).await.unwrap();
        let (clone, clone3) = (libc::SYS_clone as u32, libc::SYS_clone3 as u32);
        seccomp::install(&mut [
            seccomp::load(seccomp::NUMBER_OFFSET),
            seccomp::require_equal(clone, 1),
            seccomp::fail(libc::EAGAIN),
            seccomp::require_equal(clone3, 1),
            seccomp::fail(libc::EAGAIN),
            seccomp::allow(),
        ]);
        // A slow machine may need more than the time for which the executor is blocked.
        if let Err(error) = agent.shutdown().await {
            assert!(error.is_timeout(), "{:?}: {error}", error.kind());
        }
    });
    host::wait_for("the incident to be closed", || {
        let incidents = incidents(dir.path());
        incidents.iter().any(|(_, it)| it.state == IncidentState::Closed).then_some(())
    });
}

#[test]
fn errors_tell_their_kind() {
    let _serial = host::serial_guard();
    let dir = TempDir::new().unwrap();
    let agent = Builder::from_settings(settings_in(&dir)).start().unwrap();
    let second = Builder::from_settings(settings_in(&dir)).start().map(drop).unwrap_err();
    assert!(second.is_already_running(), "{second}");
    let invalid = Settings { interval: Duration::ZERO, ..settings_in(&dir) };
    let invalid = Builder::from_settings(invalid).start().map(drop).unwrap_err();
    assert!(invalid.is_settings(), "{invalid}");
    let missing = Builder::from_file(dir.path().join("none.toml")).map(drop).unwrap_err();
    assert!(missing.is_settings(), "{missing}");
    let name = agent.handle().gauge("Not A Name").map(drop).unwrap_err();
    assert_eq!(name.kind(), ErrorKind::InvalidInput, "{name}");
    let handle = agent.handle();
    agent.shutdown_blocking(WAIT_TIMEOUT).unwrap();
    assert!(
        handle
            .capture(CaptureKind::Threads, Duration::from_secs(1))
            .wait(WAIT_TIMEOUT)
            .unwrap_err()
            .is_stopped()
    );
}
