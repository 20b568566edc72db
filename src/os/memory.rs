//! Memory that is not the heap: anonymous mappings, handed out as atomics.
//!
//! The heap profiler keeps its tables here, because it runs inside the allocator, and because its own
//! memory must not depend on a heap that may be what is going wrong. Everything is `AtomicU64`, so a
//! table built on it needs no unsafe of its own, and whoever reads beside a writer reads whole words.

#![allow(unsafe_code)]

use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

/// A run of zeroed words that is mapped when it is first asked for and stays mapped.
///
/// `const`, so that it can stand in a static and be there before anything has run. Pages take memory
/// only once they are written (unless the program locks its future memory with `mlockall`, which is why
/// tables grow by chunks instead of reserving their cap).
pub struct Chunk {
    start: AtomicPtr<AtomicU64>,
    words: usize,
}

impl Chunk {
    /// A chunk of `words` words, unmapped.
    pub const fn new(words: usize) -> Self {
        Self { start: AtomicPtr::new(ptr::null_mut()), words }
    }

    /// The words, if they are mapped; wait-free.
    pub fn get(&self) -> Option<&[AtomicU64]> {
        let start = self.start.load(Ordering::Acquire);
        // SAFETY: a start that is not null was published by `get_or_map` and points to `words` zeroed
        // words that stay mapped until `drop`, which the borrow of `self` excludes.
        (!start.is_null()).then(|| unsafe { std::slice::from_raw_parts(start, self.words) })
    }

    /// The words, mapped now if they were not; none when the kernel refuses. Lock-free: of two threads
    /// that map at once one wins, and the other unmaps its own.
    pub fn get_or_map(&self) -> Option<&[AtomicU64]> {
        if let Some(words) = self.get() {
            return Some(words);
        }
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        let flags = MapFlags::PRIVATE;
        // FreeBSD reserves nothing for a mapping, and has no word for it; Miri neither.
        #[cfg(not(any(target_os = "freebsd", miri)))]
        let flags = flags | MapFlags::NORESERVE;
        // SAFETY: an anonymous mapping at a place of the kernel's choice touches nothing that exists.
        let fresh = unsafe { mmap_anonymous(ptr::null_mut(), self.bytes(), protection, flags) };
        let fresh = fresh.ok()?.cast::<AtomicU64>();
        let (success, failure) = (Ordering::AcqRel, Ordering::Acquire);
        if self.start.compare_exchange(ptr::null_mut(), fresh, success, failure).is_err() {
            // SAFETY: `fresh` was mapped above with this length and has been shown to nobody.
            let _ = unsafe { munmap(fresh.cast(), self.bytes()) };
        }
        self.get()
    }

    const fn bytes(&self) -> usize {
        self.words * size_of::<AtomicU64>()
    }
}

impl Drop for Chunk {
    fn drop(&mut self) {
        let start = *self.start.get_mut();
        if !start.is_null() {
            // SAFETY: mapped by `get_or_map` with this length; `&mut self` excludes every borrow of it.
            let _ = unsafe { munmap(start.cast(), self.bytes()) };
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_chunk_is_mapped_once_and_zeroed() {
        let chunk = Chunk::new(1000);
        assert!(chunk.get().is_none());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| chunk.get_or_map().unwrap()[999].fetch_add(1, Ordering::Relaxed));
            }
        });
        let words = chunk.get().unwrap();
        assert_eq!(words.len(), 1000);
        assert_eq!(words[999].load(Ordering::Relaxed), 4);
        assert!(words[..999].iter().all(|word| word.load(Ordering::Relaxed) == 0));
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes the memory from the machine")]
    fn a_chunk_that_cannot_be_mapped_is_none() {
        assert!(Chunk::new(1 << 56).get_or_map().is_none());
    }
}
