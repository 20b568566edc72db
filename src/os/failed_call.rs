//! Error text for a failed system call: the call, the error, and the limits that cause this error.
//!
//! The text names the limits that the kernel checks for this error of this call, with their values.
//! If several apply, all are named without a guess at the cause.

use std::fmt;
use std::io;

use rustix::io::Errno;
use rustix::process::{Resource, getrlimit};

use super::syscalls::{self, OptionalCall, SyscallDenied};

/// A failed or denied system call.
#[derive(Debug)]
pub struct FailedCall {
    call: &'static str,
    error: io::Error,
    /// Limits that explain the error, or an empty string.
    limits: String,
    /// Reason the call was not made, or `None` if it was made.
    denied: Option<SyscallDenied>,
}

impl FailedCall {
    /// Creates the error of a call of `call`'s family that failed with `error`.
    pub(super) fn new(call: OptionalCall, error: io::Error) -> Self {
        let limits = match syscalls::filter_errno(call) {
            Some(errno) if error.raw_os_error() == Some(errno) => "by a system call filter".into(),
            _ => describe_limits(call.name(), &error),
        };
        Self { call: call.name(), error, limits, denied: None }
    }

    /// Creates the error of a call that is not optional.
    pub(super) fn with_name(call: &'static str, error: io::Error) -> Self {
        let limits = describe_limits(call, &error);
        Self { call, error, limits, denied: None }
    }

    /// Returns `true` if the call failed for lack of a permission.
    pub fn is_permission_error(&self) -> bool {
        self.denied.is_none()
            && self.call == OptionalCall::PerfEventOpen.name()
            && matches!(self.error.raw_os_error(), Some(libc::EACCES | libc::EPERM))
    }

    /// Returns `true` if the thread that the call referred to has exited.
    pub fn has_thread_exited(&self) -> bool {
        let error = self.error.raw_os_error();
        // timer_create rejects the clock of an exited thread with EINVAL.
        error == Some(libc::ESRCH)
            || error == Some(libc::EINVAL) && self.call == OptionalCall::ThreadTimers.name()
    }
}

impl From<SyscallDenied> for FailedCall {
    fn from(denied: SyscallDenied) -> Self {
        let error = io::Error::from_raw_os_error(libc::EPERM);
        Self { call: denied.call().name(), error, limits: String::new(), denied: Some(denied) }
    }
}

impl fmt::Display for FailedCall {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(denied) = &self.denied {
            return denied.fmt(f);
        }
        let separator = if self.limits.is_empty() { "" } else { ", " };
        write!(f, "{} refused ({}{separator}{})", self.call, errno_name(&self.error), self.limits)
    }
}

/// Name of the call that maps the ring buffer of a perf event.
pub(super) const RING_MMAP: &str = "mmap of a perf event's ring";

fn describe_limits(call: &'static str, error: &io::Error) -> String {
    let limit = |resource| getrlimit(resource).current;
    let kib = |bytes: Option<u64>| {
        bytes.map_or("unlimited".to_owned(), |bytes| format!("{} KiB", bytes >> 10))
    };
    let count =
        |count: Option<u64>| count.map_or("unlimited".to_owned(), |count| count.to_string());
    match (call, error.raw_os_error()) {
        ("perf_event_open", Some(libc::EACCES | libc::EPERM)) => {
            crate::os::perf_limits::paranoid_level()
                .map(|level| format!("perf_event_paranoid {level}"))
                .unwrap_or_default()
        }
        // perf_mmap returns EPERM if the locked memory would exceed both limits together.
        (RING_MMAP, Some(libc::EPERM)) => format!(
            "locked memory: RLIMIT_MEMLOCK {}, perf_event_mlock_kb {} for each CPU",
            kib(limit(Resource::Memlock)),
            count(crate::os::perf_limits::locked_kib_per_cpu())
        ),
        ("timer_create", Some(libc::EAGAIN)) => {
            format!("RLIMIT_SIGPENDING {}", count(limit(Resource::Sigpending)))
        }
        (_, Some(libc::EMFILE)) => format!("RLIMIT_NOFILE {}", count(limit(Resource::Nofile))),
        (_, Some(libc::ENFILE)) => "limit fs.file-max".to_owned(),
        (RING_MMAP, Some(libc::ENOMEM)) => format!("RLIMIT_AS {}", kib(limit(Resource::As))),
        _ => String::new(),
    }
}

/// Returns the errno name: for an administrator `EACCES` is more useful than `Permission denied`.
fn errno_name(error: &io::Error) -> String {
    let names = [
        (Errno::ACCESS, "EACCES"),
        (Errno::PERM, "EPERM"),
        (Errno::NOSYS, "ENOSYS"),
        (Errno::NOENT, "ENOENT"),
        (Errno::MFILE, "EMFILE"),
        (Errno::NFILE, "ENFILE"),
        (Errno::NOMEM, "ENOMEM"),
        (Errno::AGAIN, "EAGAIN"),
        (Errno::INVAL, "EINVAL"),
    ];
    let errno = error.raw_os_error();
    let name = names.iter().find(|(known, _)| Some(known.raw_os_error()) == errno);
    name.map_or_else(|| error.to_string(), |(_, name)| (*name).to_owned())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn message_names_the_limit_that_caused_the_error() {
        let words = |call, errno| {
            FailedCall::with_name(call, io::Error::from_raw_os_error(errno)).to_string()
        };
        for (call, errno, starts, names) in [
            ("perf_event_open", libc::EACCES, "perf_event_open refused (EACCES", "paranoid"),
            ("perf_event_open", libc::EMFILE, "perf_event_open refused (EMFILE", "RLIMIT_NOFILE"),
            (
                RING_MMAP,
                libc::EPERM,
                "mmap of a perf event's ring refused (EPERM",
                "RLIMIT_MEMLOCK",
            ),
            (RING_MMAP, libc::ENOMEM, "mmap of a perf event's ring refused (ENOMEM", "RLIMIT_AS"),
            ("timer_create", libc::EAGAIN, "timer_create refused (EAGAIN", "RLIMIT_SIGPENDING"),
        ] {
            let words = words(call, errno);
            assert!(words.starts_with(starts) && words.contains(names), "{words}");
            let others = ["paranoid", "RLIMIT_NOFILE", "RLIMIT_MEMLOCK", "RLIMIT_AS", "SIGPENDING"];
            let named = others.iter().filter(|other| words.contains(**other)).count();
            assert_eq!(named, 1, "{words}");
        }
        assert_eq!(words("timer_create", libc::ENOMEM), "timer_create refused (ENOMEM)");
    }
}
