//! Random bits for names that must not collide, and for secrets.

use std::io;
use std::process;
use std::sync::atomic::{AtomicU64, Ordering};

use ulid::Ulid;

/// Returns 128 bits of the kernel's random numbers.
///
/// # Errors
///
/// Returns an error if the kernel gives none: no `getrandom` and no `/dev/urandom`.
pub(crate) fn random_bits() -> io::Result<u128> {
    let mut bytes = [0; 16];
    getrandom::fill(&mut bytes).map_err(io::Error::other)?;
    Ok(u128::from_ne_bytes(bytes))
}

/// Returns a ULID of the time `unix_ms`.
///
/// Without random numbers it is still unique on this machine: the process ID and a counter take
/// their place.
pub(crate) fn ulid_at(unix_ms: u64) -> Ulid {
    static COUNTER: AtomicU64 = AtomicU64::new(0);
    let bits = random_bits().unwrap_or_else(|_| {
        let count = COUNTER.fetch_add(1, Ordering::Relaxed);
        u128::from(process::id()) << 40 | u128::from(count)
    });
    Ulid::from_parts(unix_ms, bits)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ulids_of_one_millisecond_differ_in_their_random_part() {
        let first = ulid_at(1_700_000_000_000);
        let second = ulid_at(1_700_000_000_000);
        assert_ne!(first, second);
        assert_eq!(first.timestamp_ms(), second.timestamp_ms());
        assert_eq!(first.timestamp_ms(), 1_700_000_000_000);
    }
}
