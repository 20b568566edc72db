//! How long the signal handler of an engine takes.
//!
//! The main thread sends SIGPROF to the process, whose kernel hands it to the main thread before the call
//! returns, so that neither its tick nor a timer decides how often. The way into the handler and out of
//! it is taken off by the same with an empty handler. The call is the system's and not libc's, because
//! the `pprof` crate's blocklist throws samples in libc away before the walk.

// A handler cannot be installed without it.
#![allow(unsafe_code)]

use std::hint::black_box;

use rustix::process::{Signal, getpid, kill_process};
use rustix::time::ClockId;

use crate::burn::cpu_of;
use crate::drive::Engine;

const SIGNALS: u32 = 4000;

/// Rounds of signals; the quietest counts, for what disturbs only adds.
const ROUNDS: u32 = 9;

const DEPTH: u32 = 18;

extern "C" fn nothing(_: libc::c_int) {}

/// Raises the signals that deep in calls and returns the CPU microseconds of each.
#[inline(never)]
fn raise(depth: u32) -> f64 {
    if depth > 0 {
        return black_box(raise(black_box(depth - 1)));
    }
    let this = getpid();
    let start = cpu_of(ClockId::ThreadCPUTime);
    for _ in 0..SIGNALS {
        let _ = kill_process(this, Signal::PROF);
    }
    (cpu_of(ClockId::ThreadCPUTime) - start) * 1e6 / f64::from(SIGNALS)
}

fn quietest() -> f64 {
    (0..ROUNDS).map(|_| raise(DEPTH)).fold(f64::INFINITY, f64::min)
}

pub(crate) fn cell(engine: Engine) -> Result<(), String> {
    // Once a second of CPU time: no sample of its own disturbs.
    let running = engine.start(1)?;
    let with = quietest();
    drop(running);
    let handler: extern "C" fn(libc::c_int) = nothing;
    // SAFETY: a handler of the type `signal` wants, which does nothing.
    unsafe { libc::signal(libc::SIGPROF, handler as libc::sighandler_t) };
    println!("micros {}", with - quietest());
    Ok(())
}
