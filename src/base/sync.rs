//! The atomics of what is checked by loom. `tests/trace_loom.rs` and `tests/heap_loom.rs` compile such
//! files a second time, with a module of this name that hands out loom's, and try every order of their
//! loads and stores.

pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};
