//! Stub: the CPU time of other threads is not available.

use std::io;
use std::time::Duration;

/// Returns an error.
///
/// # Errors
///
/// Always returns an error.
pub fn thread_cpu_time(_: u32) -> io::Result<Duration> {
    Err(io::ErrorKind::Unsupported.into())
}
