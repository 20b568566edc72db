//! The atomics and locks of what is checked by loom. `tests/heap_loom.rs`, `tests/os_loom.rs`,
//! `tests/stacks_loom.rs` and `tests/trace_loom.rs` compile such files a second time, with a module of this name that hands out loom's,
//! and try every order of their loads and stores.

pub(crate) use super::fork_mutex::Mutex;
pub(crate) use std::sync::Mutex as BareMutex;
pub(crate) use std::sync::PoisonError;
#[cfg(feature = "heap")]
pub(crate) use std::sync::atomic::AtomicU8;
pub(crate) use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering, fence};
