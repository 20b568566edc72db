//! Loom models of lock-free code, over every permitted order of loads and stores.
//!
//! Source files are compiled here a second time, with the `base` and `os` below: loom's atomics and
//! locks instead of std's, and mappings of a few words. A model of another file of the crate is a
//! module that has the file as a module. The tables of the heap profile need other atomics, in
//! `tests/loom_heap`. The allocator is the system's.
#![allow(unreachable_pub, dead_code, reason = "the files are compiled as a part of the crate, too")]

mod signal_handlers;
mod task_slots;
mod trace_rings;

mod base {
    pub mod sync {
        use std::sync::OnceLock;

        pub use loom::sync::atomic::{AtomicU64, Ordering, fence};
        pub use loom::sync::{Mutex, Mutex as BareMutex};
        pub use std::sync::PoisonError;

        /// A loom atomic created at first use: a pool is `const`, and loom needs a running model.
        /// The thread that makes the owner must be the first to use it, since loom treats the
        /// creation as a store that other threads must have observed.
        #[derive(Debug)]
        pub struct AtomicU32(u32, OnceLock<loom::sync::atomic::AtomicU32>);

        impl AtomicU32 {
            pub const fn new(value: u32) -> Self {
                Self(value, OnceLock::new())
            }

            fn get(&self) -> &loom::sync::atomic::AtomicU32 {
                self.1.get_or_init(|| loom::sync::atomic::AtomicU32::new(self.0))
            }

            pub fn load(&self, order: Ordering) -> u32 {
                self.get().load(order)
            }

            pub fn store(&self, value: u32, order: Ordering) {
                self.get().store(value, order);
            }

            pub fn swap(&self, value: u32, order: Ordering) -> u32 {
                self.get().swap(value, order)
            }

            pub fn fetch_add(&self, value: u32, order: Ordering) -> u32 {
                self.get().fetch_add(value, order)
            }

            pub fn compare_exchange(
                &self,
                current: u32,
                new: u32,
                success: Ordering,
                failure: Ordering,
            ) -> Result<u32, u32> {
                self.get().compare_exchange(current, new, success, failure)
            }
        }

        /// Like [`AtomicU32`]; initially null.
        pub struct AtomicPtr<T>(OnceLock<loom::sync::atomic::AtomicPtr<T>>);

        impl<T> AtomicPtr<T> {
            pub const fn new(null: *mut T) -> Self {
                assert!(null.is_null());
                Self(OnceLock::new())
            }

            fn get(&self) -> &loom::sync::atomic::AtomicPtr<T> {
                self.0.get_or_init(|| loom::sync::atomic::AtomicPtr::new(std::ptr::null_mut()))
            }

            pub fn load(&self, order: Ordering) -> *mut T {
                self.get().load(order)
            }

            pub fn swap(&self, value: *mut T, order: Ordering) -> *mut T {
                self.get().swap(value, order)
            }
        }
    }
}

mod os {
    pub mod mapped_memory {
        use crate::base::sync::AtomicU64;

        /// Allocated at once, by the thread that makes the model.
        pub struct MappedWords(Vec<AtomicU64>);

        impl MappedWords {
            pub fn new(words: usize) -> Self {
                Self((0..words).map(|_| AtomicU64::new(0)).collect())
            }

            pub fn get(&self) -> Option<&[AtomicU64]> {
                Some(&self.0)
            }

            pub fn get_or_map(&self) -> Option<&[AtomicU64]> {
                self.get()
            }
        }
    }
}
