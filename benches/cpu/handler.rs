//! Cost of an engine's signal handler.
//!
//! The main thread sends SIGPROF to its own process. The kernel delivers it to the main thread
//! before the call returns, so the number of signals depends on neither a tick nor a timer. The
//! same loop with an empty handler gives the cost of signal delivery, which is subtracted. The loop
//! makes raw system calls, because the `pprof` crate's blocklist drops samples inside libc before
//! it unwinds.

#![allow(unsafe_code, reason = "a handler cannot be installed without")]

use std::hint::black_box;
use std::time::{Duration, Instant};

use marple::internals::os::proc::stack_bounds::StackBounds;
use marple::internals::os::signal::SignalCapture;
use rustix::process::{Signal, getpid, kill_process};
use rustix::thread::gettid;
use rustix::time::ClockId;

use crate::burn::cpu_seconds;
use crate::drive::Engine;

const SIGNALS: u32 = 4000;

/// Rounds of signals. The fastest counts, because interference only adds time.
const ROUNDS: u32 = 9;

const DEPTH: u32 = 18;

/// Half of the smallest number of slots, and the number of such batches.
const BATCH: u32 = 32;
const BATCHES: u32 = 4;

/// An index in the table of stacks that no thread of this process uses.
const UNUSED_STACK_ID: u16 = 60_000;

extern "C" fn empty_handler(_: libc::c_int) {}

/// Raises the signals `depth` calls deep and returns CPU microseconds per signal.
#[inline(never)]
fn time_raised_signals(depth: u32) -> f64 {
    if depth > 0 {
        return black_box(time_raised_signals(black_box(depth - 1)));
    }
    let own_pid = getpid();
    let start = cpu_seconds(ClockId::ThreadCPUTime);
    for _ in 0..SIGNALS {
        let _ = kill_process(own_pid, Signal::PROF);
    }
    (cpu_seconds(ClockId::ThreadCPUTime) - start) * 1e6 / f64::from(SIGNALS)
}

pub(crate) fn cell(engine: Engine) -> Result<(), String> {
    // One sample per second of CPU time, so that the engine's own samples do not interfere.
    let running = engine.start(1)?;
    let micros = match engine {
        // Without a handler there is nothing to measure.
        Engine::Perf | Engine::Control if !has_handler() => 0.0,
        Engine::Perf | Engine::Control => return Err("there is a handler for SIGPROF".to_owned()),
        Engine::Timer => measure_timer_handler()?,
        Engine::Wall => return Err("its handler is for SIGURG, not SIGPROF".to_owned()),
        Engine::Pprof | Engine::Peer => {
            let with = fastest(|| time_raised_signals(DEPTH));
            drop(running);
            install_empty_handler();
            with - fastest(|| time_raised_signals(DEPTH))
        }
    };
    println!("micros {micros}");
    Ok(())
}

fn fastest(round: impl Fn() -> f64) -> f64 {
    (0..ROUNDS).map(|_| round()).fold(f64::INFINITY, f64::min)
}

fn install_empty_handler() {
    let handler: extern "C" fn(libc::c_int) = empty_handler;
    // SAFETY: a handler of the type `signal` expects, which does nothing.
    unsafe { libc::signal(libc::SIGPROF, handler as libc::sighandler_t) };
}

fn has_handler() -> bool {
    marple::internals::os::sigprof::is_sigprof_handled().unwrap_or(true)
}

/// The handler of the timer engine accepts only signals with the engine's own tag, so they are
/// sent through the engine. It copies into slots that a thread must empty, so signals come in small
/// batches with a pause after each.
fn measure_timer_handler() -> Result<f64, String> {
    let to_text = |error: std::io::Error| error.to_string();
    let target = marple::internals::os::signal::install(libc::SIGPROF, 1, 1).map_err(to_text)?;
    let tid = gettid().as_raw_nonzero().get() as u32;
    let stack = StackBounds::open()
        .map_err(to_text)?
        .for_thread(tid)
        .ok_or("the stack of this thread is unknown")?;
    target.set_stack(UNUSED_STACK_ID, stack);
    target.set_thread(UNUSED_STACK_ID, tid);
    let lost = target.slots().lost();
    let with = fastest(|| time_sent_signals(DEPTH, target, tid));
    if target.slots().lost() != lost {
        return Err("signals found no free slot, so the copy was not measured".to_owned());
    }
    install_empty_handler();
    Ok(with - fastest(|| time_sent_signals(DEPTH, target, tid)))
}

/// Spins for `time`, like a thread whose CPU time is sampled. On a core that leaves an idle state
/// everything takes longer, including the empty handler.
fn burn(time: Duration) {
    let end = Instant::now() + time;
    while Instant::now() < end {
        std::hint::spin_loop();
    }
}

/// Sends the signals like [`time_raised_signals`], through the engine.
#[inline(never)]
fn time_sent_signals(depth: u32, target: &SignalCapture, thread_index: u32) -> f64 {
    if depth > 0 {
        return black_box(time_sent_signals(black_box(depth - 1), target, thread_index));
    }
    let mut cpu_time = 0.0;
    for _ in 0..BATCHES {
        let start = cpu_seconds(ClockId::ThreadCPUTime);
        for _ in 0..BATCH {
            let _ = target.send(thread_index, UNUSED_STACK_ID);
        }
        cpu_time += cpu_seconds(ClockId::ThreadCPUTime) - start;
        burn(Duration::from_millis(250));
    }
    cpu_time * 1e6 / f64::from(BATCHES * BATCH)
}
