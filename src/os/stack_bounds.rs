//! Where the stacks of this process's threads lie, told from outside of them.
//!
//! The main thread's is `[stack]` of `/proc/self/maps`, up to what a program is given at its start. Another
//! thread's stack and what libc keeps of the thread lie in one block, the stack below; libc registers an address
//! in the latter with the kernel (the head of the list of robust mutexes), and the kernel tells it to whoever
//! asks. So the stack goes from the start of the mapping that holds that address up to it. glibc registers every
//! thread; musl does when a thread first locks a robust mutex, that is, mostly not, and then the
//! thread's own pointer has to be learnt from itself: [`StackBounds::below`].
//!
//! Since Linux 6.11 the file of mappings answers for one address (`PROCMAP_QUERY`): 0.6 us, however many mappings
//! there are, and true at that moment. Older kernels have it read whole, some 0.5 us a line and two lines a
//! thread, and what is told is as of then. Nothing is kept for the next who asks: a thread that ends may leave
//! its id and its place to another with less stack, and reading by the bounds of the first would fault.

#![allow(unsafe_code)]

use crate::base::spare;
use std::ffi::c_void;
use std::fs::File;
use std::io::{self, Read as _};
use std::ops::Range;
use std::ptr;

use super::syscalls::{Optional, permit};
use rustix::io::Errno;
use rustix::ioctl::{Updater, ioctl, opcode};

/// The kernel maps nothing by itself this far below the top of the main stack.
const MAIN_GAP: u64 = 128 << 20;

/// The mappings of this process.
pub struct StackBounds {
    pid: u32,
    main_end: Option<u64>,
    mappings: Mappings,
}

enum Mappings {
    /// Asked for one at a time.
    Asked(File),
    /// Readable and writable ones, by address, as they were at one moment.
    Read(Vec<Range<u64>>),
}

impl StackBounds {
    /// Opens `/proc/self/maps`, and reads it where it answers no questions.
    pub fn open() -> io::Result<Self> {
        let pid = std::process::id();
        let mut maps = spare::with(|| File::open("/proc/self/maps"))?;
        let given = given_at_start();
        if is_main_stack(given, &maps) {
            let main_end = Some(given);
            return Ok(Self { pid, main_end, mappings: Mappings::Asked(maps) });
        }
        let mut lines = Vec::new();
        maps.read_to_end(&mut lines)?;
        Ok(Self::parse(pid, given, &lines))
    }

    fn parse(pid: u32, given: u64, maps: &[u8]) -> Self {
        let (mut writable, mut main_end) = (Vec::new(), None);
        for line in maps.split(|&byte| byte == b'\n') {
            let mut fields = line.split(|&byte| byte == b' ');
            let Some(range) = fields.next().and_then(range) else { continue };
            if line.ends_with(STACK) {
                main_end = Some(if range.contains(&given) { given } else { range.end });
            } else if fields.next().is_some_and(|permissions| permissions.starts_with(b"rw")) {
                writable.push(range);
            }
        }
        Self { pid, main_end, mappings: Mappings::Read(writable) }
    }

    /// The stack of the thread `tid` of this process; none when nobody tells.
    pub fn of(&self, tid: u32) -> Option<Range<u64>> {
        if tid == self.pid {
            let end = self.main_end?;
            return Some(end.saturating_sub(MAIN_GAP)..end);
        }
        permit(Optional::RobustList).ok()?;
        let (mut head, mut size) = (ptr::null_mut::<c_void>(), 0usize);
        // SAFETY: the kernel writes a pointer and a size, which it is given places for.
        let failed =
            unsafe { libc::syscall(libc::SYS_get_robust_list, tid, &raw mut head, &raw mut size) };
        if failed == 0 && !head.is_null() { self.below(head as u64) } else { None }
    }

    /// The stack below `thread`, an address in what libc keeps of a thread that is not the main one.
    pub fn below(&self, thread: u64) -> Option<Range<u64>> {
        let start = match &self.mappings {
            Mappings::Asked(maps) => {
                let mut question = Question::about(thread);
                question.flags = READABLE | WRITABLE;
                question.ask(maps).ok()?;
                question.start
            }
            Mappings::Read(writable) => {
                let after = writable.partition_point(|mapping| mapping.start <= thread);
                let mapping = writable.get(after.checked_sub(1)?)?;
                mapping.contains(&thread).then_some(mapping.start)?
            }
        };
        Some(start..thread & !7)
    }
}

/// What the kernel calls the main thread's stack.
const STACK: &[u8] = b"[stack]";

/// Where the random bytes lie that every program is started with, or the word before their end: above the main
/// thread's first frame, and below the environment and a gap of up to 8 KiB, which are no frames and need no copy.
fn given_at_start() -> u64 {
    // SAFETY: takes a number and gives one.
    unsafe { libc::getauxval(libc::AT_RANDOM) & !7 }
}

/// Whether the kernel answers, and that the mapping at this address is the main thread's stack.
fn is_main_stack(address: u64, maps: &File) -> bool {
    let mut name = [0u8; 16];
    let mut question = Question::about(address);
    question.name = &raw mut name as u64;
    question.name_size = name.len() as u32;
    question.ask(maps).is_ok()
        && name.strip_prefix(STACK).is_some_and(|rest| rest.first() == Some(&0))
}

/// `PROCMAP_QUERY_VMA_READABLE` and `_WRITABLE`: only such mappings.
const READABLE: u64 = 1;
const WRITABLE: u64 = 2;

/// `struct procmap_query` of `linux/fs.h`.
#[repr(C)]
#[derive(Default)]
struct Question {
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

impl Question {
    fn about(address: u64) -> Self {
        Self { size: size_of::<Self>() as u64, address, ..Self::default() }
    }

    /// Lets the kernel answer: `ENOENT` when there is no such mapping at the address.
    fn ask(&mut self, maps: &File) -> Result<(), Errno> {
        permit(Optional::Ioctl).map_err(|_| Errno::PERM)?;
        const QUERY: rustix::ioctl::Opcode = opcode::read_write::<Question>(b'f', 17);
        // SAFETY: the kernel takes this struct for that number, and writes into it and, as far as `name_size`
        // goes, to `name`, which is 0 or leads to that many bytes.
        unsafe { ioctl(maps, Updater::<QUERY, Self>::new(self)) }
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
    use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

    #[test]
    fn lines_of_maps_read_as_stacks() {
        let lines = b"1000-2000 r-xp 00000000 fe:01 1 /a\n\
            3000-5000 rw-p 00000000 00:00 0 \n\
            5000-6000 ---p 00000000 00:00 0 \n\
            f000000000-f000010000 rw-p 00000000 00:00 0    [stack]\nx\n\n";
        let bounds = StackBounds::parse(7, 0xf0_0000_e010, lines);
        assert_eq!(bounds.below(0x4ff4), Some(0x3000..0x4ff0));
        for none in [0x1800, 0x2fff, 0x5000, 0xf0_0000_8000, u64::MAX] {
            assert_eq!(bounds.below(none), None, "{none:x}");
        }
        for (given, end) in [(0xf0_0000_e010, 0xf0_0000_e010), (0, 0xf0_0001_0000)] {
            let main = StackBounds::parse(7, given, lines).of(7).unwrap();
            assert_eq!(
                main,
                end - MAIN_GAP..end,
                "what a program is given at its start is no frame"
            );
        }
    }

    #[test]
    fn a_threads_stack_holds_its_locals_both_ways() {
        std::thread::spawn(|| {
            let local = 1u8;
            let address = &raw const local as u64;
            let bounds = StackBounds::open().unwrap();
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

    #[test]
    fn what_the_kernel_answers_is_what_its_list_says() {
        let length = 1 << 16;
        // SAFETY: an anonymous mapping at a place of the kernel's choice touches nothing that exists.
        let read_only =
            unsafe { mmap_anonymous(ptr::null_mut(), length, ProtFlags::READ, MapFlags::PRIVATE) };
        let read_only = read_only.unwrap() as u64;
        std::thread::spawn(move || {
            let pid = std::process::id();
            let listed = StackBounds::parse(
                pid,
                given_at_start(),
                &std::fs::read("/proc/self/maps").unwrap(),
            );
            let asked = StackBounds::open().unwrap();
            assert!(listed.main_end.is_some());
            assert_eq!(asked.main_end, listed.main_end);
            let own = crate::os::threads::current();
            assert_eq!(asked.of(own), listed.of(own));
            let own = thread_pointer();
            assert!(asked.below(own).is_some());
            for address in [own, read_only + 8, 8, u64::MAX] {
                assert_eq!(asked.below(address), listed.below(address), "{address:x}");
            }
            assert_eq!(asked.below(read_only + 8), None);
        })
        .join()
        .unwrap();
    }
}
