//! Memory limit for responses that clients have not read yet.
//!
//! The profiler is free as soon as a capture is encoded. The encoded bytes stay in memory until the
//! client has read the last one or its connection has ended. A client that sends requests on a
//! hundred connections and reads no response would keep a hundred captures in memory. All responses
//! together are therefore limited to [`MOST`]. Beyond it a capture is refused before it starts.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Bytes;

/// Limit for all unread responses in bytes: one capture of the maximum size, or hundreds of typical
/// ones.
pub(super) const MOST: u64 = 64 << 20;

static HELD: AtomicU64 = AtomicU64::new(0);

/// Returns `true` if unread responses use the whole budget.
pub(super) fn is_full() -> bool {
    HELD.load(Ordering::Relaxed) >= MOST
}

/// Returns `true` if unread responses use at least half of the budget. Clients must then read
/// faster.
pub(super) fn is_crowded() -> bool {
    HELD.load(Ordering::Relaxed) >= MOST / 2
}

/// Returns `bytes`, counted until the last one is sent, or `None` if they exceed the budget.
pub(super) fn hold(bytes: Vec<u8>) -> Option<Bytes> {
    count(bytes, &HELD, MOST)
}

fn count(bytes: Vec<u8>, held: &'static AtomicU64, most: u64) -> Option<Bytes> {
    let size = bytes.len() as u64;
    // A response is always accepted if no other is unread, whatever its size.
    let fits = |sum: u64| (sum == 0 || sum.saturating_add(size) <= most).then(|| sum + size);
    held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
    Some(Bytes::from_owner(ReservedBytes { bytes, held }))
}

/// Bytes that are counted until the connection drops the last reference.
struct ReservedBytes {
    bytes: Vec<u8>,
    held: &'static AtomicU64,
}

impl AsRef<[u8]> for ReservedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for ReservedBytes {
    fn drop(&mut self) {
        self.held.fetch_sub(self.bytes.len() as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_not_taken_is_counted_until_it_is() {
        static SUM: AtomicU64 = AtomicU64::new(0);
        let hold = |size: usize| count(vec![0; size], &SUM, 10);
        let large = hold(99).expect("alone, whatever its size");
        assert!(hold(1).is_none() && hold(0).is_none());
        drop(large);
        let (first, second) = (hold(4).unwrap(), hold(6).unwrap());
        assert!(hold(1).is_none());
        let part = first.slice(1..2);
        drop(first);
        assert!(hold(1).is_none(), "a part of it is on its way");
        drop(part);
        let third = hold(4).unwrap();
        assert_eq!(SUM.load(Ordering::Relaxed), 10);
        drop((second, third));
        assert_eq!(SUM.load(Ordering::Relaxed), 0);
    }
}
