//! Table of every system call that marple makes, in its own threads and in those of the service.
//!
//! The tests beside it check it: a whole run under filters that allow exactly these calls.
//!
//! A call that is added to the code is added here. It is `Needed` only if there is no alternative.
//! In that case it has to be in systemd's `@system-service`, the filter under which services run.

/// Importance of a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Class {
    /// Nothing works without it. In `@system-service`.
    Needed,
    /// Optional: `os::syscalls` probes it, and there is a fallback.
    Optional {
        /// True if the call is in `@system-service`.
        in_system_service: bool,
    },
    /// Made by the test, not by marple.
    Test,
}

use Class::{Needed, Optional, Test};

const OPTIONAL_LISTED: Class = Optional { in_system_service: true };
const OPTIONAL_UNLISTED: Class = Optional { in_system_service: false };

pub(crate) struct Call {
    pub(crate) name: &'static str,
    pub(crate) number: i64,
    pub(crate) class: Class,
}

macro_rules! calls {
    ($($name:ident $class:ident;)*) => {
        &[$(Call {
            name: stringify!($name),
            number: libc::$name,
            class: $class,
        }),*]
    };
}

/// System calls by purpose. The names are those of the constants in `libc`.
pub(crate) const CALLS: &[Call] = calls! {
    // Memory and threads: the C library, and the mappings of slots and rings.
    SYS_brk Needed;
    SYS_mmap Needed;
    SYS_mremap Needed;
    SYS_munmap Needed;
    SYS_mprotect Needed;
    SYS_madvise Needed;
    SYS_clone Needed;
    SYS_clone3 Needed;
    SYS_set_robust_list Needed;
    SYS_rseq Needed;
    SYS_sched_getaffinity Needed;
    SYS_sched_yield Needed;
    // Used if the thread that starts the agent is pinned, or has another policy than the process
    // was started with.
    SYS_sched_setaffinity OPTIONAL_LISTED;
    SYS_sched_setscheduler OPTIONAL_LISTED;
    SYS_futex Needed;
    SYS_membarrier Needed;
    SYS_exit Needed;
    SYS_exit_group Needed;
    SYS_prctl Needed;
    SYS_gettid Needed;
    SYS_getpid Needed;
    SYS_geteuid Needed;
    SYS_getrandom Needed;
    SYS_prlimit64 Needed;
    SYS_uname Needed;
    SYS_sysinfo Needed;
    // The probe of filters waits for its child.
    SYS_wait4 Needed;
    // Time.
    SYS_clock_gettime Needed;
    SYS_clock_nanosleep Needed;
    SYS_nanosleep Needed;
    SYS_restart_syscall Needed;
    SYS_timerfd_create Needed;
    SYS_timerfd_settime Needed;
    // Signals.
    SYS_rt_sigaction Needed;
    SYS_rt_sigprocmask Needed;
    SYS_rt_sigreturn Needed;
    SYS_sigaltstack Needed;
    // Files.
    SYS_openat Needed;
    SYS_close Needed;
    SYS_read Needed;
    SYS_pread64 Needed;
    SYS_write Needed;
    SYS_writev Needed;
    SYS_pwrite64 Needed;
    SYS_lseek Needed;
    SYS_fstat Needed;
    SYS_newfstatat Needed;
    SYS_statx Needed;
    SYS_fstatfs Needed;
    SYS_getdents64 Needed;
    SYS_readlinkat Needed;
    SYS_faccessat Needed;
    SYS_fcntl Needed;
    SYS_flock Needed;
    SYS_ftruncate Needed;
    SYS_fchmod Needed;
    SYS_fchmodat Needed;
    SYS_mkdirat Needed;
    SYS_unlinkat Needed;
    SYS_linkat Needed;
    SYS_renameat Needed;
    SYS_renameat2 Needed;
    SYS_fsync Needed;
    SYS_fdatasync Needed;
    SYS_fallocate Needed;
    SYS_getcwd Needed;
    SYS_inotify_init1 Needed;
    SYS_inotify_add_watch Needed;
    SYS_inotify_rm_watch Needed;
    // Dumps of the `jemalloc` feature.
    SYS_memfd_create Needed;
    SYS_ioctl OPTIONAL_LISTED;
    // Runtime and endpoint.
    SYS_epoll_create1 Needed;
    SYS_epoll_ctl Needed;
    SYS_epoll_pwait Needed;
    SYS_ppoll Needed;
    SYS_eventfd2 Needed;
    SYS_pipe2 Needed;
    SYS_socket Needed;
    SYS_socketpair Needed;
    SYS_bind Needed;
    SYS_listen Needed;
    SYS_accept4 Needed;
    SYS_connect Needed;
    SYS_getsockname Needed;
    SYS_getsockopt Needed;
    SYS_setsockopt Needed;
    SYS_recvfrom Needed;
    SYS_recvmsg Needed;
    SYS_sendto Needed;
    SYS_sendmsg Needed;
    SYS_shutdown Needed;
    // Profiles and stacks.
    SYS_perf_event_open OPTIONAL_UNLISTED;
    SYS_timer_create OPTIONAL_LISTED;
    SYS_timer_settime OPTIONAL_LISTED;
    SYS_timer_delete OPTIONAL_LISTED;
    SYS_rt_tgsigqueueinfo OPTIONAL_LISTED;
    SYS_get_robust_list OPTIONAL_LISTED;
    SYS_getpriority OPTIONAL_LISTED;
    SYS_setpriority OPTIONAL_LISTED;
    // A panic of the test ends in abort.
    SYS_tgkill Test;
    SYS_kill Test;
};

/// Older equivalents that x86_64 has in addition.
#[cfg(target_arch = "x86_64")]
pub(crate) const OLDER: &[Call] = calls! {
    SYS_open Needed;
    SYS_stat Needed;
    SYS_lstat Needed;
    SYS_access Needed;
    SYS_readlink Needed;
    SYS_mkdir Needed;
    SYS_rmdir Needed;
    SYS_rename Needed;
    SYS_unlink Needed;
    SYS_chmod Needed;
    SYS_epoll_wait Needed;
    SYS_poll Needed;
};

#[cfg(not(target_arch = "x86_64"))]
pub(crate) const OLDER: &[Call] = &[];

pub(crate) fn calls() -> impl Iterator<Item = &'static Call> {
    CALLS.iter().chain(OLDER)
}

impl Call {
    /// Returns the name that the kernel uses.
    pub(crate) fn kernel_name(&self) -> &'static str {
        self.name.trim_start_matches("SYS_")
    }
}
