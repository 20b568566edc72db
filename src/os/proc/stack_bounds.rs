//! Stack bounds of this process's threads, determined from other threads.
//!
//! The main thread's stack is `[stack]` of `/proc/self/maps`, up to the data that a program
//! receives at its start. The stack of another thread and libc's descriptor of that thread lie in
//! one block, the stack below. libc registers an address within the descriptor with the kernel: the
//! head of the robust mutex list. `get_robust_list` returns it.
//!
//! ```text
//! stack = start of the mapping that contains the robust list head .. robust list head
//! ```
//!
//! glibc registers every thread. musl registers a thread only when it first locks a robust mutex,
//! so mostly not. The thread's own thread pointer is then needed: [`StackBounds::containing`].
//!
//! Since Linux 6.11 the maps file answers queries for one address (`PROCMAP_QUERY`): 0.6 us,
//! regardless of the number of mappings, and valid at that moment. On older kernels the file is
//! read whole, at about 0.5 us a line and two lines per thread. The results are then as of that
//! time. Results are never cached: the tid and address range may be reused by a thread with a
//! smaller stack, and a read by the old bounds would fault.

#![allow(unsafe_code, reason = "`get_robust_list`, `getauxval` and `ioctl`, with pointers")]

use crate::base::spare;
use std::ffi::c_void;
use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Range;
use std::ptr;

use crate::os::syscalls::{OptionalCall, permit};
use rustix::io::Errno;
use rustix::ioctl::{Updater, ioctl, opcode};

/// Distance below the top of the main stack in which the kernel maps nothing by itself.
const MAIN_STACK_GAP: u64 = 128 << 20;

/// The mappings of this process.
pub struct StackBounds {
    pid: u32,
    main_stack_end: Option<u64>,
    mappings: Mappings,
}

enum Mappings {
    /// The maps file, queried for one address at a time.
    Ioctl(File),
    /// Readable and writable mappings, sorted by address, read at one moment.
    Parsed(Vec<Range<u64>>),
}

impl StackBounds {
    /// Opens `/proc/self/maps`, and reads it whole if it does not support queries.
    pub fn open() -> io::Result<Self> {
        let pid = std::process::id();
        let mut maps = spare::open_with_retry(|| File::open("/proc/self/maps"))?;
        let initial_top = initial_stack_top();
        if is_main_stack(initial_top, &maps) {
            let main_end = Some(initial_top);
            return Ok(Self { pid, main_stack_end: main_end, mappings: Mappings::Ioctl(maps) });
        }
        let mut lines = Vec::new();
        maps.read_to_end(&mut lines)?;
        Ok(Self::parse(pid, initial_top, &lines))
    }

    fn parse(pid: u32, initial_top: u64, maps: &[u8]) -> Self {
        let mut writable = Vec::new();
        let mut main_end = None;
        for line in maps.split(|&byte| byte == b'\n') {
            let mut fields = line.split(|&byte| byte == b' ');
            let Some(range) = fields.next().and_then(parse_range) else { continue };
            if line.ends_with(MAIN_STACK_NAME) {
                main_end = Some(if range.contains(&initial_top) { initial_top } else { range.end });
            } else if fields.next().is_some_and(|permissions| permissions.starts_with(b"rw")) {
                writable.push(range);
            }
        }
        Self { pid, main_stack_end: main_end, mappings: Mappings::Parsed(writable) }
    }

    /// Returns the stack of the thread `tid` of this process, or `None` if it is unknown.
    pub fn for_thread(&self, tid: u32) -> Option<Range<u64>> {
        if tid == self.pid {
            let end = self.main_stack_end?;
            return Some(end.saturating_sub(MAIN_STACK_GAP)..end);
        }
        permit(OptionalCall::RobustList).ok()?;
        let mut head = ptr::null_mut::<c_void>();
        let mut size = 0usize;
        // SAFETY: the kernel writes a pointer and a size through the two pointers.
        let failed =
            unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut size) };
        if failed == 0 && !head.is_null() { self.containing(head as u64) } else { None }
    }

    /// Returns the stack below `thread`, an address in libc's descriptor of a thread other than the
    /// main one.
    pub fn containing(&self, address: u64) -> Option<Range<u64>> {
        let start = match &self.mappings {
            Mappings::Ioctl(maps) => {
                let mut query = ProcmapQuery::for_address(address);
                query.flags = VMA_READABLE | VMA_WRITABLE;
                query.run(maps).ok()?;
                query.start
            }
            Mappings::Parsed(writable) => {
                let after = writable.partition_point(|mapping| mapping.start <= address);
                let mapping = writable.get(after.checked_sub(1)?)?;
                mapping.contains(&address).then_some(mapping.start)?
            }
        };
        Some(start..address & !7)
    }
}

/// Name of the main thread's stack in the kernel's list.
const MAIN_STACK_NAME: &[u8] = b"[stack]";

/// Returns the address of the random bytes of `AT_RANDOM`, rounded down to a word.
///
/// It is above the main thread's first frame. The environment and a gap of up to 8 KiB lie above
/// it; they are no frames and need no copy.
fn initial_stack_top() -> u64 {
    // SAFETY: takes and returns a number.
    unsafe { libc::getauxval(libc::AT_RANDOM) & !7 }
}

/// Returns `true` if the kernel supports queries and the mapping at `address` is the main thread's
/// stack.
fn is_main_stack(address: u64, maps: &File) -> bool {
    let mut name = [0u8; 16];
    let mut query = ProcmapQuery::for_address(address);
    query.name = &raw mut name as u64;
    query.name_size = name.len() as u32;
    query.run(maps).is_ok()
        && name.strip_prefix(MAIN_STACK_NAME).is_some_and(|rest| rest.first() == Some(&0))
}

/// `PROCMAP_QUERY_VMA_READABLE` and `_WRITABLE`: restrict the query to such mappings.
const VMA_READABLE: u64 = 1;
const VMA_WRITABLE: u64 = 2;

/// `struct procmap_query` of `linux/fs.h`.
#[repr(C)]
#[derive(Default)]
struct ProcmapQuery {
    size: u64,
    flags: u64,
    address: u64,
    start: u64,
    end: u64,
    vma_flags: u64,
    page_size: u64,
    offset: u64,
    inode: u64,
    device: [u32; 2],
    name_size: u32,
    build_id_size: u32,
    name: u64,
    build_id: u64,
}

impl ProcmapQuery {
    fn for_address(address: u64) -> Self {
        Self { size: size_of::<Self>() as u64, address, ..Self::default() }
    }

    /// Runs the query. Fails with `ENOENT` if there is no such mapping at the address.
    fn run(&mut self, maps: &File) -> Result<(), Errno> {
        permit(OptionalCall::Ioctl).map_err(|_| Errno::PERM)?;
        const PROCMAP_QUERY: rustix::ioctl::Opcode = opcode::read_write::<ProcmapQuery>(b'f', 17);
        // SAFETY: the kernel expects this struct for that number. It writes to the struct and to
        // `name`, up to `name_size` bytes; `name` is 0 or points to that many bytes.
        unsafe { ioctl(maps, Updater::<PROCMAP_QUERY, Self>::new(self)) }
    }
}

/// Parses `7f00-7f08`.
fn parse_range(field: &[u8]) -> Option<Range<u64>> {
    let (start, end) = std::str::from_utf8(field).ok()?.split_once('-')?;
    Some(u64::from_str_radix(start, 16).ok()?..u64::from_str_radix(end, 16).ok()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::signal::context::thread_pointer;
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

    #[test]
    fn maps_lines_are_parsed_into_stack_bounds() {
        let lines = b"1000-2000 r-xp 00000000 fe:01 1 /a\n\
            3000-5000 rw-p 00000000 00:00 0 \n\
            5000-6000 ---p 00000000 00:00 0 \n\
            f000000000-f000010000 rw-p 00000000 00:00 0    [stack]\nx\n\n";
        let bounds = StackBounds::parse(7, 0xf0_0000_e010, lines);
        assert_eq!(bounds.containing(0x4ff4), Some(0x3000..0x4ff0));
        for none in [0x1800, 0x2fff, 0x5000, 0xf0_0000_8000, u64::MAX] {
            assert_eq!(bounds.containing(none), None, "{none:x}");
        }
        for (given, end) in [(0xf0_0000_e010, 0xf0_0000_e010), (0, 0xf0_0001_0000)] {
            let main = StackBounds::parse(7, given, lines).for_thread(7).unwrap();
            assert_eq!(
                main,
                end - MAIN_STACK_GAP..end,
                "what a program is given at its start is no frame"
            );
        }
    }

    #[test]
    fn stack_bounds_contain_the_threads_locals() {
        std::thread::spawn(|| {
            let local = 1u8;
            let address = &raw const local as u64;
            let bounds = StackBounds::open().unwrap();
            // SAFETY: takes no pointer and cannot fail.
            let tid = unsafe { libc::gettid() } as u32;
            if cfg!(target_env = "gnu") {
                assert!(bounds.for_thread(tid).unwrap().contains(&address));
            }
            let below = bounds.containing(thread_pointer()).unwrap();
            assert!(below.contains(&address) && below.end - address < 64 << 10);
        })
        .join()
        .unwrap();
    }

    #[test]
    fn procmap_query_matches_parsed_maps() {
        let length = 1 << 16;
        // SAFETY: an anonymous mapping at an address chosen by the kernel affects no existing
        // memory.
        let read_only =
            unsafe { mmap_anonymous(ptr::null_mut(), length, ProtFlags::READ, MapFlags::PRIVATE) };
        let read_only = read_only.unwrap() as u64;
        std::thread::spawn(move || {
            let pid = std::process::id();
            let parsed = StackBounds::parse(
                pid,
                initial_stack_top(),
                &std::fs::read("/proc/self/maps").unwrap(),
            );
            let queried = StackBounds::open().unwrap();
            assert!(parsed.main_stack_end.is_some());
            assert_eq!(queried.main_stack_end, parsed.main_stack_end);
            let own = crate::os::proc::threads::current_tid();
            assert_eq!(queried.for_thread(own), parsed.for_thread(own));
            let own = thread_pointer();
            assert!(queried.containing(own).is_some());
            for address in [own, read_only + 8, 8, u64::MAX] {
                assert_eq!(queried.containing(address), parsed.containing(address), "{address:x}");
            }
            assert_eq!(queried.containing(read_only + 8), None);
        })
        .join()
        .unwrap();
    }
}
