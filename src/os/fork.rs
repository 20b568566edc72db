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

#![allow(unsafe_code, reason = "`pthread_atfork`, a shared page, and descriptors by number")]

mod unwatched;

pub use unwatched::{
    fork_count, unwatched_children, warn_if_unwatched, warn_if_unwatched_from_allocator,
};

use crate::base::enter_child;
use crate::base::log::fork_gate;
use crate::base::sync::Mutex;
use std::os::fd::{AsRawFd, BorrowedFd};
use std::ptr;
use std::sync::PoisonError;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicBool, AtomicI32, AtomicPtr, AtomicU32};

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

/// ID of the process whose agent is running, or 0.
static OWNER: AtomicU32 = AtomicU32::new(0);
/// ID of the process that this one was forked from while its agent was running, or 0.
static PARENT: AtomicU32 = AtomicU32::new(0);
/// Set in such a child until it has logged that it is not watched.
static WARNING_PENDING: AtomicBool = AtomicBool::new(false);
static SLOTS: [AtomicI32; MAX_DESCRIPTORS] = [const { AtomicI32::new(FREE) }; MAX_DESCRIPTORS];
/// Page that this process shares with its children, or null.
static SHARED_PAGE: AtomicPtr<ForkPage> = AtomicPtr::new(ptr::null_mut());

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
        unwatched::record_stderr_identity();
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
    let owner = OWNER.swap(0, AcqRel);
    if owner == 0 {
        return;
    }
    PARENT.store(owner, Release);
    unwatched::restart_allocation_count();
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
        // SAFETY: created by `create_inert_fd`, or inherited from threads that do not exist here.
        unsafe { libc::close(fd) };
    }
}

/// Returns the process that this one was forked from while an agent was running there. Returns
/// `None` if there was none, or if an agent has been started since.
pub fn parent() -> Option<u32> {
    Some(PARENT.load(Acquire)).filter(|parent| *parent != 0)
}

#[cfg(test)]
mod tests;
