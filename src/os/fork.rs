//! What a forked child inherits of the agent, and what is done about it.
//!
//! Threads do not survive `fork`, descriptors and statics do. Without a remedy a child would hold the listening
//! socket open (clients connect and get no answer), keep the lock of the incident directory after its parent has
//! exited, and believe that an agent is running. `pthread_atfork` gives one place for the remedy:
//!
//! ```text
//! before the fork:      no log event is being handed to the host's subscriber, which has locks
//! fork ─► child handler: mutexes that threads of the parent held count as abandoned (`base::fork_mutex`)
//!                        registered descriptors are replaced by an inert one (dup3)
//!                        OWNER = 0, so that an agent can be started here
//!                        own pid into the page shared with the parent
//! ```
//!
//! The child's handler makes system calls and stores atomics, nothing else: only what is async-signal-safe is allowed in a
//! child of a process with threads. `vfork`, `posix_spawn` and a bare `clone` do not call it. A child that
//! calls `exec` soon is not affected: all these descriptors are close-on-exec.
//!
//! A child that runs on without `exec` is reported twice, since either process may be gone: its parent's agent finds it by
//! the flag `PF_FORKNOEXEC` in `/proc/PID/stat` ([`unwatched_children`]), and the child logs one line as soon as it runs
//! code of marple on a thread that may log ([`notice`]).

#![allow(unsafe_code)]

use crate::base::enter_child;
use crate::base::log::fork_gate;
use crate::base::sync::Mutex;
use std::io::{self, Write as _};
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32, AtomicU64};
use std::sync::{OnceLock, PoisonError};

use libc::c_int;
use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous};

/// Descriptors that can be registered at once: 128 connections of the endpoint, and a few more.
const DESCRIPTORS: usize = 192;
const FREE: i32 = -1;
/// Set in a slot whose descriptor is replaced by an event counter of the child's own.
const OWN_COUNTER: i32 = 1 << 30;

/// Children that are known at once. More are counted only.
const CHILDREN: usize = 62;
/// Set in a child's slot once it runs an agent of its own.
const HAS_AGENT: u32 = 1 << 31;

/// Sampled allocations (some 8 MiB at the default rate) after which a child that nothing has logged for writes
/// to the standard error.
const SAMPLES_BEFORE_STDERR: u32 = 16;

/// The process whose agent is running, or 0.
static OWNER: AtomicU32 = AtomicU32::new(0);
/// The process that this one was forked from while its agent was running, or 0.
static PARENT: AtomicU32 = AtomicU32::new(0);
/// Whether this process is such a child and has not said so.
static UNTOLD: AtomicBool = AtomicBool::new(false);
/// Called in a child. See [`reset_in_child`].
static RESET: OnceLock<fn()> = OnceLock::new();
static SAMPLES: AtomicU32 = AtomicU32::new(0);
static SLOTS: [AtomicI32; DESCRIPTORS] = [const { AtomicI32::new(FREE) }; DESCRIPTORS];
/// The page that this process shares with its children, or null.
static PAGE: AtomicPtr<Page> = AtomicPtr::new(ptr::null_mut());
/// Device and inode of the standard error when the agent was started.
static STDERR: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// What children tell their parent.
#[repr(C)]
struct Page {
    /// Children so far.
    forks: AtomicU32,
    /// Process ids of those that may be alive, with [`HAS_AGENT`].
    children: [AtomicU32; CHILDREN],
}

/// The claim of an agent on this process.
#[derive(Debug)]
#[must_use = "dropping it lets another agent start"]
pub struct Claim(u32);

impl Claim {
    /// Claims this process for an agent, or returns `None` if one is running in it. An agent that was running in the
    /// parent of a forked process does not count.
    pub fn take() -> Option<Self> {
        static ONE_AT_A_TIME: Mutex<()> = Mutex::new(());
        let _turn = ONE_AT_A_TIME.lock().unwrap_or_else(PoisonError::into_inner);
        let own = std::process::id();
        if OWNER.swap(own, AcqRel) == own {
            return None;
        }
        install();
        UNTOLD.store(false, Relaxed);
        if PARENT.swap(0, AcqRel) != 0 {
            page().into_iter().for_each(|page| page.mark(own));
            // The children of this process are its own business.
            PAGE.store(ptr::null_mut(), Release);
        }
        if PAGE.load(Acquire).is_null() {
            PAGE.store(map(), Release);
        }
        remember_stderr();
        Some(Self(own))
    }
}

impl Drop for Claim {
    fn drop(&mut self) {
        // Not if this is a forked child, where another agent may be running.
        if self.0 == std::process::id() {
            let _ = OWNER.compare_exchange(self.0, 0, AcqRel, Relaxed);
        }
    }
}

/// A descriptor that forked children do not share. It must be dropped before the descriptor is closed.
#[derive(Debug)]
#[must_use = "children share the descriptor once it is dropped"]
pub struct NotInherited {
    slot: usize,
    entry: i32,
}

impl NotInherited {
    /// Keeps `fd` from forked children, which get an inert descriptor under its number. Returns `None` if too many
    /// are registered; children share the descriptor then.
    pub fn new(fd: BorrowedFd<'_>) -> Option<Self> {
        Self::register(fd.as_raw_fd())
    }

    /// As [`Self::new`] for an event counter: children get a counter of their own, at 0.
    pub fn counter(fd: BorrowedFd<'_>) -> Option<Self> {
        Self::register(fd.as_raw_fd() | OWN_COUNTER)
    }

    fn register(entry: i32) -> Option<Self> {
        let take = |slot: &AtomicI32| slot.compare_exchange(FREE, entry, AcqRel, Relaxed).is_ok();
        let slot = SLOTS.iter().position(take)?;
        Some(Self { slot, entry })
    }
}

impl Drop for NotInherited {
    fn drop(&mut self) {
        if let Some(slot) = SLOTS.get(self.slot) {
            // In a forked child the slot is free already, or used by the child.
            let _ = slot.compare_exchange(self.entry, FREE, AcqRel, Relaxed);
        }
    }
}

impl Page {
    /// Notes that the child `pid` runs an agent of its own.
    fn mark(&self, pid: u32) {
        for child in &self.children {
            let _ = child.compare_exchange(pid, pid | HAS_AGENT, AcqRel, Relaxed);
        }
    }
}

fn page() -> Option<&'static Page> {
    // SAFETY: null, or a mapping of the size of a page that is never unmapped; all-zero is a valid `Page`.
    unsafe { PAGE.load(Acquire).as_ref() }
}

/// Maps a page that children share, or returns null.
fn map() -> *mut Page {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: an anonymous mapping at a place of the kernel's choice touches nothing that exists.
    unsafe { mmap_anonymous(ptr::null_mut(), size_of::<Page>(), protection, MapFlags::SHARED) }
        .map_or(ptr::null_mut(), <*mut _>::cast)
}

/// Installs the handler, once in a process and its children.
fn install() {
    static INSTALLED: AtomicBool = AtomicBool::new(false);
    if !INSTALLED.swap(true, AcqRel) {
        // SAFETY: plain functions, of which `in_child` does only what is async-signal-safe.
        let refused =
            unsafe { libc::pthread_atfork(Some(before), Some(in_parent), Some(in_child)) };
        // No memory for an entry: the next start tries again.
        INSTALLED.store(refused == 0, Release);
    }
}

extern "C" fn before() {
    fork_gate::before_fork();
}

extern "C" fn in_parent() {
    fork_gate::after_fork();
}

extern "C" fn in_child() {
    enter_child();
    fork_gate::enter_child();
    let inert = fresh();
    for slot in &SLOTS {
        let entry = slot.swap(FREE, Relaxed);
        if entry == FREE {
            continue;
        }
        let own = if entry & OWN_COUNTER != 0 { fresh() } else { FREE };
        replace(entry & !OWN_COUNTER, if own == FREE { inert } else { own });
        close(own);
    }
    close(inert);
    #[cfg(target_os = "linux")]
    super::own_thread::forget_parent();
    if let Some(reset) = RESET.get() {
        reset();
    }
    let owner = OWNER.swap(0, AcqRel);
    if owner == 0 {
        return;
    }
    PARENT.store(owner, Release);
    SAMPLES.store(0, Relaxed);
    UNTOLD.store(true, Release);
    if let Some(page) = page() {
        let own = std::process::id();
        let free = |child: &AtomicU32| child.compare_exchange(0, own, AcqRel, Relaxed).is_ok();
        let _known = page.children.iter().any(free);
        page.forks.fetch_add(1, Release);
    }
}

/// A descriptor that is never ready and never read, or [`FREE`].
fn fresh() -> c_int {
    // SAFETY: makes a descriptor; no pointer but that of a constant string is passed.
    #[cfg(target_os = "linux")]
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    // SAFETY: as above.
    #[cfg(not(target_os = "linux"))]
    let fd = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    if fd < 0 { FREE } else { fd }
}

/// Puts `by` under the number `fd`, close-on-exec; closes `fd` if there is no descriptor to put there.
fn replace(fd: c_int, by: c_int) {
    if by == FREE {
        return close(fd);
    }
    // SAFETY: both are descriptors of this process. What owns `fd` here goes on owning a descriptor of that number.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::dup3(by, fd, libc::O_CLOEXEC);
    }
    // SAFETY: as above.
    #[cfg(not(target_os = "linux"))]
    unsafe {
        libc::dup2(by, fd);
        libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
    }
}

fn close(fd: c_int) {
    if fd != FREE {
        // SAFETY: made by `fresh`, or inherited from threads that do not exist in this process.
        unsafe { libc::close(fd) };
    }
}

/// Registers the function that frees, in a forked child, what a thread of its parent had claimed. It must be
/// async-signal-safe. There is one: the first that is registered.
pub(crate) fn reset_in_child(reset: fn()) {
    RESET.get_or_init(|| reset);
}

/// The process that this one was forked from while an agent was running there, if no agent has been started since.
pub fn parent() -> Option<u32> {
    Some(PARENT.load(Acquire)).filter(|parent| *parent != 0)
}

/// Logs, once in a forked child, that nothing watches it. Costs a load elsewhere. For code that the host calls and
/// that may log; the child has no thread to do it.
#[inline]
pub fn notice() {
    if UNTOLD.load(Relaxed) {
        tell();
    }
}

#[cold]
fn tell() {
    if let Some(parent) = parent()
        && UNTOLD.swap(false, AcqRel)
    {
        let own = std::process::id();
        tracing::warn!(
            target: "marple",
            "process {own} is not watched: it is a fork of process {parent}, and the threads of an agent do not \
             survive a fork; start the agent after forking, in each process that is to be watched"
        );
    }
}

/// As [`notice`] for the allocator, once for each sampled allocation: writes to the standard error after
/// `SAMPLES_BEFORE_STDERR` of them, if it is still the one of the agent's start and takes a line without blocking.
#[inline]
pub fn notice_from_allocator() {
    if UNTOLD.load(Relaxed) {
        tell_stderr();
    }
}

#[cold]
fn tell_stderr() {
    if SAMPLES.fetch_add(1, Relaxed) + 1 != SAMPLES_BEFORE_STDERR || !is_stderr_unchanged() {
        return;
    }
    let mut text = [0; 256];
    let mut rest = &mut text[..];
    let (own, parent) = (std::process::id(), PARENT.load(Acquire));
    // Formatting integers into a slice does not allocate.
    let _ = writeln!(
        rest,
        "marple: process {own} is not watched: it is a fork of process {parent}; start the agent after forking"
    );
    let left = rest.len();
    let mut ready = libc::pollfd { fd: 2, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one entry, which lives across the call.
    let takes =
        unsafe { libc::poll(&raw mut ready, 1, 0) } == 1 && ready.revents & libc::POLLOUT != 0;
    if takes && UNTOLD.swap(false, AcqRel) {
        // SAFETY: the text is as long as that.
        unsafe { libc::write(2, text.as_ptr().cast(), text.len() - left) };
    }
}

fn stderr() -> Option<[u64; 2]> {
    let mut stat = MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: fills a stat of this process's descriptor 2, or fails; all-zero is a valid one.
    let stat = unsafe {
        let failed = libc::fstat(2, stat.as_mut_ptr());
        (failed == 0).then(|| stat.assume_init())
    };
    #[allow(clippy::unnecessary_cast, reason = "the types differ between systems")]
    stat.map(|stat| [stat.st_dev as u64, stat.st_ino as u64])
}

fn remember_stderr() {
    let known = stderr().unwrap_or_default();
    STDERR.iter().zip(known).for_each(|(place, value)| place.store(value, Relaxed));
}

/// A daemon may have closed it, and another file got its number.
fn is_stderr_unchanged() -> bool {
    stderr().is_some_and(|now| now == [STDERR[0].load(Relaxed), STDERR[1].load(Relaxed)])
}

/// How many forks of this process were made since its agent was started.
pub fn forks() -> u32 {
    page().map_or(0, |page| page.forks.load(Acquire))
}

/// The forks of this process, and of those, that run on without `exec` and without an agent of their own. Reads one
/// file for each of at most 62 children that are not known to be gone.
pub fn unwatched_children() -> Vec<u32> {
    let Some(page) = page() else { return Vec::new() };
    let mut found = Vec::new();
    for child in &page.children {
        let entry = child.load(Acquire);
        let pid = entry & !HAS_AGENT;
        if entry == 0 {
            continue;
        }
        match has_not_execed(pid) {
            Ok(true) if entry & HAS_AGENT == 0 => found.push(pid),
            Ok(true) => {}
            Ok(false) => _ = child.compare_exchange(entry, 0, AcqRel, Relaxed),
            // Nothing can be read now: it is asked again.
            Err(_) => {}
        }
    }
    found.sort_unstable();
    found
}

/// Whether the process `pid` lives and is as it was forked.
#[cfg(target_os = "linux")]
fn has_not_execed(pid: u32) -> io::Result<bool> {
    /// The kernel's flag of a process that was forked and has not called `exec` (`include/linux/sched.h`).
    const PF_FORKNOEXEC: u64 = 0x40;

    let stat = match std::fs::read(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(false),
        Err(error) => return Err(error),
    };
    let flags = flags(&stat).ok_or(io::ErrorKind::InvalidData)?;
    Ok(flags.is_some_and(|flags| flags & PF_FORKNOEXEC != 0))
}

#[cfg(not(target_os = "linux"))]
fn has_not_execed(_pid: u32) -> io::Result<bool> {
    Ok(false)
}

/// The kernel's flags in the text of `/proc/PID/stat`; `Some(None)` for a process that has ended.
#[cfg(target_os = "linux")]
fn flags(stat: &[u8]) -> Option<Option<u64>> {
    // The name, in parentheses, may hold any byte.
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let mut fields = std::str::from_utf8(stat.get(end + 1..)?).ok()?.split_ascii_whitespace();
    let state = fields.next()?;
    let flags = fields.nth(5)?.parse().ok()?;
    Some((!matches!(state, "Z" | "X")).then_some(flags))
}

#[cfg(test)]
#[path = "fork_tests.rs"]
mod tests;
