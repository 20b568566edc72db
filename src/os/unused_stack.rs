//! Release of the memory that a thread of marple does not use of its stack.

#![allow(unsafe_code, reason = "`madvise` of a part of the own stack")]

#[cfg(all(target_os = "linux", not(miri)))]
use super::mapped_memory::may_unlock;
#[cfg(all(target_os = "linux", not(miri)))]
use super::own_stack::current_stack_bounds;

/// Releases the memory that `mlockall(MCL_FUTURE)` populates for the whole stack of a thread.
/// Called at the start of marple's threads. Without `mlockall` it is a system call without effect.
#[cfg(all(target_os = "linux", not(miri)))]
pub(crate) fn release() {
    /// Margin below the caller's frame that is kept, because signal handlers run there.
    const MARGIN_BYTES: u64 = 64 << 10;
    let page = rustix::param::page_size() as u64;
    let Some(stack) = current_stack_bounds() else { return };
    let here = (&raw const page).addr() as u64;
    let start = stack.start.next_multiple_of(page);
    let end = here.saturating_sub(MARGIN_BYTES) & !(page - 1);
    if !stack.contains(&here) || end <= start {
        return;
    }
    let at = start as *mut libc::c_void;
    let unused = (end - start) as usize;
    let stack_size = (stack.end - start) as usize;
    // SAFETY: this thread's own stack, more than a margin below all frames in use: nothing is
    // stored there. `munlock` does not discard memory.
    unsafe {
        if libc::madvise(at, unused, libc::MADV_DONTNEED) == 0 {
            return;
        }
        if may_unlock() && libc::munlock(at, stack_size) == 0 {
            libc::madvise(at, unused, libc::MADV_DONTNEED);
        } else {
            libc::madvise(at, unused, libc::MADV_DONTNEED_LOCKED);
        }
    }
}

/// Does nothing: stack bounds are not available on this platform.
#[cfg(any(not(target_os = "linux"), miri))]
pub(crate) fn release() {}
