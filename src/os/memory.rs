//! Memory that is not the heap: anonymous mappings, handed out as atomics or, once filled, as bytes.
//!
//! The heap profiler keeps its tables here, because it runs inside the allocator, and because its own
//! memory must not depend on a heap that may be what is going wrong. Everything is `AtomicU64`, so a
//! table built on it needs no unsafe of its own, and readers beside a writer read whole words.
//!
//! A mapping takes memory only for the pages that are written, whatever the program or the machine asks
//! of *all* memory:
//!
//! ```text
//! mlockall(MCL_FUTURE)        mapped without access, where nothing is populated; unlocked; then opened
//! huge pages `always`         refused for the mapping: one write would take 2 MiB
//! RLIMIT_AS, overcommit = 2   the call fails, the table is absent, and its user counts what it lost
//! ```

#![allow(unsafe_code)]

use std::io;
use std::ops::Deref;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use rustix::mm::munmap;

/// A run of zeroed words that is mapped when it is first asked for and stays mapped.
///
/// `const`, so that it can stand in a static and be there before anything has run. Pages take memory
/// only once they are written.
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
        let fresh = map(self.bytes()).ok()?.cast::<AtomicU64>();
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

/// Bytes copied to memory of their own; nothing that happens to where they came from changes them.
pub(super) struct Copy {
    start: *const u8,
    length: usize,
}

// SAFETY: after `fill` the bytes are only read, and the mapping is owned.
unsafe impl Send for Copy {}
// SAFETY: as above.
unsafe impl Sync for Copy {}

impl Copy {
    /// Maps `length` bytes and has `fill` write them.
    ///
    /// # Errors
    ///
    /// If the kernel refuses the memory, or those of `fill`.
    pub(super) fn fill(
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> io::Result<()>,
    ) -> io::Result<Self> {
        if length == 0 {
            return Ok(Self { start: ptr::dangling(), length });
        }
        let start = map(length)?;
        let copy = Self { start, length };
        // SAFETY: `length` zeroed bytes, mapped above and shown to nothing else yet.
        fill(unsafe { std::slice::from_raw_parts_mut(start, length) })?;
        Ok(copy)
    }
}

impl Deref for Copy {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped with this length until `drop` (or dangling and empty), and never written again.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }
}

impl Drop for Copy {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: mapped by `fill` with this length; `&mut self` excludes every borrow of it.
            let _ = unsafe { munmap(self.start.cast_mut().cast(), self.length) };
        }
    }
}

/// Maps `length` zeroed bytes that take memory only where they are written.
#[cfg(all(target_os = "linux", not(miri)))]
fn map(length: usize) -> io::Result<*mut u8> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // Without access: with `mlockall(MCL_FUTURE)` a mapping that can be written is populated at once.
    // SAFETY: an anonymous mapping at a place of the kernel's choice touches nothing that exists.
    let start = unsafe { mmap_anonymous(ptr::null_mut(), length, ProtFlags::empty(), flags) }?;
    // SAFETY: mapped above with this length and shown to nothing else yet.
    let opened = unsafe { open(start.cast(), length) };
    if let Err(error) = opened {
        // SAFETY: as above.
        let _ = unsafe { munmap(start, length) };
        return Err(error);
    }
    Ok(start.cast())
}

/// Lets a fresh mapping without access be read and written.
///
/// # Safety
///
/// `start` must lead to a mapping of `length` bytes that is the caller's.
#[cfg(all(target_os = "linux", not(miri)))]
unsafe fn open(start: *mut u8, length: usize) -> io::Result<()> {
    // Opened and emptied at a time where a mapping stays locked: as much is populated for an instant.
    const PIECE: usize = 256 << 10;
    let advise = |at: *mut u8, length: usize, advice| {
        // SAFETY: the caller's mapping; neither advice changes what can be read from fresh pages.
        unsafe { libc::madvise(at.cast(), length, advice) }
    };
    let protect = |at: *mut u8, length: usize| {
        // SAFETY: the caller's mapping.
        match unsafe { libc::mprotect(at.cast(), length, libc::PROT_READ | libc::PROT_WRITE) } {
            0 => Ok(()),
            _ => Err(io::Error::last_os_error()),
        }
    };
    advise(start, length, libc::MADV_NOHUGEPAGE);
    // Refused for locked memory and for no other that is ours, so it says what this mapping is.
    if advise(start, length, libc::MADV_DONTNEED) == 0 {
        return protect(start, length);
    }
    // SAFETY: the caller's mapping.
    if may_unlock() && unsafe { libc::munlock(start.cast(), length) } == 0 {
        return protect(start, length);
    }
    for at in (0..length).step_by(PIECE) {
        let size = PIECE.min(length - at);
        // SAFETY: `at` is within the mapping.
        let at = unsafe { start.add(at) };
        protect(at, size)?;
        // Since Linux 5.18; before, the memory stays taken.
        advise(at, size, libc::MADV_DONTNEED_LOCKED);
    }
    Ok(())
}

/// Whether `munlock` cannot end the process: there is no filter of system calls.
#[cfg(all(target_os = "linux", not(miri)))]
fn may_unlock() -> bool {
    use rustix::fs::{Mode, OFlags};

    // In the allocator's path: no buffer on the heap. The file has about 1.5 KiB.
    let mut status = [0u8; 4096];
    let read =
        rustix::fs::open("/proc/self/status", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|file| rustix::io::read(file, &mut status[..]));
    let status = status.get(..read.unwrap_or(0)).unwrap_or_default();
    status.split(|&byte| byte == b'\n').any(|line| line == b"Seccomp:\t0")
}

/// Maps `length` zeroed bytes.
#[cfg(any(not(target_os = "linux"), miri))]
fn map(length: usize) -> io::Result<*mut u8> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: an anonymous mapping at a place of the kernel's choice touches nothing that exists.
    let start = unsafe { mmap_anonymous(ptr::null_mut(), length, protection, MapFlags::PRIVATE) }?;
    Ok(start.cast())
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
        assert!(Copy::fill(usize::MAX >> 8, |_| Ok(())).is_err());
    }

    #[test]
    fn a_copy_is_what_was_filled_in() {
        let copy = Copy::fill(5000, |bytes| {
            bytes[4999] = 7;
            Ok(())
        });
        let copy = copy.unwrap();
        assert_eq!((copy.len(), copy[0], copy[4999]), (5000, 0, 7));
        assert!(Copy::fill(0, |_| Ok(())).unwrap().is_empty());
        let failed = Copy::fill(8, |_| Err(io::ErrorKind::UnexpectedEof.into()));
        assert_eq!(failed.err().map(|error| error.kind()), Some(io::ErrorKind::UnexpectedEof));
    }
}
