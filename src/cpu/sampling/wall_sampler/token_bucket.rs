//! The token bucket that limits the checks and the signals per second.

use std::time::Duration;

use crate::base::Hertz;
use crate::unwind::thread_sampler::MAX_IN_FLIGHT;

/// A token bucket, refilled with time.
pub(super) struct TokenBucket {
    tokens_per_second: f64,
    pub(super) tokens: f64,
}

impl TokenBucket {
    pub(super) fn new(tokens_per_second: u32) -> Self {
        Self { tokens_per_second: tokens_per_second.into(), tokens: 0.0 }
    }

    /// Adds tokens, up to the larger of one tick's share and one batch of signals. Older unused
    /// tokens expire, so that they cannot cause a burst.
    pub(super) fn refill(&mut self, elapsed: Duration, frequency: Hertz) {
        let max_tokens =
            (self.tokens_per_second / f64::from(frequency.get().max(1))).max(MAX_IN_FLIGHT as f64);
        self.tokens =
            (self.tokens + elapsed.as_secs_f64() * self.tokens_per_second).min(max_tokens);
    }

    pub(super) fn is_empty(&self) -> bool {
        self.tokens < 1.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn token_bucket_refill_is_bounded_by_rate() {
        let mut bucket = TokenBucket::new(500);
        assert!(bucket.is_empty());
        bucket.refill(Duration::from_millis(2), Hertz(19));
        assert!(!bucket.is_empty());
        bucket.refill(Duration::from_secs(60), Hertz(1));
        assert!((bucket.tokens - 500.0).abs() < 1e-9);
        bucket.refill(Duration::from_secs(60), Hertz(100));
        assert!((bucket.tokens - 64.0).abs() < 1e-9);
    }
}
