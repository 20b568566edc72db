//! Nothing is allocated and no page is faulted in where a thread is interrupted.
#![cfg(all(feature = "cpu", target_os = "linux", target_env = "gnu"))]

mod cpu_support;

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::thread;
use std::time::Duration;

use cpu_support::{burn, start, stop};
use marple::model::CpuEngine;

/// Counts the allocations of each thread.
struct Counting;

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

#[expect(unsafe_code, reason = "an allocator cannot be written without")]
// SAFETY: passes on what it is given.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.with(|count| count.set(count.get() + 1));
        // SAFETY: the caller's.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: the caller's.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static COUNTING: Counting = Counting;

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

/// A slot of the pool is met by every 64th sample at the least, so the samples counted here go to slots
/// nobody has written to.
#[test]
fn nothing_is_allocated_and_no_page_touched_first_where_a_thread_is_interrupted() {
    let session = start(CpuEngine::Timer, 1000).unwrap();
    let counted = thread::spawn(|| {
        as_deep_as_a_service(|| {
            // The first signal of a thread touches its signal stack.
            burn(Duration::from_millis(40));
            let before = (ALLOCATIONS.get(), faults());
            burn(Duration::from_millis(1200));
            (ALLOCATIONS.get() - before.0, faults() - before.1)
        })
    });
    let counted = counted.join().unwrap();
    let profile = stop(session);
    assert_eq!(counted, (0, 0), "allocations and page faults: {:?}", profile.comments);
    assert!(profile.total("samples").unwrap() > 60, "{:?}", profile.comments);
}
