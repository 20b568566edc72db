//! The allocator itself: the inner one, and a countdown in front of it.
//!
//! Nearly every allocation counts its bytes down and is the inner allocator's tail call; nearly every
//! free looks at one byte of a filter first and is a tail call too. What is left is outlined and cold. The inner allocator sees
//! exactly the program's layouts and pointers, so an allocator that is exchanged for this one in a
//! program that misuses it misbehaves no differently.
//!
//! A record is taken out *before* the inner allocator has the block back: from then on another thread
//! may get the same address, and puts in a record of its own.

#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};

use super::recorder::{forget, insert, may_be_recorded, record, take};
use super::thread::{give_back, spend};

/// An allocator that samples what passes through it, for heap profiles.
///
/// ```
/// use std::alloc::System;
///
/// #[global_allocator]
/// static ALLOCATOR: marple::Allocator<System> = marple::Allocator::new(System);
/// # fn main() {}
/// ```
///
/// Costs some nanoseconds an allocation and one sample (a few microseconds) for every
/// [`rate`](super::rate) bytes allocated. `A` may be any allocator; there should be one such static in
/// a program.
#[derive(Debug, Default)]
pub struct Allocator<A = System> {
    inner: A,
}

impl<A> Allocator<A> {
    /// Samples what passes through to `inner`.
    pub const fn new(inner: A) -> Self {
        Self { inner }
    }
}

// SAFETY: every block is `inner`'s, asked for and given back with the caller's own arguments; the rest
// reads and writes tables of its own, and neither unwinds nor allocates through `self` without end
// (`record` excludes its own thread).
unsafe impl<A: GlobalAlloc> GlobalAlloc for Allocator<A> {
    #[inline]
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        if spend(layout.size()) {
            // SAFETY: the caller's promises, passed on.
            unsafe { self.inner.alloc(layout) }
        } else {
            // SAFETY: the caller's promises, passed on.
            unsafe { self.alloc_cold(layout) }
        }
    }

    #[inline]
    unsafe fn alloc_zeroed(&self, layout: Layout) -> *mut u8 {
        if spend(layout.size()) {
            // SAFETY: the caller's promises, passed on.
            unsafe { self.inner.alloc_zeroed(layout) }
        } else {
            // SAFETY: the caller's promises, passed on.
            unsafe { self.alloc_zeroed_cold(layout) }
        }
    }

    #[inline]
    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        if may_be_recorded(block as usize) {
            // SAFETY: the caller's promises, passed on.
            unsafe { self.dealloc_cold(block, layout) }
        } else {
            // SAFETY: the caller's promises, passed on.
            unsafe { self.inner.dealloc(block, layout) }
        }
    }

    #[inline]
    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let spent = spend(new_size);
        if spent && !may_be_recorded(block as usize) {
            // SAFETY: the caller's promises, passed on.
            unsafe { self.inner.realloc(block, layout, new_size) }
        } else {
            // SAFETY: the caller's promises, passed on.
            unsafe { self.realloc_cold(block, layout, new_size, spent) }
        }
    }
}

impl<A: GlobalAlloc> Allocator<A> {
    #[cold]
    #[inline(never)]
    unsafe fn alloc_cold(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises, passed on.
        let block = unsafe { self.inner.alloc(layout) };
        settle(block, layout.size());
        block
    }

    #[cold]
    #[inline(never)]
    unsafe fn alloc_zeroed_cold(&self, layout: Layout) -> *mut u8 {
        // SAFETY: the caller's promises, passed on.
        let block = unsafe { self.inner.alloc_zeroed(layout) };
        settle(block, layout.size());
        block
    }

    /// Apart, with the inner call too: else the hot half would have a stack frame for the record.
    #[cold]
    #[inline(never)]
    unsafe fn dealloc_cold(&self, block: *mut u8, layout: Layout) {
        if let Some(taken) = take(block as usize) {
            forget(&taken);
        }
        // SAFETY: the caller's promises, passed on.
        unsafe { self.inner.dealloc(block, layout) }
    }

    /// A free and an allocation of `new_size` bytes, of which `spent` says whether they are accounted for.
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
        // SAFETY: the caller's promises, passed on.
        let moved = unsafe { self.inner.realloc(block, layout, new_size) };
        if let Some(taken) = taken {
            if moved.is_null() {
                // The old block is still the program's, and so its address still nobody else's.
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

/// After a refused `spend` and the allocation it was for. Inlined always: `record` counts the frames
/// above it.
#[inline(always)]
fn settle(block: *mut u8, size: usize) {
    if block.is_null() {
        give_back(size);
    } else {
        record(block as usize, size);
    }
}
