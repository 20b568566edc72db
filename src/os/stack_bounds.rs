//! Where the stacks of this process's threads lie, told from outside of them.
//!
//! The main thread's is `[stack]` of `/proc/self/maps`. Another thread's stack and what libc keeps of
//! the thread lie in one block, the stack below; libc registers an address in the latter with the
//! kernel (the head of the list of robust mutexes), and the kernel tells it to whoever asks. So the
//! stack goes from the start of the mapping that holds that address up to it. glibc registers every
//! thread; musl does when a thread first locks a robust mutex, that is, mostly not, and then the
//! thread's own pointer has to be learnt from itself: [`StackBounds::below`].

#![allow(unsafe_code)]

use std::ffi::c_void;
use std::fs;
use std::io;
use std::ops::Range;
use std::ptr;

/// The kernel maps nothing by itself this far below the top of the main stack.
const MAIN_GAP: u64 = 128 << 20;

/// The mappings as they were at one moment.
pub struct StackBounds {
    /// Readable and writable, by address.
    writable: Vec<Range<u64>>,
    main_end: Option<u64>,
}

impl StackBounds {
    /// Reads `/proc/self/maps`: some 0.1 ms.
    pub fn read() -> io::Result<Self> {
        Ok(Self::parse(&fs::read("/proc/self/maps")?))
    }

    fn parse(maps: &[u8]) -> Self {
        let mut bounds = Self { writable: Vec::new(), main_end: None };
        for line in maps.split(|&byte| byte == b'\n') {
            let mut fields = line.split(|&byte| byte == b' ');
            let Some(range) = fields.next().and_then(range) else { continue };
            if line.ends_with(b"[stack]") {
                bounds.main_end = Some(range.end);
            } else if fields.next().is_some_and(|permissions| permissions.starts_with(b"rw")) {
                bounds.writable.push(range);
            }
        }
        bounds
    }

    /// The stack of the thread `tid` of this process; none when nobody tells.
    pub fn of(&self, tid: u32) -> Option<Range<u64>> {
        if tid == std::process::id() {
            let end = self.main_end?;
            return Some(end.saturating_sub(MAIN_GAP)..end);
        }
        let (mut head, mut size) = (ptr::null_mut::<c_void>(), 0usize);
        // SAFETY: the kernel writes a pointer and a size, which it is given places for.
        let failed =
            unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut size) };
        if failed == 0 && !head.is_null() { self.below(head as u64) } else { None }
    }

    /// The stack below `thread`, an address in what libc keeps of a thread that is not the main one.
    pub fn below(&self, thread: u64) -> Option<Range<u64>> {
        let after = self.writable.partition_point(|mapping| mapping.start <= thread);
        let mapping = self.writable.get(after.checked_sub(1)?)?;
        mapping.contains(&thread).then_some(mapping.start..thread & !7)
    }
}

/// `7f00-7f08`
fn range(field: &[u8]) -> Option<Range<u64>> {
    let (start, end) = std::str::from_utf8(field).ok()?.split_once('-')?;
    Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::signal_context::thread_pointer;

    #[test]
    fn lines_of_maps_read_as_stacks() {
        let bounds = StackBounds::parse(
            b"1000-2000 r-xp 00000000 fe:01 1 /a\n\
              3000-5000 rw-p 00000000 00:00 0 \n\
              5000-6000 ---p 00000000 00:00 0 \n\
              f000000000-f000010000 rw-p 00000000 00:00 0    [stack]\nx\n\n",
        );
        assert_eq!(bounds.below(0x4ff4), Some(0x3000..0x4ff0));
        for none in [0x1800, 0x2fff, 0x5000, 0xf0_0000_8000, u64::MAX] {
            assert_eq!(bounds.below(none), None, "{none:x}");
        }
        let main = bounds.of(std::process::id()).unwrap();
        assert_eq!(main, 0xf0_0001_0000 - MAIN_GAP..0xf0_0001_0000);
    }

    #[test]
    fn a_threads_stack_holds_its_locals_both_ways() {
        std::thread::spawn(|| {
            let local = 1u8;
            let address = &raw const local as u64;
            let bounds = StackBounds::read().unwrap();
            // SAFETY: takes no pointer and cannot fail.
            let tid = unsafe { libc::gettid() } as u32;
            if cfg!(target_env = "gnu") {
                assert!(bounds.of(tid).unwrap().contains(&address));
            }
            let below = bounds.below(thread_pointer()).unwrap();
            assert!(below.contains(&address) && below.end - address < 64 << 10);
        })
        .join()
        .unwrap();
    }
}
