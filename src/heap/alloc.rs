//! The sampling allocator: a countdown in front of the inner allocator.
//!
//! Nearly every allocation counts its bytes down and tail-calls the inner allocator. Nearly every
//! deallocation reads one byte of a filter and tail-calls it too. The rest is outlined and cold.
//! The inner allocator receives exactly the program's layouts and pointers, so replacing it by this
//! one does not change the behaviour of a program that misuses it.
//!
//! A record is removed *before* the inner allocator gets the block back: after that, another thread
//! may get the same address and insert its own record.

#![allow(unsafe_code, reason = "a global allocator implements an unsafe trait")]

use std::alloc::{GlobalAlloc, Layout, System};

use super::recorder::{
    discard_record, insert_record, may_be_recorded, record_if_sampled, take_record,
};
use super::thread::{try_consume, undo_consume};

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
/// `heap.rate` bytes allocated. `A` may be any allocator. A program should have one such
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
// recursively (`record_if_sampled` excludes its own thread).
unsafe impl<A: GlobalAlloc> GlobalAlloc for Allocator<A> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if try_consume(layout.size()) {
            // SAFETY: same contract and arguments as the caller's.
            unsafe { self.inner.alloc(layout) }
        } else {
            // SAFETY: same contract and arguments as the caller's.
            unsafe { self.alloc_cold(layout) }
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if try_consume(layout.size()) {
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
        let within_budget = try_consume(new_size);
        if within_budget && !may_be_recorded(block as usize) {
            // SAFETY: same contract and arguments as the caller's.
            unsafe { self.inner.realloc(block, layout, new_size) }
        } else {
            // SAFETY: same contract and arguments as the caller's.
            unsafe { self.realloc_cold(block, layout, new_size, within_budget) }
        }
    }
}

impl<A: GlobalAlloc> Allocator<A> {
    #[cold]
    #[inline(never)]
    unsafe fn alloc_cold(&self, layout: Layout) -> *mut u8 {
        // SAFETY: same contract and arguments as the caller's.
        let block = unsafe { self.inner.alloc(layout) };
        sample_allocation(block, layout.size());
        block
    }

    #[cold]
    #[inline(never)]
    unsafe fn alloc_zeroed_cold(&self, layout: Layout) -> *mut u8 {
        // SAFETY: same contract and arguments as the caller's.
        let block = unsafe { self.inner.alloc_zeroed(layout) };
        sample_allocation(block, layout.size());
        block
    }

    /// Separate function, including the inner call: otherwise the hot path would need a stack frame
    /// for the record.
    #[cold]
    #[inline(never)]
    unsafe fn dealloc_cold(&self, block: *mut u8, layout: Layout) {
        if let Some(block_record) = take_record(block as usize) {
            discard_record(&block_record);
        }
        // SAFETY: same contract and arguments as the caller's.
        unsafe { self.inner.dealloc(block, layout) }
    }

    /// Reallocates a block: one free and one allocation of `new_size` bytes. `within_budget` is the
    /// result of `try_consume(new_size)`.
    #[cold]
    #[inline(never)]
    unsafe fn realloc_cold(
        &self,
        block: *mut u8,
        layout: Layout,
        new_size: usize,
        within_budget: bool,
    ) -> *mut u8 {
        let block_record = take_record(block as usize);
        // SAFETY: same contract and arguments as the caller's.
        let new_block = unsafe { self.inner.realloc(block, layout, new_size) };
        if let Some(block_record) = block_record {
            if new_block.is_null() {
                // The program still owns the old block, so no other thread can get its address.
                insert_record(block as usize, block_record);
            } else {
                discard_record(&block_record);
            }
        }
        if !within_budget {
            sample_allocation(new_block, new_size);
        }
        new_block
    }
}

/// Completes an allocation after `try_consume` returned `false`. Always inlined:
/// `record_if_sampled` skips a fixed number of frames above it.
#[inline(always)]
fn sample_allocation(block: *mut u8, size: usize) {
    if block.is_null() {
        undo_consume(size);
    } else {
        record_if_sampled(block as usize, size);
    }
}
