//! Limits for the `INFO` lines of requests.

use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use crate::base::token_bucket::TokenBucket;

/// Maximum burst of log lines for accepted requests.
pub(super) const BURST_LINES: f64 = 100.0;
/// Log lines per second for accepted requests, after the burst. A profiler that fetches three
/// profiles every 15 seconds needs 0.2.
const LINES_PER_SECOND: f64 = 5.0;
/// Maximum number of refusal kinds counted separately. All others share one count per status.
const MAX_KINDS: usize = 64;
/// Time without a refusal after which a kind is removed; its next refusal counts as the first.
const IDLE_KIND_TIMEOUT: Duration = Duration::from_secs(600);

/// Counts of refusals by kind, and a rate limit for other lines.
pub(super) struct LogLimit(Mutex<LogLimitState>);

struct LogLimitState {
    kinds: Vec<RefusalKind>,
    bucket: TokenBucket,
    /// `None` before the first line.
    refilled_at: Option<Instant>,
}

struct RefusalKind {
    /// Empty for kinds that share a count.
    peer: String,
    route: &'static str,
    status: u16,
    count: u64,
    last: Instant,
}

impl LogLimit {
    pub(super) const fn new() -> Self {
        Self(Mutex::new(LogLimitState {
            kinds: Vec::new(),
            bucket: TokenBucket::full(BURST_LINES, LINES_PER_SECOND),
            refilled_at: None,
        }))
    }

    /// Counts a refusal. Returns its number if it is to be logged, else `None`.
    pub(super) fn record_refusal(
        &self,
        peer: &str,
        route: &'static str,
        status: u16,
    ) -> Option<u64> {
        self.record_refusal_at(Instant::now(), peer, route, status)
    }

    fn record_refusal_at(
        &self,
        now: Instant,
        peer: &str,
        route: &'static str,
        status: u16,
    ) -> Option<u64> {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let kinds = &mut state.kinds;
        kinds.retain(|kind| now.duration_since(kind.last) < IDLE_KIND_TIMEOUT);
        let position = |kinds: &[RefusalKind], peer: &str, route| {
            let is_same_kind = |kind: &RefusalKind| {
                kind.peer == peer && kind.route == route && kind.status == status
            };
            kinds.iter().position(is_same_kind)
        };
        let index = match position(kinds, peer, route) {
            Some(index) => index,
            None => {
                let is_full = kinds.len() >= MAX_KINDS;
                let (peer, route) = if is_full { ("", "") } else { (peer, route) };
                position(kinds, peer, route).unwrap_or_else(|| {
                    let peer = peer.to_owned();
                    kinds.push(RefusalKind { peer, route, status, count: 0, last: now });
                    kinds.len() - 1
                })
            }
        };
        let kind = kinds.get_mut(index)?;
        kind.count += 1;
        kind.last = now;
        kind.count.is_power_of_two().then_some(kind.count)
    }

    /// Takes a token for the log line of an accepted request. Returns `false` if the bucket is
    /// empty.
    pub(super) fn try_acquire(&self) -> bool {
        self.try_acquire_at(Instant::now())
    }

    fn try_acquire_at(&self, now: Instant) -> bool {
        let mut state = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let refilled_at = state.refilled_at.replace(now).unwrap_or(now);
        state.bucket.refill(now.duration_since(refilled_at));
        state.bucket.try_take()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn repeated_refusals_are_logged_at_powers_of_two() {
        let limit = LogLimit::new();
        let now = Instant::now();
        let logged: Vec<_> =
            (0..1000).filter_map(|_| limit.record_refusal_at(now, "a", "/status", 401)).collect();
        assert_eq!(logged, [1, 2, 4, 8, 16, 32, 64, 128, 256, 512]);
        assert_eq!(limit.record_refusal_at(now, "a", "/status", 403), Some(1), "another status");
        assert_eq!(limit.record_refusal_at(now, "b", "/status", 401), Some(1), "another peer");
        assert_eq!(limit.record_refusal_at(now, "a", "/status", 401), None);
        assert_eq!(
            limit.record_refusal_at(now + IDLE_KIND_TIMEOUT, "a", "/status", 401),
            Some(1),
            "after a pause"
        );
    }

    #[test]
    fn log_lines_are_bounded_for_many_peers() {
        let limit = LogLimit::new();
        let now = Instant::now();
        let logged = (0..100_000)
            .filter(|n| {
                limit.record_refusal_at(now, &format!("process {n}"), "/status", 401).is_some()
            })
            .count();
        assert!(logged < MAX_KINDS + 20, "{logged}");
        assert_eq!(limit.0.lock().unwrap().kinds.len(), MAX_KINDS + 1);
    }

    #[test]
    fn accepted_request_lines_are_limited_by_burst_and_rate() {
        let limit = LogLimit::new();
        let now = Instant::now();
        assert_eq!((0..1000).filter(|_| limit.try_acquire_at(now)).count(), BURST_LINES as usize);
        let later = now + Duration::from_secs(2);
        assert_eq!((0..1000).filter(|_| limit.try_acquire_at(later)).count(), 10);
    }
}
