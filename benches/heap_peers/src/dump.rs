//! Cost of a dump of 100,000 blocks under 50,000 stacks, and its effect on another thread.

#[path = "../../../tests/support/blocks.rs"]
mod blocks;

use std::alloc::{GlobalAlloc, Layout};
use std::cell::Cell;
use std::hint::black_box;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use blocks::{STACKS, allocate_blocks, resident_bytes, thread_cpu_nanos};

thread_local! {
    static REQUESTED_BYTES: Cell<u64> = const { Cell::new(0) };
}

/// An allocator that counts the bytes each thread requests, to measure a dump's allocations.
pub struct Counting<A>(pub A);

fn count(bytes: usize) {
    REQUESTED_BYTES.with(|requested| requested.set(requested.get() + bytes as u64));
}

// SAFETY: forwards to the inner allocator and only counts.
unsafe impl<A: GlobalAlloc> GlobalAlloc for Counting<A> {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: forwarded under the caller's contract.
        unsafe { self.0.alloc(layout) }
    }

    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: forwarded under the caller's contract.
        unsafe { self.0.alloc_zeroed(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: forwarded under the caller's contract.
        unsafe { self.0.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        count(new_size);
        // SAFETY: forwarded under the caller's contract.
        unsafe { self.0.realloc(block, layout, new_size) }
    }
}

/// Runs two dumps and prints one line. For the first dump: CPU nanoseconds of its thread, growth of
/// resident memory, and bytes requested from the allocator. For the second: the longest pause of
/// another, allocating thread in nanoseconds, during the dump and for the same time without one.
/// Last: the file size.
pub fn measure(dump: &impl Fn() -> usize) {
    let mut live_blocks = Vec::with_capacity(2 * STACKS);
    allocate_blocks(&mut live_blocks);
    let (resident_before, cpu_before, requested_before) =
        (resident_bytes(), thread_cpu_nanos(), REQUESTED_BYTES.get());
    let bytes = dump();
    let cpu_nanos = thread_cpu_nanos() - cpu_before;
    let requested = REQUESTED_BYTES.get() - requested_before;
    let growth = resident_bytes().saturating_sub(resident_before);
    let started = Instant::now();
    let during = longest_pause(|| _ = black_box(dump()));
    let wall_time = started.elapsed();
    let without = longest_pause(|| thread::sleep(wall_time));
    println!("{cpu_nanos} {growth} {requested} {during} {without} {bytes}");
    drop(live_blocks);
}

/// Returns the longest time of one allocation and one free of a thread while `work` ran.
fn longest_pause(work: impl FnOnce()) -> u64 {
    let (dump_started, done, longest) =
        (AtomicBool::new(false), AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| {
            let mut last = Instant::now();
            let mut max_gap = Duration::ZERO;
            while !done.load(Relaxed) {
                drop(black_box(Box::new([0u8; 64])));
                let now = Instant::now();
                if dump_started.swap(true, Relaxed) {
                    max_gap = max_gap.max(now - last);
                }
                last = now;
            }
            longest.store(max_gap.as_nanos() as u64, Relaxed);
        });
        while !dump_started.load(Relaxed) {
            thread::yield_now();
        }
        work();
        done.store(true, Relaxed);
    });
    longest.load(Relaxed)
}
