//! Reports that a forked child is not watched: in the child, and in its parent.

#![allow(unsafe_code, reason = "`poll`, `write` and `fstat` of a bare descriptor")]

use std::io::{self, Write as _};
use std::mem::MaybeUninit;
use std::sync::atomic::Ordering::{AcqRel, Acquire, Relaxed};
use std::sync::atomic::{AtomicU32, AtomicU64};

use super::{HAS_AGENT, PARENT, WARNING_PENDING, parent, shared_page};

/// Sampled allocations (about 8 MiB at the default rate) after which a child that has logged
/// nothing writes to standard error.
const SAMPLES_BEFORE_STDERR: u32 = 16;

static SAMPLED_ALLOCATIONS: AtomicU32 = AtomicU32::new(0);
/// Device and inode of standard error at the start of the agent.
static STDERR_IDENTITY: [AtomicU64; 2] = [const { AtomicU64::new(0) }; 2];

/// Restarts the count of sampled allocations, in a child. Async-signal-safe.
pub(super) fn restart_allocation_count() {
    SAMPLED_ALLOCATIONS.store(0, Relaxed);
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
    let own = std::process::id();
    let parent = PARENT.load(Acquire);
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

pub(super) fn record_stderr_identity() {
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
pub(super) fn has_not_execed(pid: u32) -> io::Result<bool> {
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
pub(super) fn has_not_execed(_pid: u32) -> io::Result<bool> {
    Ok(false)
}

/// Returns the kernel's flags in the text of `/proc/PID/stat`; `Some(None)` for a process that has
/// ended.
#[cfg(target_os = "linux")]
pub(super) fn process_flags(stat: &[u8]) -> Option<Option<u64>> {
    // The name, in parentheses, may contain any byte.
    let end = stat.iter().rposition(|&byte| byte == b')')?;
    let mut fields = std::str::from_utf8(stat.get(end + 1..)?).ok()?.split_ascii_whitespace();
    let state = fields.next()?;
    let flags = fields.nth(5)?.parse().ok()?;
    Some((!matches!(state, "Z" | "X")).then_some(flags))
}
