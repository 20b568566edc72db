//! Memory limit for responses that clients have not read yet.
//!
//! The profiler is free as soon as a capture is encoded. The encoded bytes stay in memory until the
//! client has read the last one or its connection has ended. A client that sends requests on a
//! hundred connections and reads no response would keep a hundred captures in memory. All responses
//! together are therefore limited to [`MAX_UNREAD_BYTES`]. Beyond it a capture is refused before it
//! starts.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Bytes;

/// Limit for all unread responses in bytes: one capture of the maximum size, or hundreds of typical
/// ones.
pub(super) const MAX_UNREAD_BYTES: u64 = 64 << 20;

static UNREAD_BYTES: AtomicU64 = AtomicU64::new(0);

/// Returns `true` if unread responses use the whole budget.
pub(super) fn is_full() -> bool {
    UNREAD_BYTES.load(Ordering::Relaxed) >= MAX_UNREAD_BYTES
}

/// Returns `true` if unread responses use at least half of the budget. Clients must then read
/// faster.
pub(super) fn is_half_full() -> bool {
    UNREAD_BYTES.load(Ordering::Relaxed) >= MAX_UNREAD_BYTES / 2
}

/// Returns `bytes`, counted until the last one is sent, or `None` if they exceed the budget.
pub(super) fn reserve(bytes: Vec<u8>) -> Option<Bytes> {
    reserve_counted(bytes, &UNREAD_BYTES, MAX_UNREAD_BYTES)
}

fn reserve_counted(bytes: Vec<u8>, counter: &'static AtomicU64, max_bytes: u64) -> Option<Bytes> {
    let size = bytes.len() as u64;
    // A response is always accepted if no other is unread, whatever its size.
    let fits = |sum: u64| (sum == 0 || sum.saturating_add(size) <= max_bytes).then(|| sum + size);
    counter.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
    Some(Bytes::from_owner(ReservedBytes { bytes, counter }))
}

/// Bytes that are counted until the connection drops the last reference.
struct ReservedBytes {
    bytes: Vec<u8>,
    counter: &'static AtomicU64,
}

impl AsRef<[u8]> for ReservedBytes {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for ReservedBytes {
    fn drop(&mut self) {
        self.counter.fetch_sub(self.bytes.len() as u64, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn unread_bytes_are_counted_until_dropped() {
        static SUM: AtomicU64 = AtomicU64::new(0);
        let reserve = |size: usize| reserve_counted(vec![0; size], &SUM, 10);
        let large = reserve(99).expect("a single response of any size");
        assert!(reserve(1).is_none() && reserve(0).is_none());
        drop(large);
        let first = reserve(4).unwrap();
        let second = reserve(6).unwrap();
        assert!(reserve(1).is_none());
        let part = first.slice(1..2);
        drop(first);
        assert!(reserve(1).is_none(), "part of it is unread");
        drop(part);
        let third = reserve(4).unwrap();
        assert_eq!(SUM.load(Ordering::Relaxed), 10);
        drop((second, third));
        assert_eq!(SUM.load(Ordering::Relaxed), 0);
    }
}
