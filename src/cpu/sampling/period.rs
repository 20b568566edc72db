//! Sampling periods.

use crate::base::Hertz;
use std::time::Duration;

/// Minimum interval between reviews of the waiting threads.
pub(crate) const MIN_REBALANCE_INTERVAL: Duration = Duration::from_millis(250);

pub(crate) fn period(frequency: Hertz) -> Duration {
    Duration::from_secs(1) / frequency.get().max(1)
}
