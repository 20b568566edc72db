//! Nothing is allocated and no page is faulted in where a thread is interrupted.
#![cfg(all(feature = "cpu", target_os = "linux", target_env = "gnu"))]

mod counting;
mod cpu_support;

use std::thread;
use std::time::Duration;

use counting::allocations;
use cpu_support::{burn, start, stop};
use marple::model::CpuEngine;

/// The calling thread's page faults that took no reading from disk.
#[expect(unsafe_code, reason = "the kernel's answer goes through a pointer")]
fn faults() -> i64 {
    // SAFETY: all-zero is a valid rusage, and the kernel writes one.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage), 0);
        usage.ru_minflt
    }
}

/// Puts 12 KiB between the thread's start and what it does.
#[inline(never)]
fn as_deep_as_a_service(work: impl FnOnce() -> (u64, i64)) -> (u64, i64) {
    let frame = std::hint::black_box([0u8; 12 << 10]);
    let counted = work();
    std::hint::black_box(&frame);
    counted
}

/// A slot of the pool is met by every 64th sample at the least, so the samples counted here go to
/// slots nobody has written to.
#[test]
fn nothing_is_allocated_and_no_page_touched_first_where_a_thread_is_interrupted() {
    let session = start(CpuEngine::Timer, 1000).unwrap();
    let counted = thread::spawn(|| {
        as_deep_as_a_service(|| {
            // The first signal of a thread touches its signal stack.
            burn(Duration::from_millis(40));
            let before = (allocations(), faults());
            burn(Duration::from_millis(1200));
            (allocations() - before.0, faults() - before.1)
        })
    });
    let counted = counted.join().unwrap();
    let profile = stop(session);
    assert_eq!(counted, (0, 0), "allocations and page faults: {:?}", profile.comments);
    assert!(profile.total("samples").unwrap() > 60, "{:?}", profile.comments);
    assert!(allocations() > 0, "the count counts");
}
