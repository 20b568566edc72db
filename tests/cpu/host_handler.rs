//! A host that handles SIGPROF itself. The test needs a process of its own (nextest),
//! because tokio's handler stays installed.

use std::time::Duration;

use marple::internals::cpu::error::Error;
use marple::internals::model::CpuEngine;
use tokio::signal::unix::{SignalKind, signal};

use crate::support::cpu_load::{burn, start, stop};

#[tokio::test]
async fn host_sigprof_handler_is_kept() {
    let mut hosts = signal(SignalKind::from_raw(libc::SIGPROF)).unwrap();
    let send = || {
        let me = rustix::process::getpid();
        rustix::process::kill_process(me, rustix::process::Signal::PROF).unwrap();
    };
    let refused = start(CpuEngine::Pprof, 99);
    assert!(matches!(refused, Err(Error::SigprofInUse)), "{:?}", refused.err());
    send();
    hosts.recv().await.expect("the host's handler is gone");

    // This engine's handler calls the host's.
    let session = start(CpuEngine::Timer, 1000).unwrap();
    send();
    hosts.recv().await.expect("the host's handler is gone");
    burn(Duration::from_millis(100));
    assert!(stop(session).total("samples").unwrap() > 0);
    send();
    hosts.recv().await.expect("the host's handler is gone");
}
