//! The atomics and locks of what is checked by loom. `tests/heap_loom.rs`, `tests/os_loom.rs`,
//! `tests/stacks_loom.rs` and `tests/trace_loom.rs` compile such files a second time, with a module of this name that hands out loom's,
//! and try every order of their loads and stores.

#[cfg(feature = "heap")]
pub(crate) use std::sync::atomic::AtomicU8;
pub(crate) use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering, fence};
pub(crate) use std::sync::{Mutex, PoisonError};
