//! Rate limits of the listener, which bound the cost of a client in a loop.
//!
//! | limit | value | effect beyond it |
//! |---|---|---|
//! | requests per second, all clients | `http.max_requests_per_second` | delay |
//! | new connections per second, all clients | the same | wait in the kernel's queue |
//! | refusals of a peer | [`FREE_REFUSALS`], and one per [`REFILL_INTERVAL`] | delay, then close |
//!
//! Requests are admitted in the order of arrival, and a connection waits for one admission at a
//! time. A client that floods on `n` connections thus leaves one in `n + 1` admissions to another.
//! Waiting connections may lose their slot to new ones
//! ([`connection_slots`](super::connection_slots)).
//!
//! Only refusals are delayed by the third limit. All peers on loopback have the same name, and a
//! client with a wrong token must not slow down one with the right token.

use std::net::SocketAddr;
use std::sync::{Mutex, PoisonError};
use std::time::Duration;

use tokio::time::{self, Instant};

use crate::base::token_bucket::TokenBucket;

/// Requests or connections admitted without delay after an idle period: the page, its links and a
/// scrape at once.
const BURST: u32 = 100;
/// Refusals per peer without delay.
const FREE_REFUSALS: f64 = 32.0;
/// Time in which a peer regains one refusal. A scraper that is refused every 15 seconds is never
/// delayed.
const REFILL_INTERVAL: Duration = Duration::from_secs(2);
/// Delay of a refusal beyond the free ones, in intervals: half a second at the default rate.
const REFUSAL_DELAY_INTERVALS: u32 = 50;
/// Maximum number of peers counted separately. All others share one count.
const MAX_PEERS: usize = 64;

/// A rate limit that admits callers in the order of arrival.
#[derive(Debug)]
pub(super) struct RateLimiter {
    interval: Duration,
    /// Time of the next admission. The lock is fair and is held while its owner waits.
    next: tokio::sync::Mutex<Option<Instant>>,
}

impl RateLimiter {
    pub(super) fn new(per_second: u32) -> Self {
        let interval = Duration::from_secs(1) / per_second.max(1);
        Self { interval, next: tokio::sync::Mutex::new(None) }
    }

    /// Waits for the caller's admission. A caller that is dropped before then leaves the queue.
    pub(super) async fn acquire(&self) {
        let mut next = self.next.lock().await;
        let earliest = Instant::now().checked_sub(self.interval * BURST);
        let admitted_at = (*next).max(earliest);
        if let Some(admitted_at) = admitted_at.filter(|turn| *turn > Instant::now()) {
            time::sleep_until(admitted_at).await;
        }
        *next = Some(admitted_at.unwrap_or_else(Instant::now) + self.interval);
    }

    /// Returns the delay of a refusal beyond the free ones.
    pub(super) fn refusal_delay(&self) -> Duration {
        self.interval * REFUSAL_DELAY_INTERVALS
    }
}

/// A bounded table of refusal counts by peer.
#[derive(Debug, Default)]
pub(super) struct RefusalPenalty(Mutex<Vec<PeerRefusals>>);

#[derive(Debug)]
struct PeerRefusals {
    /// Empty for the entry shared by peers beyond [`MAX_PEERS`].
    peer: String,
    remaining: TokenBucket,
    refilled_at: Instant,
}

impl PeerRefusals {
    fn refill(&mut self, now: Instant) {
        self.remaining.refill(now.duration_since(self.refilled_at));
        self.refilled_at = now;
    }
}

impl RefusalPenalty {
    /// Counts a refusal of `peer`. Returns `true` if `peer` has no free refusals left.
    pub(super) fn record_refusal(&self, peer: &str) -> bool {
        let now = Instant::now();
        let mut table = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        table.iter_mut().for_each(|entry| entry.refill(now));
        if !table.iter().any(|entry| entry.peer == peer) {
            // A full entry is equivalent to no entry.
            table.retain(|entry| !entry.remaining.is_full());
        }
        let is_full = table.len() >= MAX_PEERS;
        let name = match table.iter().any(|entry| entry.peer == peer) {
            false if is_full => "",
            _ => peer,
        };
        if !table.iter().any(|entry| entry.peer == name) {
            table.push(PeerRefusals {
                peer: name.to_owned(),
                remaining: TokenBucket::full(FREE_REFUSALS, 1.0 / REFILL_INTERVAL.as_secs_f64()),
                refilled_at: now,
            });
        }
        let Some(entry) = table.iter_mut().find(|entry| entry.peer == name) else { return true };
        !entry.remaining.try_take()
    }
}

/// Returns the part of a peer's name that its connections share: the address without the port, or
/// the process.
pub(super) fn peer_key(peer: &str) -> String {
    match peer.parse::<SocketAddr>() {
        Ok(address) => address.ip().to_string(),
        Err(_) => peer.chars().take(64).collect(),
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;

    use super::*;

    #[tokio::test(start_paused = true)]
    async fn admits_at_configured_rate_after_burst() {
        let limiter = RateLimiter::new(10);
        let started = Instant::now();
        for _ in 0..BURST {
            limiter.acquire().await;
        }
        assert!(started.elapsed() <= Duration::from_millis(1), "{:?}", started.elapsed());
        for _ in 0..100 {
            limiter.acquire().await;
        }
        let elapsed = started.elapsed();
        assert!((9..=11).contains(&elapsed.as_secs()), "{elapsed:?}");
    }

    #[tokio::test(start_paused = true)]
    async fn client_is_admitted_during_flood_from_others() {
        let limiter = Arc::new(RateLimiter::new(10));
        for _ in 0..20 {
            let limiter = Arc::clone(&limiter);
            tokio::spawn(async move {
                loop {
                    limiter.acquire().await;
                }
            });
        }
        time::sleep(Duration::from_secs(30)).await;
        let started = Instant::now();
        limiter.acquire().await;
        assert!(started.elapsed() < Duration::from_secs(3), "{:?}", started.elapsed());
    }

    #[tokio::test(start_paused = true)]
    async fn dropped_waiting_request_leaves_the_queue() {
        let limiter = RateLimiter::new(1);
        for _ in 0..=BURST {
            limiter.acquire().await;
        }
        let waited = time::timeout(Duration::from_millis(10), limiter.acquire());
        assert!(waited.await.is_err());
        assert!(time::timeout(Duration::from_secs(2), limiter.acquire()).await.is_ok());
    }

    #[tokio::test(start_paused = true)]
    async fn peer_is_delayed_after_free_refusals_until_refill() {
        let refusals = RefusalPenalty::default();
        let free = (0..100).take_while(|_| !refusals.record_refusal("10.0.0.1")).count();
        assert_eq!(free, FREE_REFUSALS as usize);
        assert!(!refusals.record_refusal("10.0.0.2"), "another peer does not wait");
        time::advance(REFILL_INTERVAL).await;
        assert!(!refusals.record_refusal("10.0.0.1"));
        assert!(refusals.record_refusal("10.0.0.1"));
    }

    #[tokio::test(start_paused = true)]
    async fn peer_table_is_bounded_and_overflow_shares_one_entry() {
        let refusals = RefusalPenalty::default();
        let free = (0..10_000).filter(|n| !refusals.record_refusal(&format!("peer {n}"))).count();
        assert_eq!(free, MAX_PEERS + FREE_REFUSALS as usize);
        assert_eq!(refusals.0.lock().unwrap().len(), MAX_PEERS + 1);
        time::advance(REFILL_INTERVAL * 2).await;
        assert!(!refusals.record_refusal("late"), "full entries are removed");
    }

    #[test]
    fn connections_of_one_peer_share_a_key() {
        for (peer, name) in
            [("127.0.0.1:5", "127.0.0.1"), ("[::1]:80", "::1"), ("process 12", "process 12")]
        {
            assert_eq!(peer_key(peer), name);
        }
    }
}
