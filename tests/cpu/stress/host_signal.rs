//! A host that profiles itself: an interval timer and a SIGPROF handler, active from before the
//! engine starts until after it has stopped.

use std::hint::black_box;
use std::ptr;
use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use super::watch::print_line;
use crate::support::drive::Engine;

/// Number of signals the host has handled.
static HANDLED_SIGNALS: AtomicU64 = AtomicU64::new(0);

/// Number of further signals required in each phase.
const SIGNALS_PER_PHASE: u64 = 40;

extern "C" fn handler(_: libc::c_int) {
    HANDLED_SIGNALS.fetch_add(1, Relaxed);
}

/// Installs the handler and the timer.
fn install_profiling_timer() {
    let on_signal: extern "C" fn(libc::c_int) = handler;
    let every = libc::timeval { tv_sec: 0, tv_usec: 5000 };
    let timer = libc::itimerval { it_interval: every, it_value: every };
    // SAFETY: the handler only adds to an atomic, and the timer is set from a local variable.
    unsafe {
        let mut action = std::mem::zeroed::<libc::sigaction>();
        action.sa_sigaction = on_signal as libc::sighandler_t;
        action.sa_flags = libc::SA_RESTART;
        libc::sigaction(libc::SIGPROF, &raw const action, ptr::null_mut());
        libc::setitimer(libc::ITIMER_PROF, &raw const timer, ptr::null_mut());
    }
}

/// Burns CPU until the required signals have arrived; the watching process ends this one if none
/// do.
fn wait_for_signals(phase: &str) {
    let before = HANDLED_SIGNALS.load(Relaxed);
    while HANDLED_SIGNALS.load(Relaxed) < before + SIGNALS_PER_PHASE {
        (0..1 << 16).for_each(|turn| {
            black_box(turn);
        });
    }
    print_line(&format!("told {phase}: {SIGNALS_PER_PHASE} signals handled"));
}

pub(crate) fn run_host(engine: Engine) {
    install_profiling_timer();
    wait_for_signals("before");
    match engine.start(99) {
        Ok(running) => {
            wait_for_signals("during");
            match running.stop() {
                Ok(_) => print_line("told the engine ran beside it"),
                Err(why) => print_line(&format!("told the engine failed: {why}")),
            }
        }
        Err(why) => print_line(&format!("told the engine kept away: {why}")),
    }
    wait_for_signals("after");
    print_line("done");
}
