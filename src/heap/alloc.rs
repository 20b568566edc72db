//! The sampling allocator: a countdown in front of the inner allocator.
//!
//! Nearly every allocation counts its bytes down and tail-calls the inner allocator. Nearly every
//! deallocation reads one byte of a filter and tail-calls it too. The rest is outlined and cold.
//! The inner allocator receives exactly the program's layouts and pointers, so replacing it by this
//! one does not change the behaviour of a program that misuses it.
//!
//! A record is removed *before* the inner allocator gets the block back: after that, another thread
//! may get the same address and insert its own record.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};

use super::recorder::{forget, insert, may_be_recorded, record, take};
use super::thread::{give_back, spend};

/// An allocator that samples allocations for heap profiles.
///
/// ```
/// use std::alloc::System;
///
/// #[global_allocator]
/// static ALLOCATOR: marple::Allocator<System> = marple::Allocator::new(System);
/// # fn main() {}
/// ```
///
/// Costs some nanoseconds per allocation, plus one sample (a few microseconds) for every
/// [`rate`](super::rate) bytes allocated. `A` may be any allocator. A program should have one such
/// static.
#[derive(Debug, Default)]
pub struct Allocator<A = System> {
    inner: A,
}

impl<A> Allocator<A> {
    /// Creates an allocator that samples the allocations of `inner`.
    pub const fn new(inner: A) -> Self {
        Self { inner }
    }
}

// SAFETY: every block is allocated and freed by `inner` with the caller's own arguments. The rest
// accesses only marple's tables; it does not unwind and does not allocate through `self`
// recursively (`record` excludes its own thread).
unsafe impl<A: GlobalAlloc> GlobalAlloc for Allocator<A> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if spend(layout.size()) {
            // SAFETY: same contract and arguments as the caller's.
            unsafe { self.inner.alloc(layout) }
        } else {
            // SAFETY: same contract and arguments as the caller's.
            unsafe { self.alloc_cold(layout) }
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if spend(layout.size()) {
            // SAFETY: same contract and arguments as the caller's.
            unsafe { self.inner.alloc_zeroed(layout) }
        } else {
            // SAFETY: same contract and arguments as the caller's.
            unsafe { self.alloc_zeroed_cold(layout) }
        }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if may_be_recorded(block as usize) {
            // SAFETY: same contract and arguments as the caller's.
            unsafe { self.dealloc_cold(block, layout) }
        } else {
            // SAFETY: same contract and arguments as the caller's.
            unsafe { self.inner.dealloc(block, layout) }
        }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let spent = spend(new_size);
        if spent && !may_be_recorded(block as usize) {
            // SAFETY: same contract and arguments as the caller's.
            unsafe { self.inner.realloc(block, layout, new_size) }
        } else {
            // SAFETY: same contract and arguments as the caller's.
            unsafe { self.realloc_cold(block, layout, new_size, spent) }
        }
    }
}

impl<A: GlobalAlloc> Allocator<A> {
    #[cold]
    #[inline(never)]
    unsafe fn alloc_cold(&self, layout: Layout) -> *mut u8 {
        // SAFETY: same contract and arguments as the caller's.
        let block = unsafe { self.inner.alloc(layout) };
        settle(block, layout.size());
        block
    }

    #[cold]
    #[inline(never)]
    unsafe fn alloc_zeroed_cold(&self, layout: Layout) -> *mut u8 {
        // SAFETY: same contract and arguments as the caller's.
        let block = unsafe { self.inner.alloc_zeroed(layout) };
        settle(block, layout.size());
        block
    }

    /// Separate function, including the inner call: otherwise the hot path would need a stack frame
    /// for the record.
    #[cold]
    #[inline(never)]
    unsafe fn dealloc_cold(&self, block: *mut u8, layout: Layout) {
        if let Some(taken) = take(block as usize) {
            forget(&taken);
        }
        // SAFETY: same contract and arguments as the caller's.
        unsafe { self.inner.dealloc(block, layout) }
    }

    /// Reallocates a block: one free and one allocation of `new_size` bytes. `spent` is the result
    /// of `spend(new_size)`.
    #[cold]
    #[inline(never)]
    unsafe fn realloc_cold(
        &self,
        block: *mut u8,
        layout: Layout,
        new_size: usize,
        spent: bool,
    ) -> *mut u8 {
        let taken = take(block as usize);
        // SAFETY: same contract and arguments as the caller's.
        let moved = unsafe { self.inner.realloc(block, layout, new_size) };
        if let Some(taken) = taken {
            if moved.is_null() {
                // The program still owns the old block, so no other thread can get its address.
                insert(block as usize, taken);
            } else {
                forget(&taken);
            }
        }
        if !spent {
            settle(moved, new_size);
        }
        moved
    }
}

/// Completes an allocation after `spend` returned `false`. Always inlined: `record` skips a fixed
/// number of frames above it.
#[inline(always)]
fn settle(block: *mut u8, size: usize) {
    if block.is_null() {
        give_back(size);
    } else {
        record(block as usize, size);
    }
}
