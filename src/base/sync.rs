//! The atomics of what is checked by loom. `tests/trace_loom.rs` compiles such files a second time,
//! with a module of this name that hands out loom's, and tries every order of their loads and stores.

pub(crate) use std::sync::atomic::{AtomicU64, Ordering, fence};
