//! Heap profiles as a service has them, with `marple::Allocator` over the system's allocator: sums,
//! stacks and names, full tables, and memory that is nearly exhausted.
//!
//! What needs the exact number of bytes allocated belongs to `tests/heap_counted`, a program
//! without the allocator to `tests/no_allocator`, and jemalloc to `tests/jemalloc`. Rate and tables
//! are those of the process, so each test needs a process of its own (nextest).
#![cfg(feature = "heap")]

#[path = "../support/mod.rs"]
mod support;

mod dump_waits;
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

use std::alloc::System;

#[global_allocator]
static ALLOCATOR: marple::Allocator<System> = marple::Allocator::new(System);
