//! The test program's allocator: the system's, which also counts the allocations of each thread and
//! the bytes that all threads hold.
#![allow(dead_code, reason = "each test uses some of it")]
#![allow(unsafe_code, reason = "an allocator cannot be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::sync::atomic::{AtomicIsize, Ordering};

struct Counting;

#[global_allocator]
static COUNTING: Counting = Counting;

static LIVE_BYTES: AtomicIsize = AtomicIsize::new(0);
static PEAK_BYTES: AtomicIsize = AtomicIsize::new(0);

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Returns the number of allocations of the calling thread. A reallocation counts as one.
pub(crate) fn allocations() -> u64 {
    ALLOCATIONS.get()
}

/// Returns the peak of the bytes that all threads held during `work`, minus those held before.
pub(crate) fn peak_bytes(work: impl FnOnce()) -> isize {
    let before = LIVE_BYTES.load(Ordering::Relaxed);
    PEAK_BYTES.store(before, Ordering::Relaxed);
    work();
    PEAK_BYTES.load(Ordering::Relaxed) - before
}

// SAFETY: every call is forwarded to `System` unchanged. Counting touches two atomics and a
// constant-initialized thread-local without a destructor, which allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        ALLOCATIONS.set(ALLOCATIONS.get() + 1);
        let size = layout.size() as isize;
        PEAK_BYTES
            .fetch_max(LIVE_BYTES.fetch_add(size, Ordering::Relaxed) + size, Ordering::Relaxed);
        // SAFETY: forwards the caller's `layout`.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE_BYTES.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: `block` came from `System` through `alloc` above, with this layout.
        unsafe { System.dealloc(block, layout) }
    }
}
