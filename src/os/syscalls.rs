//! Optional system calls, and checks that a seccomp filter allows them.
//!
//! A seccomp filter responds to a call outside of its list with an error, or kills the process
//! (`SCMP_ACT_KILL`, and systemd's default). An error can be handled when it occurs; a kill has to
//! be predicted. The kernel does not show a filter to an unprivileged process, so its effect is
//! probed:
//!
//! ```text
//! /proc/thread-self/status   Seccomp: 0   no filter: every call is allowed
//!                            Seccomp: 2   a copy of the process makes each call of `OptionalCall`
//!                                         once, with arguments that the kernel rejects, and may
//!                                         be killed by it (`probe`)
//! unreadable, or no copy possible         no optional call is made
//! ```
//!
//! The result is cached with the mode and the number of filters in the status. [`permit`] reads
//! both again, so a filter that the service installs later is detected before the next optional
//! call. A filter installed less than `STATUS_MAX_AGE` before the call is not detected.
//!
//! Before Linux 5.9 the status does not contain the number of filters, so an additional filter is
//! not detected.
//!
//! Filters belong to threads. [`permit`] checks the calling thread, and is called by the function
//! that makes the call. Two threads with the same number of filters are assumed to have the same
//! ones.
//!
//! Calls that marple cannot work without are listed in `tests/agent/syscalls`, with all others.

use crate::base::sync::Mutex;
use std::cell::Cell;
use std::fmt;
use std::sync::PoisonError;
use std::time::{Duration, Instant};

use crate::base::warnings;

mod probe;

/// A system call, or a family of them, that marple makes only if [`permit`] allows it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum OptionalCall {
    /// `perf_event_open`: CPU samples without signals.
    PerfEventOpen,
    /// `getpriority`, `setpriority`: compresses HTTP profiles at low priority, resets inherited
    /// nice values.
    SetPriority,
    /// `timer_create`, `timer_settime` and `timer_delete`: CPU samples by a timer for each thread.
    ThreadTimers,
    /// `rt_tgsigqueueinfo`: stacks of running threads.
    QueueSignal,
    /// `get_robust_list`: the bounds of another thread's stack.
    RobustList,
    /// `ioctl` with `PROCMAP_QUERY`: one mapping instead of the whole list.
    Ioctl,
    /// `sched_setaffinity`: resets the CPU mask inherited from the starting thread.
    SetAffinity,
    /// `sched_setscheduler`: resets a real-time policy inherited from the starting thread.
    SetScheduler,
}

/// All optional calls in probing order, each with its name and the loss without it.
const OPTIONAL_CALLS: [(OptionalCall, &str, &str); 8] = [
    (OptionalCall::PerfEventOpen, "perf_event_open", "CPU samples use timers and SIGPROF"),
    (OptionalCall::SetPriority, "setpriority", "HTTP profiles are encoded at normal priority"),
    (OptionalCall::ThreadTimers, "timer_create", "CPU samples cannot use timers"),
    (OptionalCall::QueueSignal, "rt_tgsigqueueinfo", "no stacks of running threads"),
    (OptionalCall::RobustList, "get_robust_list", "thread stacks are truncated at the outer end"),
    (OptionalCall::Ioctl, "ioctl", "/proc/self/maps is read in full, and perf events are not used"),
    (
        OptionalCall::SetAffinity,
        "sched_setaffinity",
        "marple's threads inherit the CPU mask of the starting thread",
    ),
    (
        OptionalCall::SetScheduler,
        "sched_setscheduler",
        "marple's threads inherit the scheduling policy of the starting thread",
    ),
];

impl OptionalCall {
    /// Returns the name of the call.
    pub fn name(self) -> &'static str {
        OPTIONAL_CALLS[self as usize].1
    }
}

/// Effect of a filter on a call.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum SyscallVerdict {
    /// The call reaches the kernel.
    Allowed,
    /// The filter returns this error.
    Refused(i32),
    /// The filter kills the process.
    Kills,
    /// The effect is unknown.
    Unknown(ProbeFailure),
}

/// Reason that the effect of a filter is unknown.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum ProbeFailure {
    /// The status of the thread cannot be read.
    NoStatus,
    /// The process is too large to be copied: resident MiB.
    TooLarge(u64),
    /// `clone`, `mmap` or `wait4` failed, or the copy did not respond (0).
    CopyFailed(i32),
}

impl fmt::Display for ProbeFailure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoStatus => f.write_str("/proc/thread-self/status cannot be read"),
            Self::TooLarge(mib) => write!(
                f,
                "the process is too large to be copied for a probe ({mib} MiB resident, {} at \
                 most)",
                probe::MAX_RESIDENT_BYTES >> 20
            ),
            Self::CopyFailed(0) => f.write_str(
                "the copy of the process for the probe did not \
                respond",
            ),
            Self::CopyFailed(errno) => {
                let error = std::io::Error::from_raw_os_error(*errno);
                write!(f, "the process cannot be copied for a probe: {error}")
            }
        }
    }
}

/// An optional call that is not made, with the reason.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SyscallDenied {
    call: OptionalCall,
    verdict: SyscallVerdict,
}

impl SyscallDenied {
    /// Returns the call.
    pub fn call(&self) -> OptionalCall {
        self.call
    }
}

impl fmt::Display for SyscallDenied {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = self.call.name();
        match self.verdict {
            SyscallVerdict::Unknown(why) => write!(
                f,
                "{name} is not called: a system call filter (seccomp) may kill the process, and \
                 {why}"
            ),
            _ => write!(
                f,
                "{name} is not called: a system call filter (seccomp) kills the process for this \
                 call"
            ),
        }
    }
}

impl From<SyscallDenied> for std::io::Error {
    fn from(denied: SyscallDenied) -> Self {
        Self::new(std::io::ErrorKind::PermissionDenied, denied.to_string())
    }
}

/// Effect of a filter on each optional call.
type SyscallVerdicts = [SyscallVerdict; OPTIONAL_CALLS.len()];

/// The filters of a thread, as in its status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct SeccompFilters {
    /// 0: none; 1: only read, write and exit; 2: a filter.
    mode: u32,
    /// Number of filters, since Linux 5.9.
    count: Option<u32>,
}

/// Maximum number of filter sets cached. A service has one, or two if a thread adds a filter.
const MAX_CACHED_VERDICTS: usize = 8;

/// Cached results, the newest last.
static VERDICT_CACHE: Mutex<Vec<(SeccompFilters, SyscallVerdicts)>> = Mutex::new(Vec::new());

/// Returns `Ok` if the calling thread can make this call without being killed.
///
/// A call for which the filter returns an error counts as allowed: its caller handles the error.
/// Costs 10 us at first, 50 ns within `STATUS_MAX_AGE`, and some milliseconds if the filters have
/// changed. Takes a lock and allocates.
///
/// # Errors
///
/// Returns the reason that the call must not be made.
pub fn permit(call: OptionalCall) -> Result<(), SyscallDenied> {
    let filters = recent_or_read_filters();
    if let Some(SeccompFilters { mode: 0, .. }) = filters {
        return Ok(());
    }
    let verdicts = filters.map_or(NO_STATUS, cached_verdicts);
    match verdicts[call as usize] {
        SyscallVerdict::Allowed | SyscallVerdict::Refused(_) => Ok(()),
        verdict @ (SyscallVerdict::Kills | SyscallVerdict::Unknown(_)) => {
            Err(SyscallDenied { call, verdict })
        }
    }
}

/// Returns the error with which the calling thread's filter refuses this call, or `None` if it does
/// not.
pub fn filter_errno(call: OptionalCall) -> Option<i32> {
    let filters = recent_or_read_filters().filter(|filters| filters.mode != 0)?;
    match cached_verdicts(filters)[call as usize] {
        SyscallVerdict::Refused(errno) => Some(errno),
        _ => None,
    }
}

const NO_STATUS: SyscallVerdicts =
    [SyscallVerdict::Unknown(ProbeFailure::NoStatus); OPTIONAL_CALLS.len()];

/// Returns the effects of these filters, which must be those of the calling thread.
fn cached_verdicts(filters: SeccompFilters) -> SyscallVerdicts {
    let mut known = VERDICT_CACHE.lock().unwrap_or_else(PoisonError::into_inner);
    if let Some((_, verdicts)) = known.iter().find(|(then, _)| *then == filters) {
        return *verdicts;
    }
    let verdicts = match filters.mode {
        2 => probe::run(),
        _ => NO_STATUS,
    };
    if known.len() >= MAX_CACHED_VERDICTS {
        known.remove(0);
    }
    known.push((filters, verdicts));
    update_warning(&verdicts);
    verdicts
}

/// Sets the warning about missing calls, which `/status` shows.
fn update_warning(verdicts: &SyscallVerdicts) {
    match describe(verdicts) {
        Some(text) => warnings::set(TOPIC, text),
        None => warnings::clear(TOPIC),
    }
}

/// Topic of the warning about missing calls.
const TOPIC: &str = "system calls";

fn describe(verdicts: &SyscallVerdicts) -> Option<String> {
    let with = |wanted: fn(&SyscallVerdict) -> bool| {
        let rows = OPTIONAL_CALLS.iter().zip(verdicts).filter(move |(_, verdict)| wanted(verdict));
        rows.map(|((_, name, loss), _)| format!("{name} ({loss})")).collect::<Vec<_>>()
    };
    let untried = verdicts.iter().find_map(|verdict| match verdict {
        SyscallVerdict::Unknown(why) => Some(why),
        _ => None,
    });
    let mut parts = Vec::new();
    let killed = with(|verdict| *verdict == SyscallVerdict::Kills);
    if !killed.is_empty() {
        parts.push(format!(
            "a system call filter (seccomp) kills the process for {}",
            killed.join(", ")
        ));
    }
    // The error text of the CPU engine already reports a refused perf_event_open.
    let refused = |verdict: &SyscallVerdict| matches!(verdict, SyscallVerdict::Refused(_));
    let refused: Vec<String> =
        with(refused).into_iter().filter(|row| !row.starts_with("perf_event_open")).collect();
    if !refused.is_empty() {
        parts.push(format!("a system call filter (seccomp) refuses {}", refused.join(", ")));
    }
    if let Some(why) = untried {
        parts.push(format!(
            "a system call filter (seccomp) may kill the process for {}, and {why}",
            with(|verdict| matches!(verdict, SyscallVerdict::Unknown(_))).join(", ")
        ));
    }
    (!parts.is_empty()).then(|| {
        format!(
            "{}; these calls are not made; allow them to enable these features (systemd: \
             SystemCallFilter=)",
            parts.join("; ")
        )
    })
}

/// Validity of the status, long enough for a batch of calls.
const STATUS_MAX_AGE: Duration = Duration::from_millis(1);

/// Returns the filters of the calling thread, or `None` if its status cannot be read.
fn recent_or_read_filters() -> Option<SeccompFilters> {
    thread_local! {
        static RECENT: Cell<Option<(Instant, SeccompFilters)>> = const { Cell::new(None) };
    }
    // A terminating thread has no thread-locals.
    let recent = RECENT.try_with(Cell::get).ok().flatten();
    if let Some((at, filters)) = recent
        && at.elapsed() < STATUS_MAX_AGE
    {
        return Some(filters);
    }
    // Out of descriptors: use this thread's previous result.
    let Some(filters) = read_filters() else { return recent.map(|(_, filters)| filters) };
    let _ = RECENT.try_with(|recent| recent.set(Some((Instant::now(), filters))));
    Some(filters)
}

fn read_filters() -> Option<SeccompFilters> {
    let status = std::fs::read("/proc/thread-self/status")
        .or_else(|_| std::fs::read("/proc/self/status"))
        .ok()?;
    Some(parse(&status))
}

/// Parses the filters in a status. A kernel without seccomp has no such lines.
fn parse(status: &[u8]) -> SeccompFilters {
    let value = |key: &[u8]| {
        let line = status.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(key))?;
        std::str::from_utf8(line).ok()?.trim().parse().ok()
    };
    SeccompFilters { mode: value(b"Seccomp:").unwrap_or(0), count: value(b"Seccomp_filters:") }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn seccomp_filters_are_parsed_from_status() {
        let status = b"Name:\tx\nSeccomp:\t2\nSeccomp_filters:\t3\n";
        assert_eq!(parse(status), SeccompFilters { mode: 2, count: Some(3) });
        assert_eq!(parse(b"Seccomp:\t2\n"), SeccompFilters { mode: 2, count: None });
        assert_eq!(parse(b"Name:\tx\n"), SeccompFilters { mode: 0, count: None });
    }

    #[test]
    fn optional_calls_match_their_table_index() {
        for (place, (call, name, _)) in OPTIONAL_CALLS.into_iter().enumerate() {
            assert_eq!((call as usize, call.name()), (place, name));
        }
    }

    #[test]
    fn warning_names_denied_calls_and_consequences() {
        let mut verdicts = [SyscallVerdict::Allowed; OPTIONAL_CALLS.len()];
        assert_eq!(describe(&verdicts), None);
        verdicts[OptionalCall::PerfEventOpen as usize] = SyscallVerdict::Refused(libc::EPERM);
        assert_eq!(describe(&verdicts), None, "the engine reports it");
        verdicts[OptionalCall::SetPriority as usize] = SyscallVerdict::Kills;
        verdicts[OptionalCall::Ioctl as usize] = SyscallVerdict::Refused(libc::EPERM);
        let text = describe(&verdicts).unwrap();
        assert!(text.contains("kills the process for setpriority (HTTP profiles"), "{text}");
        assert!(text.contains("refuses ioctl"), "{text}");
        let text = describe(
            &[SyscallVerdict::Unknown(ProbeFailure::TooLarge(2048)); OPTIONAL_CALLS.len()],
        )
        .unwrap();
        assert!(text.contains("2048 MiB resident, 1024 at most"), "{text}");
    }

    #[test]
    fn probe_without_filter_allows_every_call() {
        assert_eq!(probe::run(), [SyscallVerdict::Allowed; OPTIONAL_CALLS.len()]);
    }
}
