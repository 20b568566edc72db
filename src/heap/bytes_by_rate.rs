//! Bytes allocated while sampling was off, exact, or in between.
//!
//! The comments of a profile state them: no sample stands for bytes allocated at rate 0, and those
//! allocated at rate 1 are not estimated.

use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;

/// Counters of the bytes allocated at rate 0 and at rate 1, up to the last change of the rate.
pub(super) struct BytesByRate {
    at_last_change: AtomicU64,
    unsampled: AtomicU64,
    exact: AtomicU64,
}

/// Bytes allocated since the program started, by the sampling rate.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct RateShares {
    /// Bytes allocated at rate 0.
    pub(super) unsampled: u64,
    /// Bytes allocated at rate 1.
    pub(super) exact: u64,
    /// Bytes allocated at any other rate.
    pub(super) estimated: u64,
}

impl BytesByRate {
    pub(super) const fn new() -> Self {
        Self {
            at_last_change: AtomicU64::new(0),
            unsampled: AtomicU64::new(0),
            exact: AtomicU64::new(0),
        }
    }

    /// Records that the rate was `rate` until now. `allocated` is the total so far.
    pub(super) fn record_change(&self, rate: u64, allocated: u64) {
        let since = allocated.saturating_sub(self.at_last_change.swap(allocated, Relaxed));
        match rate {
            0 => self.unsampled.fetch_add(since, Relaxed),
            1 => self.exact.fetch_add(since, Relaxed),
            _ => 0,
        };
    }

    /// Returns the shares of `allocated`, the total so far, if the rate is `rate`.
    pub(super) fn shares(&self, rate: u64, allocated: u64) -> RateShares {
        let since = allocated.saturating_sub(self.at_last_change.load(Relaxed));
        let current = |of: u64| if rate == of { since } else { 0 };
        let unsampled = self.unsampled.load(Relaxed) + current(0);
        let exact = self.exact.load(Relaxed) + current(1);
        RateShares { unsampled, exact, estimated: allocated.saturating_sub(unsampled + exact) }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn bytes_are_attributed_to_rate_at_which_they_were_allocated() {
        let bytes = BytesByRate::new();
        let shares = |unsampled, exact, estimated| RateShares { unsampled, exact, estimated };
        assert_eq!(bytes.shares(512, 100), shares(0, 0, 100));
        bytes.record_change(512, 100);
        assert_eq!(bytes.shares(0, 130), shares(30, 0, 100));
        bytes.record_change(0, 140);
        assert_eq!(bytes.shares(1, 150), shares(40, 10, 100));
        bytes.record_change(1, 150);
        bytes.record_change(0, 151);
        assert_eq!(bytes.shares(64, 160), shares(41, 10, 109));
    }
}
