//! Sleeps based on tokio's timers.

use tokio::time::Instant;

/// A one-shot timer.
#[derive(Debug)]
pub struct TimerFd;

impl TimerFd {
    /// Creates an unset timer.
    pub fn on_current_runtime() -> Self {
        Self
    }

    /// Sleeps until `deadline`.
    pub async fn sleep_until(&self, deadline: Instant) {
        tokio::time::sleep_until(deadline).await;
    }
}
