//! Memory outside of the heap: anonymous mappings, exposed as atomics or, once filled, as bytes.
//!
//! The heap profiler keeps its tables here. It runs inside the allocator, and must not depend on
//! the heap that it may have to diagnose. All words are `AtomicU64`, so tables built on them need
//! no unsafe code, and concurrent readers never read torn words.
//!
//! A mapping uses memory only for pages that were written, regardless of memory settings of the
//! process or machine:
//!
//! ```text
//! mlockall(MCL_FUTURE)        mapped without access (not populated), unlocked, made accessible
//! huge pages `always`         disabled for the mapping: one write would take 2 MiB
//! RLIMIT_AS                   a table takes at most an eighth of the remaining address space
//! RLIMIT_AS, overcommit = 2   the call fails, the table is absent, and its user counts the losses
//! ```

#![allow(unsafe_code, reason = "mapped memory, exposed as slices")]

use std::io;
use std::ops::Deref;
use std::ptr;
use std::sync::atomic::{AtomicPtr, AtomicU64, Ordering};

use rustix::mm::munmap;

use crate::base::Bytes;

/// Divisor of the remaining address space that one mapping, or one buffer, may use.
pub const ADDRESS_SPACE_DIVISOR: u64 = 8;

/// A block of zeroed words that is mapped on first use and stays mapped.
///
/// The constructor is `const`, so it can be used in a static before any other code has run. Pages
/// use memory only once they are written.
pub struct MappedWords {
    start: AtomicPtr<AtomicU64>,
    words: usize,
}

impl MappedWords {
    /// Creates an unmapped block of `words` words.
    pub const fn new(words: usize) -> Self {
        Self { start: AtomicPtr::new(ptr::null_mut()), words }
    }

    /// Returns the words if they are mapped; wait-free.
    pub fn get(&self) -> Option<&[AtomicU64]> {
        let start = self.start.load(Ordering::Acquire);
        // SAFETY: a start that is not null was published by `get_or_map` and points to `words`
        // zeroed words that stay mapped until `drop`, which the borrow of `self` excludes.
        (!start.is_null()).then(|| unsafe { std::slice::from_raw_parts(start, self.words) })
    }

    /// Returns the words, mapping them if necessary. Returns `None` if there is no memory for them.
    /// Lock-free: if two threads map at once, one of them unmaps its own mapping.
    pub fn get_or_map(&self) -> Option<&[AtomicU64]> {
        if let Some(words) = self.get() {
            return Some(words);
        }
        let mapped = map_zeroed(self.size_bytes()).ok()?.cast::<AtomicU64>();
        let published = self.start.compare_exchange(
            ptr::null_mut(),
            mapped,
            Ordering::AcqRel,
            Ordering::Acquire,
        );
        if published.is_err() {
            // SAFETY: `mapped` was mapped above with this length and was not published.
            let _ = unsafe { munmap(mapped.cast(), self.size_bytes()) };
        }
        self.get()
    }

    const fn size_bytes(&self) -> usize {
        self.words * size_of::<AtomicU64>()
    }
}

impl Drop for MappedWords {
    fn drop(&mut self) {
        let start = *self.start.get_mut();
        if !start.is_null() {
            // SAFETY: mapped by `get_or_map` with this length; `&mut self` excludes every borrow of
            // it.
            let _ = unsafe { munmap(start.cast(), self.size_bytes()) };
        }
    }
}

/// A copy of bytes in a private mapping. Later changes of the source do not affect it.
pub(crate) struct MappedCopy {
    start: *const u8,
    length: usize,
}

// SAFETY: after `with_contents` the bytes are only read, and the mapping is owned.
unsafe impl Send for MappedCopy {}
// SAFETY: as above.
unsafe impl Sync for MappedCopy {}

impl MappedCopy {
    /// Maps `length` bytes and calls `fill` to write them.
    ///
    /// # Errors
    ///
    /// Returns an error if there is no memory for the bytes, or the error of `fill`.
    pub(crate) fn with_contents(
        length: usize,
        fill: impl FnOnce(&mut [u8]) -> io::Result<()>,
    ) -> io::Result<Self> {
        if length == 0 {
            return Ok(Self { start: ptr::dangling(), length });
        }
        let start = map_zeroed(length)?;
        let copy = Self { start, length };
        // SAFETY: `length` zeroed bytes, mapped above and not shared with anything yet.
        fill(unsafe { std::slice::from_raw_parts_mut(start, length) })?;
        Ok(copy)
    }
}

impl Deref for MappedCopy {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        // SAFETY: mapped with this length until `drop` (or dangling and empty), and never written
        // again.
        unsafe { std::slice::from_raw_parts(self.start, self.length) }
    }
}

impl Drop for MappedCopy {
    fn drop(&mut self) {
        if self.length > 0 {
            // SAFETY: mapped by `with_contents` with this length; `&mut self` excludes every borrow
            // of it.
            let _ = unsafe { munmap(self.start.cast_mut().cast(), self.length) };
        }
    }
}

/// Maps `length` zeroed bytes that use memory only where they are written.
#[cfg(all(target_os = "linux", not(miri)))]
fn map_zeroed(length: usize) -> io::Result<*mut u8> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

    /// Size up to which the limit is not checked: such mappings cannot exhaust the address space.
    const UNCHECKED_BYTES: usize = 256 << 10;
    if length > UNCHECKED_BYTES
        && remaining_address_space()
            .is_some_and(|remaining| length as u64 > remaining.get() / ADDRESS_SPACE_DIVISOR)
    {
        return Err(io::ErrorKind::OutOfMemory.into());
    }
    let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
    // Mapped without access, because `mlockall(MCL_FUTURE)` populates a writable mapping at once.
    // SAFETY: an anonymous mapping at an address chosen by the kernel affects no existing memory.
    let start = unsafe { mmap_anonymous(ptr::null_mut(), length, ProtFlags::empty(), flags) }?;
    // SAFETY: mapped above with this length and not shared with anything yet.
    let result = unsafe { make_accessible(start.cast(), length, may_unlock) };
    if let Err(error) = result {
        // SAFETY: as above.
        let _ = unsafe { munmap(start, length) };
        return Err(error);
    }
    Ok(start.cast())
}

/// Makes a fresh mapping without access readable and writable.
///
/// # Safety
///
/// `start` must point to a mapping of `length` bytes that the caller owns.
#[cfg(all(target_os = "linux", not(miri)))]
unsafe fn make_accessible(
    start: *mut u8,
    length: usize,
    may_unlock: fn() -> bool,
) -> io::Result<()> {
    // Size of the steps in which a locked mapping is made accessible and emptied. Bounds the memory
    // that is populated for a moment.
    const STEP_BYTES: usize = 256 << 10;
    let advise = |at: *mut u8, length: usize, advice| {
        // SAFETY: the caller's mapping; neither advice changes the content of fresh pages.
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
    // Of the mappings made here, MADV_DONTNEED fails only for locked ones.
    if advise(start, length, libc::MADV_DONTNEED) == 0 {
        return protect(start, length);
    }
    // SAFETY: the caller's mapping.
    if may_unlock() && unsafe { libc::munlock(start.cast(), length) } == 0 {
        return protect(start, length);
    }
    for at in (0..length).step_by(STEP_BYTES) {
        let size = STEP_BYTES.min(length - at);
        // SAFETY: `at` is within the mapping.
        let at = unsafe { start.add(at) };
        protect(at, size)?;
        // Since Linux 5.18; earlier kernels keep the memory populated.
        advise(at, size, libc::MADV_DONTNEED_LOCKED);
    }
    Ok(())
}

/// Returns `true` if the process is known to have no system call filter. A filter may kill the
/// process for calling `munlock`.
#[cfg(all(target_os = "linux", not(miri)))]
pub(super) fn may_unlock() -> bool {
    use rustix::fs::{Mode, OFlags};

    // Runs in the allocator's path: no heap buffer. The file has about 1.5 KiB.
    let mut status = [0u8; 4096];
    let read =
        rustix::fs::open("/proc/self/status", OFlags::RDONLY | OFlags::CLOEXEC, Mode::empty())
            .and_then(|file| rustix::io::read(file, &mut status[..]));
    let status = status.get(..read.unwrap_or(0)).unwrap_or_default();
    status.split(|&byte| byte == b'\n').any(|line| line == b"Seccomp:\t0")
}

/// Returns the address space left below `RLIMIT_AS`. Returns `None` if there is no such limit, or
/// if the size in use is unknown. Neither locks nor allocates; costs 0.1 us without the limit and 5
/// us with it.
#[cfg(all(target_os = "linux", not(miri)))]
pub fn remaining_address_space() -> Option<Bytes> {
    use rustix::fs::{Mode, OFlags};

    let limit = rustix::process::getrlimit(rustix::process::Resource::As).current?;
    let mut statm = [0u8; 128];
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::open("/proc/self/statm", flags, Mode::empty()).ok()?;
    let read = rustix::io::read(file, &mut statm[..]).ok()?;
    let pages = statm.get(..read)?.split(|&byte| byte == b' ').next()?;
    let pages: u64 = std::str::from_utf8(pages).ok()?.parse().ok()?;
    let used = pages.saturating_mul(rustix::param::page_size() as u64);
    Some(Bytes(limit.saturating_sub(used)))
}

/// Returns `None`: not available on this platform.
#[cfg(any(not(target_os = "linux"), miri))]
pub fn remaining_address_space() -> Option<Bytes> {
    None
}

/// Maps `length` zeroed bytes.
#[cfg(any(not(target_os = "linux"), miri))]
fn map_zeroed(length: usize) -> io::Result<*mut u8> {
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: an anonymous mapping at an address chosen by the kernel affects no existing memory.
    let start = unsafe { mmap_anonymous(ptr::null_mut(), length, protection, MapFlags::PRIVATE) }?;
    Ok(start.cast())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn concurrent_first_uses_map_words_once() {
        let block = MappedWords::new(1000);
        assert!(block.get().is_none());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| block.get_or_map().unwrap()[999].fetch_add(1, Ordering::Relaxed));
            }
        });
        let words = block.get().unwrap();
        assert_eq!(words.len(), 1000);
        assert_eq!(words[999].load(Ordering::Relaxed), 4);
        assert!(words[..999].iter().all(|word| word.load(Ordering::Relaxed) == 0));
    }

    #[test]
    #[cfg_attr(miri, ignore = "takes the memory from the machine")]
    fn failed_mapping_returns_none() {
        assert!(MappedWords::new(1 << 56).get_or_map().is_none());
        assert!(MappedCopy::with_contents(usize::MAX >> 8, |_| Ok(())).is_err());
    }

    #[test]
    fn mapped_copy_holds_the_filled_bytes() {
        let copy = MappedCopy::with_contents(5000, |bytes| {
            bytes[4999] = 7;
            Ok(())
        });
        let copy = copy.unwrap();
        assert_eq!((copy.len(), copy[0], copy[4999]), (5000, 0, 7));
        assert!(MappedCopy::with_contents(0, |_| Ok(())).unwrap().is_empty());
        let failed = MappedCopy::with_contents(8, |_| Err(io::ErrorKind::UnexpectedEof.into()));
        assert_eq!(failed.err().map(|error| error.kind()), Some(io::ErrorKind::UnexpectedEof));
    }

    /// Returns the fields of the mapping that contains `address`, from `/proc/self/smaps`.
    #[cfg(all(target_os = "linux", not(miri)))]
    fn mapping_of(address: u64) -> Vec<String> {
        let smaps = std::fs::read_to_string("/proc/self/smaps").unwrap();
        let is_header =
            |line: &str| line.split(' ').next().is_some_and(|field| field.contains('-'));
        let range = |line: &str| {
            let (start, end) = line.split(' ').next()?.split_once('-')?;
            Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
        };
        let contains_address = |line: &&str| {
            is_header(line) && range(line).is_some_and(|range| range.contains(&address))
        };
        let lines = smaps.lines().skip_while(|line| !contains_address(line)).skip(1);
        lines.take_while(|line| !is_header(line)).map(str::to_owned).collect()
    }

    #[cfg(all(target_os = "linux", not(miri)))]
    fn kib(mapping: &[String], name: &str) -> u64 {
        let line = mapping.iter().find(|line| line.starts_with(name)).unwrap();
        line.split_whitespace().nth(1).unwrap().parse().unwrap()
    }

    /// One write would take 2 MiB if the machine enables huge pages for all mappings.
    #[test]
    #[cfg(all(target_os = "linux", not(miri)))]
    fn mapping_disables_huge_pages() {
        let block = MappedWords::new(1 << 20);
        let mapping = mapping_of(block.get_or_map().unwrap().as_ptr() as u64);
        let has_huge_pages = std::path::Path::new("/sys/kernel/mm/transparent_hugepage").exists();
        let flags = mapping.iter().find(|line| line.starts_with("VmFlags:")).unwrap();
        assert_eq!(flags.split(' ').any(|flag| flag == "nh"), has_huge_pages, "{mapping:?}");
    }

    /// Covers a mapping that is unlocked, one that is emptied because a system call filter may
    /// forbid `munlock`, and the stack of a thread.
    #[test]
    #[cfg(all(target_os = "linux", not(miri)))]
    fn mlockall_populates_only_written_pages() {
        use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

        // SAFETY: takes no pointer.
        if unsafe { libc::mlockall(libc::MCL_FUTURE) } != 0 {
            println!("skipped: mlockall needs CAP_IPC_LOCK or RLIMIT_MEMLOCK");
            return;
        }
        let length = 8 << 20;
        let resident = |may_unlock: fn() -> bool| {
            let flags = MapFlags::PRIVATE | MapFlags::NORESERVE;
            // SAFETY: a mapping at an address chosen by the kernel, owned by this closure.
            unsafe {
                let start = mmap_anonymous(ptr::null_mut(), length, ProtFlags::empty(), flags);
                let start: *mut u8 = start.unwrap().cast();
                make_accessible(start, length, may_unlock).unwrap();
                start.write(1);
                let mapping = mapping_of(start as u64);
                munmap(start.cast(), length).unwrap();
                (kib(&mapping, "Rss:"), kib(&mapping, "Locked:"))
            }
        };
        assert_eq!(resident(|| true), (4, 0));
        assert!(resident(|| false).0 <= 8);
        let thread = std::thread::Builder::new().stack_size(4 << 20).spawn(|| {
            let here = 0u8;
            let here = (&raw const here).addr() as u64;
            let before = kib(&mapping_of(here), "Rss:");
            crate::os::unused_stack::release();
            (before, kib(&mapping_of(here), "Rss:"))
        });
        let (before, after) = thread.unwrap().join().unwrap();
        assert!(before >= 4 << 10 && after <= 256, "{before} and {after} KiB");
        // SAFETY: takes no pointer.
        unsafe { libc::munlockall() };
    }
}
