//! Rate limits with bursts.

use std::time::Duration;

/// A token bucket. It gains tokens with time, up to a capacity, which is the size of a burst.
///
/// The bucket has no clock: its owner passes the time since the last refill.
#[derive(Clone, Copy, Debug)]
pub(crate) struct TokenBucket {
    capacity: f64,
    tokens_per_second: f64,
    tokens: f64,
}

#[allow(dead_code, reason = "its users depend on the features")]
impl TokenBucket {
    /// Creates a bucket that has `capacity` tokens.
    pub(crate) const fn full(capacity: f64, tokens_per_second: f64) -> Self {
        Self { capacity, tokens_per_second, tokens: capacity }
    }

    /// Creates a bucket that has no tokens.
    pub(crate) const fn empty(capacity: f64, tokens_per_second: f64) -> Self {
        Self { capacity, tokens_per_second, tokens: 0.0 }
    }

    /// Adds the tokens of `elapsed`, the time since the last refill.
    pub(crate) fn refill(&mut self, elapsed: Duration) {
        let gained = elapsed.as_secs_f64() * self.tokens_per_second;
        self.tokens = (self.tokens + gained).min(self.capacity);
    }

    /// Takes one token. Returns `false` if there is none.
    pub(crate) fn try_take(&mut self) -> bool {
        let is_available = self.has(1);
        if is_available {
            self.take(1);
        }
        is_available
    }

    /// Takes `count` tokens. The bucket goes into debt if it has fewer.
    pub(crate) fn take(&mut self, count: usize) {
        self.tokens -= count as f64;
    }

    /// Returns `true` if there are at least `count` tokens.
    pub(crate) fn has(&self, count: usize) -> bool {
        self.tokens >= count as f64
    }

    pub(crate) fn is_full(&self) -> bool {
        self.tokens >= self.capacity
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const SECOND: Duration = Duration::from_secs(1);

    #[test]
    fn burst_is_limited_by_capacity_and_then_by_rate() {
        let mut bucket = TokenBucket::full(10.0, 5.0);
        assert_eq!((0..100).filter(|_| bucket.try_take()).count(), 10);
        bucket.refill(SECOND);
        assert_eq!((0..100).filter(|_| bucket.try_take()).count(), 5);
        bucket.refill(3600 * SECOND);
        assert!(bucket.is_full());
        assert_eq!((0..100).filter(|_| bucket.try_take()).count(), 10);
    }

    #[test]
    fn parts_of_a_token_add_up() {
        let mut bucket = TokenBucket::empty(10.0, 0.5);
        bucket.refill(SECOND);
        assert!(!bucket.try_take());
        bucket.refill(SECOND);
        assert!(bucket.try_take() && !bucket.try_take());
    }

    #[test]
    fn debt_is_paid_before_tokens_are_available() {
        let mut bucket = TokenBucket::full(4.0, 1.0);
        assert!(bucket.has(4) && !bucket.has(5));
        bucket.take(6);
        assert!(!bucket.has(0));
        bucket.refill(2 * SECOND);
        assert!(bucket.has(0) && !bucket.try_take());
        bucket.refill(SECOND);
        assert!(bucket.try_take());
    }
}
