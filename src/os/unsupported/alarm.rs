//! Sleeps by tokio's timers.

use tokio::time::Instant;

/// A timer of tokio's.
#[derive(Debug)]
pub struct Alarm;

impl Alarm {
    /// One that is not set.
    pub fn here() -> Self {
        Self
    }

    /// Sleeps until `due`.
    pub async fn sleep_until(&self, due: Instant) {
        tokio::time::sleep_until(due).await;
    }
}
