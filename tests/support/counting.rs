//! The system's allocator, counted. A `main.rs` installs it as the global allocator, alone or below
//! `marple::Allocator`.
#![allow(unsafe_code, reason = "an allocator cannot be written without")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::Cell;
use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicIsize, AtomicU64, AtomicUsize, Ordering::SeqCst};

pub(crate) struct Counting;

/// Allocations of all threads. A reallocation counts as one.
pub(crate) static CALLS: AtomicU64 = AtomicU64::new(0);
/// Bytes that all threads have ever allocated. A reallocation counts with its new size.
pub(crate) static ALLOCATED_BYTES: AtomicIsize = AtomicIsize::new(0);
/// Bytes that all threads hold.
pub(crate) static LIVE_BYTES: AtomicIsize = AtomicIsize::new(0);
static PEAK_BYTES: AtomicIsize = AtomicIsize::new(0);

thread_local! {
    static ALLOCATIONS: Cell<u64> = const { Cell::new(0) };
}

/// Block sizes that only the tests allocate.
pub(crate) const COUNTED_SIZES: Range<usize> = 100_000..200_000;

/// Bytes in use, bytes ever allocated, and number of blocks in use, of [`COUNTED_SIZES`].
pub(crate) static LIVE: AtomicI64 = AtomicI64::new(0);
pub(crate) static ALLOCATED: AtomicI64 = AtomicI64::new(0);
pub(crate) static BLOCKS: AtomicI64 = AtomicI64::new(0);
/// Number of `realloc` calls for [`COUNTED_SIZES`] still to be refused.
pub(crate) static REALLOC_FAILURES: AtomicUsize = AtomicUsize::new(0);

/// Returns the number of allocations of the calling thread. A reallocation counts as one.
pub(crate) fn allocations() -> u64 {
    ALLOCATIONS.get()
}

/// Returns the peak of the bytes that all threads held during `work`, minus those held before.
pub(crate) fn peak_bytes(work: impl FnOnce()) -> isize {
    let before = LIVE_BYTES.load(SeqCst);
    PEAK_BYTES.store(before, SeqCst);
    work();
    PEAK_BYTES.load(SeqCst) - before
}

fn count_allocated(size: usize) {
    ALLOCATIONS.set(ALLOCATIONS.get() + 1);
    CALLS.fetch_add(1, SeqCst);
    ALLOCATED_BYTES.fetch_add(size as isize, SeqCst);
    PEAK_BYTES.fetch_max(LIVE_BYTES.fetch_add(size as isize, SeqCst) + size as isize, SeqCst);
    if COUNTED_SIZES.contains(&size) {
        LIVE.fetch_add(size as i64, SeqCst);
        ALLOCATED.fetch_add(size as i64, SeqCst);
        BLOCKS.fetch_add(1, SeqCst);
    }
}

fn count_freed(size: usize) {
    LIVE_BYTES.fetch_sub(size as isize, SeqCst);
    if COUNTED_SIZES.contains(&size) {
        LIVE.fetch_sub(size as i64, SeqCst);
        BLOCKS.fetch_sub(1, SeqCst);
    }
}

// SAFETY: every call is forwarded to `System`, or refused. Counting touches atomics and a
// constant-initialized thread-local without a destructor, which allocates nothing.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: forwarded under the caller's contract.
        let block = unsafe { System.alloc(layout) };
        if !block.is_null() {
            count_allocated(layout.size());
        }
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count_freed(layout.size());
        // SAFETY: forwarded under the caller's contract.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let refuse = |left: usize| left.checked_sub(1);
        if COUNTED_SIZES.contains(&new_size)
            && REALLOC_FAILURES.fetch_update(SeqCst, SeqCst, refuse).is_ok()
        {
            return std::ptr::null_mut();
        }
        // SAFETY: forwarded under the caller's contract.
        let moved = unsafe { System.realloc(block, layout, new_size) };
        if !moved.is_null() {
            // In this order the peak has both blocks, which exist at once if the block moves.
            count_allocated(new_size);
            count_freed(layout.size());
        }
        moved
    }
}
