//! State that a forked child inherits from the agent, and its cleanup.
//!
//! Threads do not survive `fork`; descriptors and statics do. Without cleanup a child would hold
//! the listening socket open, so that clients connect and get no response. It would keep the lock
//! of the incident directory after its parent has exited, and believe that an agent is running.
//! `pthread_atfork` does the cleanup in one place:
//!
//! ```text
//! before the fork:      no log event is being passed to the host's subscriber, which has locks
//! fork ─► child handler: mutexes held by the parent's threads are abandoned (`base::fork_mutex`)
//!                        registered descriptors are replaced by an inert one (dup3)
//!                        OWNER = 0, so that an agent can be started in the child
//!                        the child's pid is stored in the page shared with the parent
//! ```
//!
//! The child handler only makes system calls and stores atomics: a child of a multi-threaded
//! process may only run async-signal-safe code. `vfork`, `posix_spawn` and a bare `clone` do not
//! run the handler. A child that soon calls `exec` is not affected: all these descriptors are
//! close-on-exec.
//!
//! A child that continues without `exec` is reported twice, since either process may exit. The
//! parent's agent finds it by the flag `PF_FORKNOEXEC` in `/proc/PID/stat`
//! ([`unwatched_children`]). The child logs one line as soon as it runs marple code on a thread
//! that may log ([`warn_if_unwatched`]).

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

/// Maximum number of registered descriptors: 128 connections of the endpoint, and a few more.
const MAX_DESCRIPTORS: usize = 192;
const FREE: i32 = -1;
/// Flag in a slot whose descriptor is replaced by a new event counter of the child.
const IS_EVENTFD: i32 = 1 << 30;

/// Maximum number of children tracked at once; further ones are only counted.
const MAX_CHILDREN: usize = 62;
/// Flag in a child's slot, set once it runs its own agent.
const HAS_AGENT: u32 = 1 << 31;

/// Sampled allocations (about 8 MiB at the default rate) after which a child that has logged
/// nothing writes to standard error.
const SAMPLES_BEFORE_STDERR: u32 = 16;

/// ID of the process whose agent is running, or 0.
static OWNER: AtomicU32 = AtomicU32::new(0);
/// ID of the process that this one was forked from while its agent was running, or 0.
static PARENT: AtomicU32 = AtomicU32::new(0);
/// Set in such a child until it has logged that it is not watched.
static WARNING_PENDING: AtomicBool = AtomicBool::new(false);
/// Function called in a child. See [`register_child_reset`].
static RESET_HOOK: OnceLock<fn()> = OnceLock::new();
static SAMPLED_ALLOCATIONS: AtomicU32 = AtomicU32::new(0);
static SLOTS: [AtomicI32; MAX_DESCRIPTORS] = [const { AtomicI32::new(FREE) }; MAX_DESCRIPTORS];
/// Page that this process shares with its children, or null.
static SHARED_PAGE: AtomicPtr<ForkPage> = AtomicPtr::new(ptr::null_mut());
/// Device and inode of standard error at the start of the agent.
static STDERR_IDENTITY: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Data that children report to their parent.
#[repr(C)]
struct ForkPage {
    /// Number of children so far.
    forks: AtomicU32,
    /// Process IDs of children that may be alive, with the flag [`HAS_AGENT`].
    children: [AtomicU32; MAX_CHILDREN],
}

/// Exclusive right of an agent to run in this process.
#[derive(Debug)]
#[must_use = "dropping it lets another agent start"]
pub struct ProcessClaim(u32);

impl ProcessClaim {
    /// Claims this process for an agent. Returns `None` if one is already running in it. An agent
    /// that was running in the parent of a forked process does not count.
    pub fn claim() -> Option<Self> {
        static CLAIM_LOCK: Mutex<()> = Mutex::new(());
        let _guard = CLAIM_LOCK.lock().unwrap_or_else(PoisonError::into_inner);
        let own = std::process::id();
        if OWNER.swap(own, AcqRel) == own {
            return None;
        }
        install_fork_handlers();
        WARNING_PENDING.store(false, Relaxed);
        if PARENT.swap(0, AcqRel) != 0 {
            shared_page().into_iter().for_each(|page| page.mark_has_agent(own));
            // Children of this process must not appear in the parent's page.
            SHARED_PAGE.store(ptr::null_mut(), Release);
        }
        if SHARED_PAGE.load(Acquire).is_null() {
            SHARED_PAGE.store(map_shared_page(), Release);
        }
        record_stderr_identity();
        Some(Self(own))
    }
}

impl Drop for ProcessClaim {
    fn drop(&mut self) {
        // Skipped in a forked child, where another agent may be running.
        if self.0 == std::process::id() {
            let _ = OWNER.compare_exchange(self.0, 0, AcqRel, Relaxed);
        }
    }
}

/// A registered descriptor that forked children do not share. It must be dropped before the
/// descriptor is closed.
#[derive(Debug)]
#[must_use = "children share the descriptor once it is dropped"]
pub struct NotInherited {
    slot: usize,
    entry: i32,
}

impl NotInherited {
    /// Replaces `fd` in forked children by an inert descriptor with the same number. Returns `None`
    /// if too many are registered; children then share the descriptor.
    pub fn new(fd: BorrowedFd<'_>) -> Option<Self> {
        Self::register(fd.as_raw_fd())
    }

    /// Registers an event counter like [`Self::new`], but children get a new counter, at 0.
    pub fn for_eventfd(fd: BorrowedFd<'_>) -> Option<Self> {
        Self::register(fd.as_raw_fd() | IS_EVENTFD)
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
            // In a forked child the slot is already free, or used by the child.
            let _ = slot.compare_exchange(self.entry, FREE, AcqRel, Relaxed);
        }
    }
}

impl ForkPage {
    /// Marks the child `pid` as running its own agent.
    fn mark_has_agent(&self, pid: u32) {
        for child in &self.children {
            let _ = child.compare_exchange(pid, pid | HAS_AGENT, AcqRel, Relaxed);
        }
    }
}

fn shared_page() -> Option<&'static ForkPage> {
    // SAFETY: null, or a mapping of the size of a page that is never unmapped; all-zero is a valid
    // `ForkPage`.
    unsafe { SHARED_PAGE.load(Acquire).as_ref() }
}

/// Maps a page that children share. Returns null on failure.
fn map_shared_page() -> *mut ForkPage {
    let protection = ProtFlags::READ | ProtFlags::WRITE;
    // SAFETY: an anonymous mapping at an address chosen by the kernel affects no existing memory.
    unsafe { mmap_anonymous(ptr::null_mut(), size_of::<ForkPage>(), protection, MapFlags::SHARED) }
        .map_or(ptr::null_mut(), <*mut _>::cast)
}

/// Installs the fork handlers, once in a process and its children.
fn install_fork_handlers() {
    static INSTALLED: AtomicBool = AtomicBool::new(false);
    if !INSTALLED.swap(true, AcqRel) {
        // SAFETY: plain functions; `after_fork_in_child` only does async-signal-safe work.
        let refused = unsafe {
            libc::pthread_atfork(
                Some(before_fork),
                Some(after_fork_in_parent),
                Some(after_fork_in_child),
            )
        };
        // No memory for an entry: the next start tries again.
        INSTALLED.store(refused == 0, Release);
    }
}

extern "C" fn before_fork() {
    fork_gate::before_fork();
}

extern "C" fn after_fork_in_parent() {
    fork_gate::after_fork();
}

extern "C" fn after_fork_in_child() {
    enter_child();
    fork_gate::enter_child();
    let inert = create_inert_fd();
    for slot in &SLOTS {
        let entry = slot.swap(FREE, Relaxed);
        if entry == FREE {
            continue;
        }
        let own = if entry & IS_EVENTFD != 0 { create_inert_fd() } else { FREE };
        replace_fd(entry & !IS_EVENTFD, if own == FREE { inert } else { own });
        close(own);
    }
    close(inert);
    #[cfg(target_os = "linux")]
    super::own_thread::clear_after_fork();
    if let Some(reset) = RESET_HOOK.get() {
        reset();
    }
    let owner = OWNER.swap(0, AcqRel);
    if owner == 0 {
        return;
    }
    PARENT.store(owner, Release);
    SAMPLED_ALLOCATIONS.store(0, Relaxed);
    WARNING_PENDING.store(true, Release);
    if let Some(page) = shared_page() {
        let own = std::process::id();
        let free = |child: &AtomicU32| child.compare_exchange(0, own, AcqRel, Relaxed).is_ok();
        let _is_tracked = page.children.iter().any(free);
        page.forks.fetch_add(1, Release);
    }
}

/// Creates a descriptor that is never ready and never read. Returns [`FREE`] on failure.
fn create_inert_fd() -> c_int {
    // SAFETY: creates a descriptor; no pointer except a constant string is passed.
    #[cfg(target_os = "linux")]
    let fd = unsafe { libc::eventfd(0, libc::EFD_CLOEXEC | libc::EFD_NONBLOCK) };
    // SAFETY: as above.
    #[cfg(not(target_os = "linux"))]
    let fd = unsafe { libc::open(c"/dev/null".as_ptr(), libc::O_RDWR | libc::O_CLOEXEC) };
    if fd < 0 { FREE } else { fd }
}

/// Replaces `fd` by a close-on-exec duplicate of `by`; closes `fd` if `by` is [`FREE`].
fn replace_fd(fd: c_int, replacement: c_int) {
    if replacement == FREE {
        return close(fd);
    }
    // SAFETY: both are descriptors of this process. The owner of `fd` still owns a descriptor with
    // that number.
    #[cfg(target_os = "linux")]
    unsafe {
        libc::dup3(replacement, fd, libc::O_CLOEXEC);
    }
    // SAFETY: as above.
    #[cfg(not(target_os = "linux"))]
    unsafe {
        libc::dup2(replacement, fd);
        libc::fcntl(fd, libc::F_SETFD, libc::FD_CLOEXEC);
    }
}

fn close(fd: c_int) {
    if fd != FREE {
        // SAFETY: created by `fresh`, or inherited from threads that do not exist in this process.
        unsafe { libc::close(fd) };
    }
}

/// Registers the function that releases, in a forked child, resources claimed by a thread of its
/// parent. It must be async-signal-safe. Only the first registration takes effect.
pub(crate) fn register_child_reset(reset: fn()) {
    RESET_HOOK.get_or_init(|| reset);
}

/// Returns the process that this one was forked from while an agent was running there. Returns
/// `None` if there was none, or if an agent has been started since.
pub fn parent() -> Option<u32> {
    Some(PARENT.load(Acquire)).filter(|parent| *parent != 0)
}

/// Logs, once in a forked child, that no agent watches it. Costs one load in other processes.
///
/// For code that the host calls and that may log; the child has no marple thread that could log.
#[inline]
pub fn warn_if_unwatched() {
    if WARNING_PENDING.load(Relaxed) {
        warn_unwatched();
    }
}

#[cold]
fn warn_unwatched() {
    if let Some(parent) = parent()
        && WARNING_PENDING.swap(false, AcqRel)
    {
        let own = std::process::id();
        tracing::warn!(
            target: "marple",
            "process {own} is not watched: it was forked from process {parent}, and the agent's \
             threads do not survive a fork; start an agent in each process after forking"
        );
    }
}

/// Reports an unwatched child from the allocator; called once per sampled allocation.
///
/// Call number `SAMPLES_BEFORE_STDERR` writes to standard error, if that is still the file from the
/// agent's start and accepts a line without blocking. See also [`warn_if_unwatched`].
#[inline]
pub fn warn_if_unwatched_from_allocator() {
    if WARNING_PENDING.load(Relaxed) {
        warn_unwatched_on_stderr();
    }
}

#[cold]
fn warn_unwatched_on_stderr() {
    if SAMPLED_ALLOCATIONS.fetch_add(1, Relaxed) + 1 != SAMPLES_BEFORE_STDERR
        || !is_stderr_unchanged()
    {
        return;
    }
    let mut text = [0; 256];
    let mut rest = &mut text[..];
    let (own, parent) = (std::process::id(), PARENT.load(Acquire));
    // Formatting integers into a slice does not allocate.
    let _ = writeln!(
        rest,
        "marple: process {own} is not watched: it was forked from process {parent}; start the \
         agent after forking"
    );
    let remaining = rest.len();
    let mut ready = libc::pollfd { fd: 2, events: libc::POLLOUT, revents: 0 };
    // SAFETY: one entry, which lives across the call.
    let is_writable =
        unsafe { libc::poll(&raw mut ready, 1, 0) } == 1 && ready.revents & libc::POLLOUT != 0;
    if is_writable && WARNING_PENDING.swap(false, AcqRel) {
        // SAFETY: the text is at least that long.
        unsafe { libc::write(2, text.as_ptr().cast(), text.len() - remaining) };
    }
}

fn stderr_identity() -> Option<[u64; 2]> {
    let mut stat = MaybeUninit::<libc::stat>::zeroed();
    // SAFETY: `fstat` fills the stat for descriptor 2 of this process, or fails; all-zero is a
    // valid stat.
    let stat = unsafe {
        let failed = libc::fstat(2, stat.as_mut_ptr());
        (failed == 0).then(|| stat.assume_init())
    };
    #[allow(clippy::unnecessary_cast, reason = "the types differ between systems")]
    stat.map(|stat| [stat.st_dev as u64, stat.st_ino as u64])
}

fn record_stderr_identity() {
    let known = stderr_identity().unwrap_or_default();
    STDERR_IDENTITY.iter().zip(known).for_each(|(place, value)| place.store(value, Relaxed));
}

/// Returns `true` if standard error is still the same file. A daemon may have closed it, and
/// another file may have its number.
fn is_stderr_unchanged() -> bool {
    stderr_identity().is_some_and(|now| {
        now == [STDERR_IDENTITY[0].load(Relaxed), STDERR_IDENTITY[1].load(Relaxed)]
    })
}

/// Returns the number of forks of this process since its agent was started.
pub fn fork_count() -> u32 {
    shared_page().map_or(0, |page| page.forks.load(Acquire))
}

/// Returns the forks of this process, and their forks, that run without `exec` and without their
/// own agent. Reads one file for each of at most 62 children that may be alive.
pub fn unwatched_children() -> Vec<u32> {
    let Some(page) = shared_page() else { return Vec::new() };
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
            // The file cannot be read at present: retried at the next call.
            Err(_) => {}
        }
    }
    found.sort_unstable();
    found
}

/// Returns `true` if the process `pid` is alive and has not called `exec` since its fork.
#[cfg(target_os = "linux")]
fn has_not_execed(pid: u32) -> io::Result<bool> {
    /// Kernel flag of a process that was forked and has not called `exec`
    /// (`include/linux/sched.h`).
    const PF_FORKNOEXEC: u64 = 0x40;

    let stat = match std::fs::read(format!("/proc/{pid}/stat")) {
        Ok(stat) => stat,
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
        Err(error) if error.raw_os_error() == Some(libc::ESRCH) => return Ok(false),
        Err(error) => return Err(error),
    };
    let flags = process_flags(&stat).ok_or(io::ErrorKind::InvalidData)?;
    Ok(flags.is_some_and(|flags| flags & PF_FORKNOEXEC != 0))
}

#[cfg(not(target_os = "linux"))]
fn has_not_execed(_pid: u32) -> io::Result<bool> {
    Ok(false)
}

/// Returns the kernel's flags in the text of `/proc/PID/stat`; `Some(None)` for a process that has
/// ended.
#[cfg(target_os = "linux")]
fn process_flags(stat: &[u8]) -> Option<Option<u64>> {
    // The name, in parentheses, may contain any byte.
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let mut fields = std::str::from_utf8(stat.get(end + 1..)?).ok()?.split_ascii_whitespace();
    let state = fields.next()?;
    let flags = fields.nth(5)?.parse().ok()?;
    Some((!matches!(state, "Z" | "X")).then_some(flags))
}

#[cfg(test)]
#[path = "fork_tests.rs"]
mod tests;
