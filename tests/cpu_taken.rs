//! A host that replaces the profiler's SIGPROF handler during a profile. The test needs a separate
//! process because the handler stays installed.
#![cfg(all(feature = "cpu", target_os = "linux", target_env = "gnu"))]
#![allow(unsafe_code, reason = "a handler cannot be installed without")]

mod cpu_support;

use std::ffi::c_int;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use cpu_support::{burn, start, stop};
use marple::cpu::Error;
use marple::model::CpuEngine;

static SEEN: AtomicU64 = AtomicU64::new(0);

extern "C" fn hosts(_: c_int) {
    SEEN.fetch_add(1, Ordering::Relaxed);
}

#[test]
fn a_host_that_takes_the_signal_gets_it_and_the_profile_says_so() {
    let session = start(CpuEngine::Timer, 1000).unwrap();
    burn(Duration::from_millis(200));
    // SAFETY: `hosts` is a plain handler, which only adds to an atomic.
    let ours = unsafe { libc::signal(libc::SIGPROF, hosts as *const () as usize) };
    assert!(ours > 1, "there was no handler");
    // The first wait is for the profiler to detect the handler. The second must add no signal.
    burn(Duration::from_millis(600));
    let seen = SEEN.load(Ordering::Relaxed);
    burn(Duration::from_millis(300));
    assert_eq!(SEEN.load(Ordering::Relaxed), seen, "the timers run on into the host's handler");
    let profile = stop(session);
    let said = profile.losses.iter().any(|loss| loss.cause.contains("SIGPROF handler"));
    assert!(said, "{:?}", profile.losses);
    assert!(matches!(start(CpuEngine::Timer, 99), Err(Error::Refused { engine: "timer", .. })));
    // SAFETY: restores the previous handler, and no pointer is dereferenced.
    unsafe { libc::signal(libc::SIGPROF, ours) };
    let session = start(CpuEngine::Timer, 1000).unwrap();
    // SAFETY: `raise` takes no pointer.
    unsafe { libc::raise(libc::SIGPROF) };
    assert!(stop(session).losses.iter().all(|loss| !loss.cause.contains("SIGPROF handler")));
}
