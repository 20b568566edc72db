//! A child that is forked while every thread allocates can allocate, take a snapshot and end.
#![allow(unsafe_code, reason = "forking cannot be done without")]

use std::hint::black_box;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};

use jiff::Timestamp;
use marple::internals::base::Bytes;
use marple::internals::heap;

/// A time that only a hang exceeds.
const DEADLINE_MS: i32 = 60_000;

fn allocate(rounds: usize) {
    for n in 0..rounds {
        let mut kept = Vec::new();
        for size in [16, 100, 1000, 40_000] {
            kept.push(black_box(vec![0u8; size + n % 64]));
        }
        black_box(&mut kept[n % 4]).reserve(n % 5000);
    }
}

/// Returns `true` if the child exits with status 0.
fn exited_successfully(child: libc::pid_t) -> bool {
    // SAFETY: plain system calls on the child and on a descriptor opened here; `status` and `poll`
    // are locals.
    unsafe {
        let pidfd = libc::syscall(libc::SYS_pidfd_open, child, 0) as libc::c_int;
        assert!(pidfd >= 0, "pidfd_open: {}", std::io::Error::last_os_error());
        let mut poll = libc::pollfd { fd: pidfd, events: libc::POLLIN, revents: 0 };
        let ended = libc::poll(&mut poll, 1, DEADLINE_MS) == 1;
        if !ended {
            libc::kill(child, libc::SIGKILL);
        }
        let mut status = 0;
        libc::waitpid(child, &mut status, 0);
        libc::close(pidfd);
        ended && libc::WIFEXITED(status) && libc::WEXITSTATUS(status) == 0
    }
}

#[test]
fn children_forked_under_load_do_not_hang() {
    heap::set_rate(Bytes::kib(2));
    let stop = AtomicBool::new(false);
    std::thread::scope(|scope| {
        for _ in 0..4 {
            scope.spawn(|| {
                while !stop.load(Relaxed) {
                    allocate(10);
                }
            });
        }
        let hung: Vec<_> = (0..300)
            .filter(|_| {
                // SAFETY: the child allocates, which glibc allows, and exits without cleaning up.
                match unsafe { libc::fork() } {
                    0 => {
                        allocate(50);
                        std::thread::scope(|scope| {
                            scope.spawn(|| allocate(20));
                        });
                        let profile = heap::snapshot(Timestamp::now());
                        // SAFETY: `_exit` only ends the process.
                        unsafe { libc::_exit(if profile.is_ok() { 0 } else { 1 }) }
                    }
                    child => {
                        assert!(child > 0, "fork: {}", std::io::Error::last_os_error());
                        !exited_successfully(child)
                    }
                }
            })
            .collect();
        stop.store(true, Relaxed);
        println!("{} of 300 children hung or failed", hung.len());
        assert!(hung.is_empty(), "children that hung or failed: {hung:?}");
    });
}
