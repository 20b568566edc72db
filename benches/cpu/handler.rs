//! How long the signal handler of an engine takes.
//!
//! The main thread sends SIGPROF to the process, whose kernel hands it to the main thread before
//! the call returns, so that neither its tick nor a timer decides how often. The way into the
//! handler and out of it is taken off by the same with an empty handler. The call is the system's
//! and not libc's, because the `pprof` crate's blocklist throws samples in libc away before the
//! walk.

// A handler cannot be installed without it.
#![allow(unsafe_code)]

use std::hint::black_box;
use std::time::{Duration, Instant};

use marple::os::proc::stack_bounds::StackBounds;
use marple::os::signal::Target;
use rustix::process::{Signal, getpid, kill_process};
use rustix::thread::gettid;
use rustix::time::ClockId;

use crate::burn::cpu_of;
use crate::drive::Engine;

const SIGNALS: u32 = 4000;

/// Rounds of signals; the quietest counts, for what disturbs only adds.
const ROUNDS: u32 = 9;

const DEPTH: u32 = 18;

/// Half of the fewest slots there are, and how often.
const BATCH: u32 = 32;
const BATCHES: u32 = 4;

/// A place in the table of stacks that no thread of this process has.
const ENTRY: u16 = 60_000;

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

pub(crate) fn cell(engine: Engine) -> Result<(), String> {
    // Once a second of CPU time: no sample of its own disturbs.
    let running = engine.start(1)?;
    let micros = match engine {
        // Nothing to take time: no handler.
        Engine::Perf | Engine::Control if !has_handler() => 0.0,
        Engine::Perf | Engine::Control => return Err("there is a handler for SIGPROF".to_owned()),
        Engine::Timer => of_timer()?,
        Engine::Wall => return Err("its handler is SIGURG's, for threads it asks".to_owned()),
        Engine::Pprof | Engine::Peer => {
            let with = quietest(|| raise(DEPTH));
            drop(running);
            install_nothing();
            with - quietest(|| raise(DEPTH))
        }
    };
    println!("micros {micros}");
    Ok(())
}

fn quietest(round: impl Fn() -> f64) -> f64 {
    (0..ROUNDS).map(|_| round()).fold(f64::INFINITY, f64::min)
}

fn install_nothing() {
    let handler: extern "C" fn(libc::c_int) = nothing;
    // SAFETY: a handler of the type `signal` wants, which does nothing.
    unsafe { libc::signal(libc::SIGPROF, handler as libc::sighandler_t) };
}

fn has_handler() -> bool {
    marple::os::sigprof::is_handled().unwrap_or(true)
}

/// The timer engine's handler takes signals with its own mark alone, so they are sent as it sends
/// them; few at a time, and then none for a while, for it copies into slots that somebody must
/// empty.
fn of_timer() -> Result<f64, String> {
    let words = |error: std::io::Error| error.to_string();
    let target = marple::os::signal::install(libc::SIGPROF, 1, 1).map_err(words)?;
    let here = gettid().as_raw_nonzero().get() as u32;
    let stack = StackBounds::open().map_err(words)?.of(here).ok_or("no stack is known")?;
    target.set_stack(ENTRY, stack);
    target.set_thread(ENTRY, here);
    let lost = target.slots().lost();
    let with = quietest(|| send(DEPTH, target, here));
    if target.slots().lost() != lost {
        return Err("signals found no room, so it was not a copy that was measured".to_owned());
    }
    install_nothing();
    Ok(with - quietest(|| send(DEPTH, target, here)))
}

/// Runs for so long, as a thread does whose CPU time is sampled: on a core that comes from idleness
/// all takes longer, the empty handler as well.
fn burn(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}

/// As [`raise`].
#[inline(never)]
fn send(depth: u32, target: &Target, here: u32) -> f64 {
    if depth > 0 {
        return black_box(send(black_box(depth - 1), target, here));
    }
    let mut spent = 0.0;
    for _ in 0..BATCHES {
        let start = cpu_of(ClockId::ThreadCPUTime);
        for _ in 0..BATCH {
            let _ = target.send(here, ENTRY);
        }
        spent += cpu_of(ClockId::ThreadCPUTime) - start;
        burn(Duration::from_millis(250));
    }
    spent * 1e6 / f64::from(BATCHES * BATCH)
}
