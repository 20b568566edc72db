//! Tests of a process that forks: its child writes nothing into the incidents and does not release
//! the lock.

#![allow(unsafe_code, reason = "forking cannot be done without")]

use std::io::Write;
use std::path::Path;
use std::process::Command;
use std::sync::Arc;

use jiff::Timestamp;
use marple::config::StoreSettings;
use marple::internals::base::SystemClock;
use marple::internals::model::CaptureKind;
use marple::internals::store::{Error, Store};

use crate::support::host::{Host, WAIT_TIMEOUT, settings};
use crate::support::store;

/// Longer than anything but a hang.
const DEADLINE_MS: i32 = 60_000;

/// Runs `child` in a fork of this process. Returns `true` if it returned there with `true`.
fn run_in_fork(child: impl FnOnce() -> bool) -> bool {
    // SAFETY: the child runs `child` and leaves by `_exit`, so it never returns into the test
    // harness. The C library keeps its allocator usable in the child of a multi-threaded process.
    let pid = unsafe { libc::fork() };
    assert!(pid >= 0, "fork: {}", std::io::Error::last_os_error());
    if pid == 0 {
        let well = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child)).unwrap_or(false);
        // SAFETY: ends this process, which is the child.
        unsafe { libc::_exit(i32::from(!well)) };
    }
    // SAFETY: plain system calls on our own child and descriptor; `status` and `poll` are local
    // variables.
    unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, pid, 0) as libc::c_int;
        assert!(pidfd >= 0, "pidfd_open: {}", std::io::Error::last_os_error());
        let mut poll = libc::pollfd { fd: pidfd, events: libc::POLLIN, revents: 0 };
        let ended = libc::poll(&mut poll, 1, DEADLINE_MS) == 1;
        if !ended {
            libc::kill(pid, libc::SIGKILL);
        }
        let mut status = 0;
        libc::waitpid(pid, &mut status, 0);
        libc::close(pidfd);
        ended && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
    }
}

fn open(dir: &Path) -> Result<Store, Error> {
    Store::open(dir, store::generous_limits(), Arc::new(SystemClock)).map(|(store, _)| store)
}

fn is_busy(dir: &Path) -> bool {
    matches!(open(dir), Err(Error::Busy { pid: Some(pid), .. }) if pid == std::process::id())
}

fn is_forked_error<T>(done: Result<T, Error>) -> bool {
    matches!(done, Err(Error::Forked { opener, .. }) if opener != std::process::id())
}

#[test]
fn forked_child_changes_nothing_and_its_exit_keeps_lock() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("captures");
    let store = open(&dir).unwrap();
    let mut incident = store.create_incident("memory", store::manifest()).unwrap();
    let mut draft = incident.draft(CaptureKind::Heap, Timestamp::now()).unwrap();
    draft.write_all(b"the parent's").unwrap();
    draft.flush().unwrap();
    // The child gets a copy of all of these and drops it.
    let copies = std::cell::Cell::new(Some((store, incident, draft)));
    let well = run_in_fork(|| {
        let Some((store, mut incident, mut draft)) = copies.take() else { return false };
        let written = draft.write_all(b"the child's").and_then(|()| draft.flush());
        let all = [
            written.is_err(),
            is_forked_error(incident.update(|manifest| manifest.service = "child".into())),
            is_forked_error(incident.draft(CaptureKind::Cpu, Timestamp::now())),
            is_forked_error(store.create_incident("cpu", store::manifest())),
            is_forked_error(store.save_state(&1)),
        ];
        store.set_settings(StoreSettings { max_incidents: 0, ..store::generous_limits() });
        drop((draft, incident));
        let kept = store.enforce_limits().evicted.is_empty();
        drop(store);
        kept && all.iter().all(|refused| *refused)
    });
    assert!(well, "the child could change something, or hung");
    let Some((store, restored, draft)) = copies.take() else { panic!("the parent has its own") };
    incident = restored;
    assert!(is_busy(&dir), "the child's end released the lock");
    let artifact = draft.commit().unwrap();
    assert_eq!(std::fs::read(incident.path().join(&artifact.file)).unwrap(), b"the parent's");
    incident.update(|manifest| manifest.artifacts.push(artifact)).unwrap();
    let manifest = store.find(incident.id()).unwrap().manifest.unwrap();
    assert_eq!((manifest.service.as_str(), manifest.artifacts.len()), ("orders", 1));
}

#[test]
fn exec_child_does_not_inherit_lock() {
    let temp = tempfile::tempdir().unwrap();
    let dir = temp.path().join("captures");
    let store = open(&dir).unwrap();
    let mut child = Command::new("sleep").arg("600").spawn().unwrap();
    let fd_entries = std::fs::read_dir(format!("/proc/{}/fd", child.id())).unwrap();
    let fd_targets = fd_entries.filter_map(|fd| std::fs::read_link(fd.ok()?.path()).ok());
    assert_eq!(
        fd_targets.filter(|path| path.starts_with(&dir)).count(),
        0,
        "it has descriptors of ours"
    );
    drop(store);
    assert!(open(&dir).is_ok());
    child.kill().unwrap();
    child.wait().unwrap();
}

#[test]
fn forked_child_of_agent_process_reports_no_agent() {
    let mut host = Host::start(settings());
    let handle = host.handle();
    let agent = std::cell::Cell::new(host.agent.take());
    let well = run_in_fork(|| {
        let is_reported = handle
            .status()
            .wait(WAIT_TIMEOUT)
            .is_err_and(|error| error.to_string().contains("fork"));
        drop(agent.take());
        is_reported
    });
    assert!(well, "the child was not told, or hung");
    host.agent = agent.take();
    assert!(is_busy(&host.captures()), "the child's end released the lock");
    handle.status().wait(WAIT_TIMEOUT).unwrap();
    handle
        .capture([CaptureKind::Threads], std::time::Duration::from_millis(1))
        .wait(WAIT_TIMEOUT)
        .unwrap();
    host.wait_for_closed(1);
}
