//! Limits of perf events in `/proc/sys/kernel`.

use std::fs;

/// Returns the level of `kernel.perf_event_paranoid`, or `None` if it does not exist.
pub fn paranoid_level() -> Option<i32> {
    fs::read_to_string("/proc/sys/kernel/perf_event_paranoid").ok()?.trim().parse().ok()
}

/// Returns `kernel.perf_event_mlock_kb`: KiB that a user's rings may lock for each CPU in addition
/// to `RLIMIT_MEMLOCK`.
pub(crate) fn locked_kib_per_cpu() -> Option<u64> {
    fs::read_to_string("/proc/sys/kernel/perf_event_mlock_kb").ok()?.trim().parse().ok()
}
