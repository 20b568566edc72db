//! Captures that were answered and are not taken yet.
//!
//! The profiler is free as soon as a capture is encoded; what is left of it is memory, until its client has
//! taken the last byte or its connection has ended. A client that asks on a hundred connections and takes
//! nothing would keep a hundred captures in the service's memory, so all together have [`MOST`]. Beyond it a
//! capture is refused before it is begun.

use std::sync::atomic::{AtomicU64, Ordering};

use axum::body::Bytes;

/// All of them: a capture of the greatest size there is, or hundreds of the usual ones.
pub(super) const MOST: u64 = 64 << 20;

static HELD: AtomicU64 = AtomicU64::new(0);

/// Whether no more is to be captured until somebody has taken what he asked for.
pub(super) fn is_full() -> bool {
    HELD.load(Ordering::Relaxed) >= MOST
}

/// Returns `true` if unread responses take half of what they may. Clients must read faster then.
pub(super) fn is_crowded() -> bool {
    HELD.load(Ordering::Relaxed) >= MOST / 2
}

/// `bytes`, counted until the last of them was sent; none when they are too many.
pub(super) fn hold(bytes: Vec<u8>) -> Option<Bytes> {
    count(bytes, &HELD, MOST)
}

fn count(bytes: Vec<u8>, held: &'static AtomicU64, most: u64) -> Option<Bytes> {
    let size = bytes.len() as u64;
    // One is always let through, however large, when it is alone.
    let fits = |sum: u64| (sum == 0 || sum.saturating_add(size) <= most).then(|| sum + size);
    held.fetch_update(Ordering::Relaxed, Ordering::Relaxed, fits).ok()?;
    Some(Bytes::from_owner(Counted { bytes, held }))
}

/// Dropped with the last reference to its bytes, which is the connection's.
struct Counted {
    bytes: Vec<u8>,
    held: &'static AtomicU64,
}

impl AsRef<[u8]> for Counted {
    fn as_ref(&self) -> &[u8] {
        &self.bytes
    }
}

impl Drop for Counted {
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
