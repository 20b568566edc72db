//! Heap profiles compared with the bytes and blocks that the allocator below counted: exact at rate
//! 1, within the stated error and losses at other rates, and without allocations by a dump.
//!
//! The allocator is `marple::Allocator` over one that counts; that is what these tests need and why
//! they are not in `tests/heap`. Counts and tables are those of the process, so each test needs a
//! process of its own (nextest).
#![cfg(feature = "heap")]

#[path = "../support/mod.rs"]
mod support;

mod allocated_bytes;
#[cfg(target_os = "linux")]
mod combined_load;
mod dump;
mod exact;
#[cfg(target_os = "linux")]
mod sums;

use crate::support::counting::Counting;

#[global_allocator]
static ALLOCATOR: marple::Allocator<Counting> = marple::Allocator::new(Counting);
