//! Scheduling lag of the last minute, as a percentile.

use std::time::Duration;

use crate::base::Moment;

/// One minute at four ticks a second.
const MAX_LAGS: usize = 240;
/// Interval at which the percentile is computed: a selection among 240 numbers, 2 us.
const COMPUTE_INTERVAL: Duration = Duration::from_secs(1);

/// Lags of the last 240 ticks.
#[derive(Debug)]
pub(super) struct LagPercentile {
    lags: [u64; MAX_LAGS],
    next: usize,
    len: usize,
    last_result: Option<(Moment, Duration)>,
}

impl Default for LagPercentile {
    fn default() -> Self {
        Self { lags: [0; MAX_LAGS], next: 0, len: 0, last_result: None }
    }
}

impl LagPercentile {
    /// Adds a lag, if any. Returns the 99th percentile, at most one second old.
    pub(super) fn push(&mut self, now: Moment, lag: Option<Duration>) -> Option<Duration> {
        let lag = lag?;
        if let Some(slot) = self.lags.get_mut(self.next) {
            *slot = u64::try_from(lag.as_nanos()).unwrap_or(u64::MAX);
        }
        self.next = (self.next + 1) % MAX_LAGS;
        self.len = (self.len + 1).min(MAX_LAGS);
        if let Some((_, p99)) = self.last_result.filter(|(at, _)| now.since(*at) < COMPUTE_INTERVAL)
        {
            return Some(p99);
        }
        let mut lags = self.lags;
        let lags = lags.get_mut(..self.len)?;
        let rank = (self.len * 99).div_ceil(100).max(1) - 1;
        let (_, at_rank, _) = lags.select_nth_unstable(rank);
        let p99 = Duration::from_nanos(*at_rank);
        self.last_result = Some((now, p99));
        Some(p99)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn returns_p99_of_last_240_lags() {
        let mut percentile = LagPercentile::default();
        assert_eq!(percentile.push(Moment::default(), None), None);
        let mut last = None;
        for n in 0..200_u64 {
            let lag = Duration::from_millis(if n % 50 == 0 { 900 } else { n % 50 });
            last = percentile.push(Moment::from_nanos((n + 1) * 1_000_000_000), Some(lag));
        }
        assert_eq!(last, Some(Duration::from_millis(900)), "four of 200 are");
        for n in 200..440_u64 {
            last =
                percentile.push(Moment::from_nanos((n + 1) * 1_000_000_000), Some(Duration::ZERO));
        }
        assert_eq!(last, Some(Duration::ZERO), "values older than a minute are dropped");
    }
}
