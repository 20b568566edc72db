//! Delays between attempts to get a resource that another process or the environment withholds.

use std::time::Duration;

/// Delays that double from [`RetryBackoff::INITIAL_DELAY`] to [`RetryBackoff::MAX_DELAY`].
///
/// The maximum is short because a new process may wait that long after its predecessor has released
/// a port or directory. An attempt costs a few system calls.
#[derive(Clone, Copy, Debug)]
pub(crate) struct RetryBackoff {
    next_delay: Duration,
}

impl RetryBackoff {
    pub(crate) const INITIAL_DELAY: Duration = Duration::from_secs(1);
    pub(crate) const MAX_DELAY: Duration = Duration::from_secs(5);

    pub(crate) const fn new() -> Self {
        Self { next_delay: Self::INITIAL_DELAY }
    }

    /// Returns the delay before the next attempt.
    pub(crate) fn next_delay(&mut self) -> Duration {
        let delay = self.next_delay;
        self.next_delay = (delay * 2).min(Self::MAX_DELAY);
        delay
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn delays_grow_and_are_bounded() {
        let mut backoff = RetryBackoff::new();
        let delays = std::array::from_fn(|_| backoff.next_delay().as_secs());
        assert_eq!(delays, [1, 2, 4, 5, 5]);
    }
}
