//! Atomics and locks of code that is checked with loom.
//!
//! `tests/loom_heap` and the modules of `tests/loom`
//! compile that code again with a module of this name that exports loom's types. They explore all
//! orders of its loads and stores.

pub(crate) use super::fork_mutex::Mutex;
pub(crate) use std::sync::Mutex as BareMutex;
pub(crate) use std::sync::PoisonError;
#[cfg(feature = "heap")]
pub(crate) use std::sync::atomic::AtomicU8;
pub(crate) use std::sync::atomic::{AtomicPtr, AtomicU32, AtomicU64, Ordering, fence};
