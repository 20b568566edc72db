//! A forked child drops, stops and queries its parent's recorders, and records itself.
#![allow(unsafe_code, reason = "forking cannot be done without")]

use std::time::Duration;

use marple::internals::base::{Clock, Hertz, SystemClock};
use marple::internals::cpu::error::Error;
use marple::internals::cpu::options::Options;
use marple::internals::cpu::{CpuSession, Lookback};
use marple::internals::model::{CpuEngine, CpuMode};

use crate::support::cpu_load::{burn, engines, serial_guard, stop};

/// Runs `child` in a forked process. Returns its status as from `waitpid`, or -1 if it hung.
fn run_in_fork(child: impl FnOnce() -> bool) -> i32 {
    // SAFETY: plain system calls on the child and on a descriptor opened here. glibc allows a child
    // to allocate. The child exits without cleaning up, and a panic ends it with another status.
    unsafe {
        match libc::fork() {
            0 => {
                let went_well = std::panic::catch_unwind(std::panic::AssertUnwindSafe(child));
                libc::_exit(if went_well.unwrap_or(false) { 0 } else { 7 })
            }
            child => {
                assert!(child > 0, "fork: {}", std::io::Error::last_os_error());
                let pidfd = libc::syscall(libc::SYS_pidfd_open, child, 0) as libc::c_int;
                let mut poll = libc::pollfd { fd: pidfd, events: libc::POLLIN, revents: 0 };
                // A signal of the session interrupts the wait.
                let ended = loop {
                    match libc::poll(&mut poll, 1, 60_000) {
                        -1 if *libc::__errno_location() == libc::EINTR => {}
                        ready => break ready == 1,
                    }
                };
                if !ended {
                    libc::kill(child, libc::SIGKILL);
                }
                let mut status = 0;
                libc::waitpid(child, &mut status, 0);
                libc::close(pidfd);
                if ended { status } else { -1 }
            }
        }
    }
}

fn options(engine: CpuEngine, mode: CpuMode) -> Options {
    let (lookback_frequency, frequency) = (Hertz(19), Hertz(499));
    Options { engine, mode, lookback_frequency, frequency, ..Options::default() }
}

#[test]
fn forked_child_does_not_affect_parent_recorders() {
    let _serial = serial_guard();
    let mut runs: Vec<_> = engines().into_iter().map(|engine| (engine, CpuMode::Cpu)).collect();
    runs.push((CpuEngine::Auto, CpuMode::Wall));
    for (engine, mode) in runs {
        let options = options(engine, mode);
        let lookback = Lookback::start(&Options { mode: CpuMode::Cpu, ..options.clone() });
        let mut lookback = lookback.unwrap();
        let mut session =
            Some(CpuSession::start_with_options(&options, SystemClock.anchor()).unwrap());
        burn(Duration::from_millis(30));
        let context = format!("{engine:?} {mode:?}");
        assert_eq!(
            run_in_fork(|| {
                session = None;
                lookback = None;
                true
            }),
            0,
            "{context}: dropped"
        );
        let ended = run_in_fork(|| {
            let engine_text = lookback.as_ref().map(Lookback::engine);
            let stopped = session.take().unwrap().stop(SystemClock.now());
            engine_text.is_none_or(|told| told.is_empty()) && matches!(stopped, Err(Error::Forked))
        });
        assert_eq!(ended, 0, "{context}: stopped");
        let ended = run_in_fork(|| {
            (session, lookback) = (None, None);
            if mode == CpuMode::Wall {
                // In a new process the kernel's statistics do not show yet that its threads have
                // run.
                return true;
            }
            let own = CpuSession::start_with_options(&options, SystemClock.anchor()).unwrap();
            burn(Duration::from_millis(60));
            let profile = own.stop(SystemClock.now()).unwrap();
            !profile.samples.is_empty()
        });
        assert_eq!(ended, 0, "{context}: recorded anew");
        burn(Duration::from_millis(60));
        let profile = stop(session.unwrap());
        assert!(!profile.samples.is_empty(), "{context}: the parent's went on");
        drop(lookback);
    }
}
