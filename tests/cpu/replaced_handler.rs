//! A host that replaces the profiler's SIGPROF handler during a profile. The test needs a process
//! of its own (nextest), because the handler stays installed.
#![allow(unsafe_code, reason = "a handler cannot be installed without")]

use std::ffi::c_int;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use marple::internals::cpu::error::Error;
use marple::internals::model::CpuEngine;

use crate::support::cpu_load::{burn, start, stop};

static HANDLED_SIGNALS: AtomicU64 = AtomicU64::new(0);

extern "C" fn host_handler(_: c_int) {
    HANDLED_SIGNALS.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn handler_replaced_by_host_is_kept_and_reported_in_profile() {
    let session = start(CpuEngine::Timer, 1000).unwrap();
    burn(Duration::from_millis(200));
    // SAFETY: `host_handler` is a plain handler, which only adds to an atomic.
    let ours = unsafe { libc::signal(libc::SIGPROF, host_handler as *const () as usize) };
    assert!(ours > 1, "there was no handler");
    // The first wait is for the profiler to detect the handler. The second must add no signal.
    burn(Duration::from_millis(600));
    let seen = HANDLED_SIGNALS.load(Ordering::Relaxed);
    burn(Duration::from_millis(300));
    assert_eq!(
        HANDLED_SIGNALS.load(Ordering::Relaxed),
        seen,
        "the timers run on into the host's handler"
    );
    let profile = stop(session);
    let is_reported = profile.losses.iter().any(|loss| loss.cause.contains("SIGPROF handler"));
    assert!(is_reported, "{:?}", profile.losses);
    assert!(matches!(
        start(CpuEngine::Timer, 99),
        Err(Error::EngineUnavailable { engine: "timer", .. })
    ));
    // SAFETY: restores the previous handler, and no pointer is dereferenced.
    unsafe { libc::signal(libc::SIGPROF, ours) };
    let session = start(CpuEngine::Timer, 1000).unwrap();
    // SAFETY: `raise` takes no pointer.
    unsafe { libc::raise(libc::SIGPROF) };
    assert!(stop(session).losses.iter().all(|loss| !loss.cause.contains("SIGPROF handler")));
}
