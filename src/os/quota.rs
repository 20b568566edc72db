//! Maximum share that marple may use of quotas of the process or user.
//!
//! ```text
//! RLIMIT_NOFILE       descriptors, of the process     an eighth, and none of the last quarter
//! RLIMIT_SIGPENDING   timers and queued signals,      an eighth of the free ones
//!                     of the user in all processes
//! RLIMIT_MEMLOCK      locked bytes, of the user       an eighth; no limit with CAP_IPC_LOCK,
//!                                                     under which nothing is counted
//! ```
//!
//! Limits and the service's needs change. Code whose use grows with the number of threads therefore
//! queries its allowance before it starts and again while it runs. If the allowance is below the
//! amount held, the excess is released.

use std::fmt;
use std::path::Path;

use rustix::process::{Resource, getrlimit};

use crate::base::Moment;
use crate::os::proc::procfs::Procfs;

/// Divisor of a quota: marple takes at most one part in this many.
const QUOTA_DIVISOR: u64 = 8;

/// The part of a quota that marple may hold, and the limit behind it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct QuotaShare {
    /// Total that marple may hold, in the quota's unit.
    pub count: u64,
    /// Limit that the quota is a part of.
    pub limit: QuotaLimit,
}

/// A limit, its value, and the current use by the process or user.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum QuotaLimit {
    /// There is no limit.
    None,
    /// `RLIMIT_NOFILE`.
    Descriptors {
        /// Soft limit.
        limit: u64,
        /// Open descriptors of the process, including marple's.
        used: u64,
    },
    /// `RLIMIT_SIGPENDING`.
    PendingSignals {
        /// Soft limit.
        limit: u64,
        /// Timers and queued signals of the user, including marple's.
        used: u64,
    },
    /// `RLIMIT_MEMLOCK`.
    LockedMemory {
        /// Soft limit, in bytes.
        limit: u64,
    },
}

impl fmt::Display for QuotaLimit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::None => f.write_str("no limit"),
            Self::Descriptors { limit, used } => {
                write!(f, "{used} of {limit} descriptors are in use (RLIMIT_NOFILE)")
            }
            Self::PendingSignals { limit, used } => write!(
                f,
                "{used} of {limit} pending signals of this user are in use (RLIMIT_SIGPENDING {limit})"
            ),
            Self::LockedMemory { limit } => {
                write!(f, "RLIMIT_MEMLOCK is {} KiB, without CAP_IPC_LOCK", limit >> 10)
            }
        }
    }
}

impl QuotaShare {
    const UNLIMITED: Self = Self { count: u64::MAX, limit: QuotaLimit::None };

    fn for_descriptors(limit: u64, used: u64, own: u64) -> Self {
        let others = used.saturating_sub(own);
        let count = (limit / QUOTA_DIVISOR).min((limit / 4 * 3).saturating_sub(others));
        Self { count, limit: QuotaLimit::Descriptors { limit, used } }
    }

    fn for_signals(limit: u64, used: u64, own: u64) -> Self {
        let free = limit.saturating_sub(used.saturating_sub(own));
        Self { count: free / QUOTA_DIVISOR, limit: QuotaLimit::PendingSignals { limit, used } }
    }
}

/// A reader of the number of descriptors of this process.
#[derive(Debug)]
pub struct DescriptorQuota(Procfs);

impl DescriptorQuota {
    /// Opens `/proc/self/fd`: one descriptor.
    pub fn open() -> Self {
        Self(Procfs::open_descriptors(Path::new("/")))
    }

    /// Returns the number of descriptors marple may hold for samples if it holds `own`. If the
    /// number of open ones is unknown, that is an eighth of the limit. Costs 2 us; more on Linux
    /// before 6.2, and then less often.
    pub fn allowance(&mut self, own: u64, now: Moment) -> QuotaShare {
        match getrlimit(Resource::Nofile).current {
            Some(limit) => QuotaShare::for_descriptors(limit, self.0.fds(now).unwrap_or(own), own),
            None => QuotaShare::UNLIMITED,
        }
    }
}

/// Returns the number of timers marple may hold if it holds `own`. If the number of pending signals
/// is unknown, only marple's own are assumed to be in use. Costs 10 us.
pub fn pending_signals(own: u64) -> QuotaShare {
    let status = std::fs::read("/proc/self/status").unwrap_or_default();
    match parse_sigq(&status) {
        Some((used, limit)) => QuotaShare::for_signals(limit, used, own),
        None => match getrlimit(Resource::Sigpending).current {
            Some(limit) => QuotaShare::for_signals(limit, own, own),
            None => QuotaShare::UNLIMITED,
        },
    }
}

/// Returns the number of bytes marple may hold locked.
pub fn locked_memory() -> QuotaShare {
    const CAP_IPC_LOCK: u32 = 14;
    let status = std::fs::read("/proc/self/status").unwrap_or_default();
    let capabilities =
        status_field(&status, b"CapEff:").and_then(|mask| u64::from_str_radix(mask, 16).ok());
    match getrlimit(Resource::Memlock).current {
        Some(limit) if capabilities.unwrap_or(0) >> CAP_IPC_LOCK & 1 == 0 => {
            QuotaShare { count: limit / QUOTA_DIVISOR, limit: QuotaLimit::LockedMemory { limit } }
        }
        _ => QuotaShare::UNLIMITED,
    }
}

/// Parses `SigQ: 3/96364` of a status: number in use, and limit.
fn parse_sigq(status: &[u8]) -> Option<(u64, u64)> {
    let (used, limit) = status_field(status, b"SigQ:")?.split_once('/')?;
    Some((used.parse().ok()?, limit.parse().ok()?))
}

fn status_field<'a>(status: &'a [u8], key: &[u8]) -> Option<&'a str> {
    let line = status.split(|&byte| byte == b'\n').find_map(|line| line.strip_prefix(key))?;
    Some(std::str::from_utf8(line).ok()?.trim())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn descriptor_share_is_an_eighth_without_the_last_quarter() {
        for (limit, used, own, count) in [
            (1024, 50, 0, 128),
            (1024, 50, 40, 128),
            // Others have 640: with 128 more, exactly three quarters are in use.
            (1024, 640, 0, 128),
            (1024, 768, 128, 128),
            (1024, 769, 128, 127),
            (1024, 896, 128, 0),
            (1024, 1024, 0, 0),
            (256, 20, 0, 32),
            (7, 3, 0, 0),
        ] {
            let allowance = QuotaShare::for_descriptors(limit, used, own);
            assert_eq!(allowance.count, count, "{used} of {limit}, {own} held");
        }
    }

    #[test]
    fn descriptor_share_is_stable_after_release() {
        let limit = 1024;
        let others = 700;
        let held = QuotaShare::for_descriptors(limit, others + 128, 128).count;
        assert_eq!(held, 68);
        assert_eq!(QuotaShare::for_descriptors(limit, others + held, held).count, held);
    }

    #[test]
    fn timer_share_is_an_eighth_of_free_signals() {
        for (limit, used, own, count) in
            [(64, 0, 0, 8), (64, 8, 8, 8), (64, 40, 8, 4), (64, 64, 0, 0), (96_364, 4, 0, 12_045)]
        {
            let allowance = QuotaShare::for_signals(limit, used, own);
            assert_eq!(allowance.count, count, "{used} of {limit}, {own} held");
        }
        let status = b"Threads:\t2\nSigQ:\t3/96364\nSigPnd:\t0\n";
        assert_eq!(parse_sigq(status), Some((3, 96_364)));
        assert_eq!(parse_sigq(b""), None);
    }

    #[test]
    fn quotas_of_this_process_are_read() {
        let descriptors = DescriptorQuota::open().allowance(0, Moment::default());
        assert!(matches!(
            descriptors.limit,
            QuotaLimit::Descriptors { used: 1.., .. } | QuotaLimit::None
        ));
        assert!(matches!(
            pending_signals(0).limit,
            QuotaLimit::PendingSignals { .. } | QuotaLimit::None
        ));
    }
}
