//! The signal handler allocates nothing and causes no page fault in the interrupted thread.

use std::thread;
use std::time::Duration;

use marple::internals::model::CpuEngine;

use crate::support::counting::allocations;
use crate::support::cpu_load::{burn, start, stop};

/// Returns the minor page faults of the calling thread.
#[expect(unsafe_code, reason = "the kernel's answer goes through a pointer")]
fn minor_faults() -> i64 {
    // SAFETY: an all-zero rusage is valid, and the kernel writes only that structure.
    unsafe {
        let mut usage: libc::rusage = std::mem::zeroed();
        assert_eq!(libc::getrusage(libc::RUSAGE_THREAD, &raw mut usage), 0);
        usage.ru_minflt
    }
}

/// Calls `work` 12 KiB below the start of the thread's stack.
#[inline(never)]
fn run_deep_on_stack(work: impl FnOnce() -> (u64, i64)) -> (u64, i64) {
    let frame = std::hint::black_box([0u8; 12 << 10]);
    let counted = work();
    std::hint::black_box(&frame);
    counted
}

/// A slot of the pool is used at least once in 64 samples, so the samples counted here use slots
/// that were never written before.
#[test]
fn signal_handler_causes_no_allocation_and_no_page_fault() {
    let session = start(CpuEngine::Timer, 1000).unwrap();
    let counted = thread::spawn(|| {
        run_deep_on_stack(|| {
            // The first signal of a thread touches the page of its signal stack.
            burn(Duration::from_millis(40));
            let before = (allocations(), minor_faults());
            burn(Duration::from_millis(1200));
            (allocations() - before.0, minor_faults() - before.1)
        })
    });
    let counted = counted.join().unwrap();
    let profile = stop(session);
    assert_eq!(counted, (0, 0), "allocations and page faults: {:?}", profile.comments);
    assert!(profile.total("samples").unwrap() > 60, "{:?}", profile.comments);
    assert!(allocations() > 0, "the count counts");
}
