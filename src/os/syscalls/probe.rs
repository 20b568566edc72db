//! Probing of a filter's effect on calls, in a copy of the process.
//!
//! ```text
//! parent                                     child: a copy-on-write fork, all signals blocked
//!   map a shared page                          prctl(PR_SET_DUMPABLE, 0): no core dump
//!   block all signals                          wait4: may the parent wait for it?
//!   clone, exit signal 0                       for each call, from the first that was not tried
//!   restore the mask                             page[call] = TRYING; call; page[call] = errno
//!   wait4(child, __WALL), read the page        exit_group
//! ```
//!
//! A call that leaves `TRYING` behind killed the child. The next child starts after that call, so
//! there are at most as many children as calls.
//!
//! A copy is used instead of `CLONE_VM`, because before Linux 5.16 the core dump of a process
//! killed all processes that shared its memory. With exit signal 0 the service gets no `SIGCHLD`,
//! and its own `wait` does not return the child. All signals are blocked, so a `SIGSYS` of the
//! filter has its default action, and a handler of the service does not run twice.
//!
//! The child is the copy of one thread of many, so it only makes system calls: no lock, no
//! allocation, no panic.
//!
//! A fork copies page tables, and the service's first write to each page afterwards causes a fault.
//! So a process with more than [`MAX_RESIDENT_BYTES`] is not copied. The limit bounds the page
//! tables to 2 MiB, the copy to some milliseconds, and the faults to 0.1 s.
//!
//! # Calls made by the probe itself
//!
//! The probe uses `clone3` if the C library creates threads with it (glibc 2.34 and later), else
//! `clone`. A filter cannot inspect the arguments of `clone3`, so it allows the call if it allows
//! threads. If `clone3` fails with `ENOSYS`, as in container runtimes, the C library creates
//! threads with `clone`, and so does the probe. The child tries `wait4`.

#![allow(unsafe_code, reason = "a copy of the process by `clone`, and a page shared with it")]

use std::ffi::{CStr, c_int, c_long};
use std::ptr;
use std::sync::atomic::AtomicI32;
use std::sync::atomic::Ordering::{Acquire, Release};
use std::time::{Duration, Instant};

use rustix::mm::{MapFlags, ProtFlags, mmap_anonymous, munmap};

use super::{OptionalCall, ProbeFailure, SyscallVerdict, SyscallVerdicts};

/// Maximum resident memory of a process that is copied.
pub(super) const MAX_RESIDENT_BYTES: u64 = 1 << 30;

/// Timeout for a child. It needs less than a millisecond of CPU time.
const CHILD_TIMEOUT: Duration = Duration::from_secs(2);

/// Interval between checks that the child has exited.
const POLL_INTERVAL: Duration = Duration::from_micros(50);

/// Values in the shared page that are neither an errno nor 0.
const NOT_TRIED: i32 = -1;
const TRYING: i32 = -2;

/// A call with arguments that the kernel rejects without effect.
struct ProbeStep {
    call: OptionalCall,
    number: c_long,
    arguments: [usize; 5],
    /// Error of the kernel. Any other error is the filter's.
    expected_errno: c_int,
}

const INVALID: usize = usize::MAX;

/// `PERF_EVENT_IOC_PERIOD` and `PROCMAP_QUERY`.
const PERF_PERIOD: usize = 0x4008_2404;
const PROCMAP_QUERY: usize = 0xc068_6611;

const STEPS: [ProbeStep; 12] = [
    // The kernel checks for unknown flags first.
    probe_step(
        OptionalCall::PerfEventOpen,
        libc::SYS_perf_event_open,
        [0, 0, INVALID, INVALID, INVALID],
        libc::EINVAL,
    ),
    probe_step(
        OptionalCall::SetPriority,
        libc::SYS_setpriority,
        [INVALID, 0, 0, 0, 0],
        libc::EINVAL,
    ),
    probe_step(
        OptionalCall::SetPriority,
        libc::SYS_getpriority,
        [INVALID, 0, 0, 0, 0],
        libc::EINVAL,
    ),
    // Clock 1000 does not exist.
    probe_step(
        OptionalCall::ThreadTimers,
        libc::SYS_timer_create,
        [1000, 0, 0, 0, 0],
        libc::EINVAL,
    ),
    probe_step(
        OptionalCall::ThreadTimers,
        libc::SYS_timer_settime,
        [INVALID, 0, 0, 0, 0],
        libc::EINVAL,
    ),
    probe_step(
        OptionalCall::ThreadTimers,
        libc::SYS_timer_delete,
        [INVALID, 0, 0, 0, 0],
        libc::EINVAL,
    ),
    probe_step(
        OptionalCall::QueueSignal,
        libc::SYS_rt_tgsigqueueinfo,
        [0, 0, 0, 0, 0],
        libc::EFAULT,
    ),
    probe_step(OptionalCall::RobustList, libc::SYS_get_robust_list, [0, 0, 0, 0, 0], libc::EFAULT),
    probe_step(
        OptionalCall::Ioctl,
        libc::SYS_ioctl,
        [INVALID, PROCMAP_QUERY, 0, 0, 0],
        libc::EBADF,
    ),
    probe_step(OptionalCall::Ioctl, libc::SYS_ioctl, [INVALID, PERF_PERIOD, 0, 0, 0], libc::EBADF),
    // No thread has the ID -1.
    probe_step(
        OptionalCall::SetAffinity,
        libc::SYS_sched_setaffinity,
        [INVALID, 0, 0, 0, 0],
        libc::ESRCH,
    ),
    probe_step(
        OptionalCall::SetScheduler,
        libc::SYS_sched_setscheduler,
        [INVALID, 0, 0, 0, 0],
        libc::EINVAL,
    ),
];

const fn probe_step(
    call: OptionalCall,
    number: c_long,
    arguments: [usize; 5],
    expected_errno: c_int,
) -> ProbeStep {
    ProbeStep { call, number, arguments, expected_errno }
}

/// The page shared by parent and child.
#[repr(C)]
struct ProbePage {
    /// Result of `wait4`.
    wait: AtomicI32,
    steps: [AtomicI32; STEPS.len()],
}

/// Probes every optional call.
pub(super) fn run() -> SyscallVerdicts {
    let all_unknown = |why| [SyscallVerdict::Unknown(why); super::OPTIONAL_CALLS.len()];
    match resident_bytes() {
        None => return all_unknown(ProbeFailure::NoStatus),
        Some(bytes) if bytes > MAX_RESIDENT_BYTES => {
            return all_unknown(ProbeFailure::TooLarge(bytes >> 20));
        }
        Some(_) => {}
    }
    let shared = match ProbeShared::map() {
        Ok(shared) => shared,
        Err(error) => return all_unknown(ProbeFailure::CopyFailed(error.raw_os_error())),
    };
    let page = shared.page();
    let mut first = 0;
    while first < STEPS.len() {
        if let Err(errno) = run_child_from(first, page) {
            return all_unknown(ProbeFailure::CopyFailed(errno));
        }
        // The child has exited normally, or was killed at the call that it was trying.
        let mut tried = page.steps.iter().map(|step| step.load(Acquire)).skip(first);
        match tried.clone().position(|answer| answer == TRYING) {
            Some(after) => first += after + 1,
            None if tried.all(|answer| answer != NOT_TRIED) => break,
            None => return all_unknown(ProbeFailure::CopyFailed(0)),
        }
    }
    combine_by_family(&page.steps.each_ref().map(|step| step.load(Acquire)))
}

/// Combines the results by family: the worst result of its calls counts.
fn combine_by_family(outcomes: &[i32; STEPS.len()]) -> SyscallVerdicts {
    let mut verdicts = [SyscallVerdict::Allowed; super::OPTIONAL_CALLS.len()];
    for (step, &outcome) in STEPS.iter().zip(outcomes) {
        let verdict = &mut verdicts[step.call as usize];
        match outcome {
            TRYING => *verdict = SyscallVerdict::Kills,
            errno if errno == step.expected_errno || errno == 0 => {}
            errno if *verdict == SyscallVerdict::Allowed => {
                *verdict = SyscallVerdict::Refused(errno)
            }
            _ => {}
        }
    }
    verdicts
}

/// Starts a child that tries the calls from `first` on, and waits for its exit.
fn run_child_from(first: usize, page: &ProbePage) -> Result<(), c_int> {
    page.wait.store(NOT_TRIED, Release);
    let child = match fork()? {
        0 => run_calls_in_child(first, page),
        pid => pid,
    };
    let started = Instant::now();
    let is_late = |started: Instant| started.elapsed() > CHILD_TIMEOUT;
    while page.wait.load(Acquire) < 0 {
        // A child that is killed by wait4 is not waited for, and remains as one zombie process.
        if is_late(started) || has_exited(child) {
            return Err(0);
        }
        std::thread::sleep(POLL_INTERVAL);
    }
    loop {
        // SAFETY: takes a number and null pointers.
        let ended =
            unsafe { libc::syscall(libc::SYS_wait4, child, 0, libc::__WALL | libc::WNOHANG, 0) };
        let errno = std::io::Error::last_os_error().raw_os_error();
        match ended {
            0 if is_late(started) => return Err(0),
            0 => std::thread::sleep(POLL_INTERVAL),
            -1 if errno == Some(libc::EINTR) => {}
            // ECHILD: the service has already waited for the child.
            _ => return Ok(()),
        }
    }
}

/// Copies the process with this thread only. Returns 0 in the copy.
fn fork() -> Result<c_int, c_int> {
    // SAFETY: an all-zero set is a valid one; both calls get sets of this thread's stack.
    let before = unsafe {
        let mut all: libc::sigset_t = std::mem::zeroed();
        let mut before: libc::sigset_t = std::mem::zeroed();
        libc::sigfillset(&raw mut all);
        match libc::pthread_sigmask(libc::SIG_SETMASK, &raw const all, &raw mut before) {
            0 => before,
            errno => return Err(errno),
        }
    };
    let pid = clone();
    let errno = std::io::Error::last_os_error().raw_os_error().unwrap_or(0);
    // The child keeps all signals blocked.
    if pid != 0 {
        // SAFETY: restores the previous mask of this thread.
        unsafe { libc::pthread_sigmask(libc::SIG_SETMASK, &raw const before, ptr::null_mut()) };
    }
    match c_int::try_from(pid) {
        Ok(pid) if pid >= 0 => Ok(pid),
        _ => Err(errno),
    }
}

/// Forks by the call with which the C library creates threads.
fn clone() -> c_long {
    if libc_uses_clone3() {
        // `struct clone_args`, version 0: no flags, no exit signal.
        let arguments = [0u64; 8];
        let size = size_of_val(&arguments);
        // SAFETY: without flags this is a fork; the child continues with copies of this stack and
        // memory.
        let pid = unsafe { libc::syscall(libc::SYS_clone3, arguments.as_ptr(), size) };
        let errno = std::io::Error::last_os_error().raw_os_error();
        if pid >= 0 || errno != Some(libc::ENOSYS) {
            return pid;
        }
    }
    // SAFETY: as above.
    unsafe { libc::syscall(libc::SYS_clone, 0usize, 0usize, 0usize, 0usize, 0usize) }
}

#[cfg(target_env = "gnu")]
fn libc_uses_clone3() -> bool {
    // SAFETY: returns a string that lives as long as the process.
    let version = unsafe { CStr::from_ptr(libc::gnu_get_libc_version()) };
    let mut numbers = version.to_str().unwrap_or("").split('.').map(|part| part.parse::<u32>());
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) => (major, minor) >= (2, 34),
        _ => false,
    }
}

#[cfg(not(target_env = "gnu"))]
fn libc_uses_clone3() -> bool {
    false
}

/// Runs the calls in the copy, and exits.
fn run_calls_in_child(first: usize, page: &ProbePage) -> ! {
    // SAFETY: this process is a separate copy, and these calls change only it; the calls tried have
    // arguments that the kernel rejects. None of them allocates or takes a lock.
    unsafe {
        libc::syscall(libc::SYS_prctl, libc::PR_SET_DUMPABLE, 0, 0, 0, 0);
        page.wait.store(TRYING, Release);
        libc::syscall(libc::SYS_wait4, -1, 0, libc::WNOHANG, 0);
        page.wait.store(0, Release);
        for (step, outcome) in STEPS.iter().zip(&page.steps).skip(first) {
            outcome.store(TRYING, Release);
            let [a, b, c, d, e] = step.arguments;
            let result = libc::syscall(step.number, a, b, c, d, e);
            outcome.store(if result < 0 { *libc::__errno_location() } else { 0 }, Release);
        }
        loop {
            libc::syscall(libc::SYS_exit_group, 0);
        }
    }
}

/// Returns `true` if a child of this process has exited, without waiting for it.
fn has_exited(child: c_int) -> bool {
    let Ok(stat) = std::fs::read(format!("/proc/{child}/stat")) else { return true };
    let after_name = stat.iter().rposition(|&byte| byte == b')').unwrap_or(0);
    matches!(stat.get(after_name + 2), None | Some(b'Z' | b'X'))
}

fn resident_bytes() -> Option<u64> {
    let statm = std::fs::read_to_string("/proc/self/statm").ok()?;
    let pages: u64 = statm.split(' ').nth(1)?.parse().ok()?;
    Some(pages.saturating_mul(rustix::param::page_size() as u64))
}

/// A page that is shared with a fork.
struct ProbeShared(*mut ProbePage);

impl ProbeShared {
    fn map() -> rustix::io::Result<Self> {
        let protection = ProtFlags::READ | ProtFlags::WRITE;
        // SAFETY: an anonymous mapping at an address chosen by the kernel affects no existing
        // memory.
        let page = unsafe {
            mmap_anonymous(ptr::null_mut(), size_of::<ProbePage>(), protection, MapFlags::SHARED)
        }?;
        let shared = Self(page.cast());
        for step in &shared.page().steps {
            step.store(NOT_TRIED, Release);
        }
        Ok(shared)
    }

    fn page(&self) -> &ProbePage {
        // SAFETY: mapped until `drop` and aligned to a page; all-zero atomics are valid.
        unsafe { &*self.0 }
    }
}

impl Drop for ProbeShared {
    fn drop(&mut self) {
        // SAFETY: mapped by `map` with this length; no borrow of it exists.
        let _ = unsafe { munmap(self.0.cast(), size_of::<ProbePage>()) };
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worst_call_decides_family_verdict() {
        let mut answers = STEPS.each_ref().map(|step| step.expected_errno);
        assert_eq!(
            combine_by_family(&answers),
            [SyscallVerdict::Allowed; super::super::OPTIONAL_CALLS.len()]
        );
        answers[3] = libc::EPERM;
        let timers = OptionalCall::ThreadTimers as usize;
        assert_eq!(combine_by_family(&answers)[timers], SyscallVerdict::Refused(libc::EPERM));
        answers[5] = TRYING;
        assert_eq!(combine_by_family(&answers)[timers], SyscallVerdict::Kills);
    }

    #[test]
    fn probe_child_is_invisible_to_service_wait() {
        let shared = ProbeShared::map().unwrap();
        let pid = fork().unwrap();
        if pid == 0 {
            run_calls_in_child(0, shared.page());
        }
        while !has_exited(pid) {}
        // SAFETY: takes numbers and a null pointer; without `__WALL`, as in a service's `wait`.
        let seen = unsafe { libc::waitpid(pid, ptr::null_mut(), libc::WNOHANG) };
        assert_eq!(seen, -1, "a `wait` of the service sees the child");
        // SAFETY: takes a number and null pointers.
        let waited = unsafe { libc::waitpid(pid, ptr::null_mut(), libc::__WALL) };
        assert_eq!(waited, pid);
    }
}
