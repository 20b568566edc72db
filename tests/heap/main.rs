//! Heap profiles as a service has them: sums, stacks and names, full tables, and memory that is
//! nearly exhausted. The allocator is `marple::Allocator` over `support::counting`, which counts the
//! calls and forwards them to the system's.
//!
//! Some tests compare a profile with these counts: exact at rate 1, within the stated error and
//! losses at other rates, and no allocation by a dump. A program without the allocator belongs to
//! `tests/no_allocator`, and jemalloc to `tests/jemalloc`. Rate, tables and counts are those of the
//! process, so each test needs a separate one (nextest).
#![cfg(feature = "heap")]

#[path = "../support/mod.rs"]
mod support;

mod allocated_bytes;
#[cfg(target_os = "linux")]
mod combined_load;
mod dump;
mod dump_waits;
mod exact;
mod fork;
mod full_tables;
#[cfg(all(feature = "cpu", target_os = "linux", target_env = "gnu", target_arch = "x86_64"))]
mod generated_code;
mod innermost;
mod large_blocks;
mod live_bytes;
#[cfg(target_os = "linux")]
mod near_oom;
mod pprof;
mod rate;
mod rate_zero;
mod stacks;
#[cfg(target_os = "linux")]
mod sums;

use crate::support::counting::Counting;

#[global_allocator]
static ALLOCATOR: marple::Allocator<Counting> = marple::Allocator::new(Counting);
