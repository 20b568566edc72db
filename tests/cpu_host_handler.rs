//! A host that handles SIGPROF itself. Its handler stays for good, so this is a process of its own.
#![cfg(all(feature = "cpu", target_os = "linux", target_env = "gnu"))]

use marple::base::{Clock, Hertz, SystemClock};
use marple::cpu::{Error, Session};
use tokio::signal::unix::{SignalKind, signal};

#[tokio::test]
async fn a_host_that_handles_sigprof_keeps_its_handler() {
    let mut hosts = signal(SignalKind::from_raw(libc::SIGPROF)).unwrap();
    let refused = Session::start(Hertz(99), SystemClock.anchor());
    assert!(matches!(refused, Err(Error::SignalTaken)), "{:?}", refused.err());
    let me = rustix::process::getpid();
    rustix::process::kill_process(me, rustix::process::Signal::PROF).unwrap();
    hosts.recv().await.expect("the host's handler is gone");
}
