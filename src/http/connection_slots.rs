//! Connection limit with eviction of the connection that has waited longest.
//!
//! A connection is *waiting* while its client has to act: send a head, read a response, or send the
//! next request on a kept connection. It is *busy* while the request is being served. If all slots
//! are taken and a new connection arrives, the connection that has waited longest is closed and its
//! slot reused.
//!
//! Unfinished heads, idle connections and slow readers ([`connection`](super::connection)) thus
//! hold slots only while no other client needs them. They cannot keep clients out: an active client
//! sends its request within a round trip. Shorter timeouts for all would disconnect valid clients
//! on slow links.
//!
//! Progress is measured in steps of [`PACE`](super::connection::PACE), not in bytes, so a client
//! that reads a byte now and then still counts as waiting.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Time for which a new connection cannot be evicted. Without it a burst of connections would evict
/// each other before any is read from.
const SURE: Duration = Duration::from_millis(250);

/// The connection slots of a listener.
pub(super) struct ConnectionSlots {
    most: usize,
    taken: Mutex<Vec<Arc<SlotState>>>,
}

/// State of a connection that has a slot.
pub(super) struct SlotState {
    /// Time since which its client has to act, or `None` while a request is being served.
    waits_since: Mutex<Option<Instant>>,
    out: Notify,
}

/// An occupied slot, freed on drop.
#[must_use = "a place that is dropped is given back"]
pub(super) struct ConnectionSlot {
    seat: Arc<SlotState>,
    of: Arc<ConnectionSlots>,
}

impl ConnectionSlots {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::new(Vec::with_capacity(most)) })
    }

    /// Takes a slot, evicting the connection that has waited longest if all are taken. Returns
    /// `None` if none can be evicted.
    pub(super) fn take(self: &Arc<Self>) -> Option<ConnectionSlot> {
        let mut taken = self.taken();
        if taken.len() >= self.most {
            let now = Instant::now();
            let waits = |seat: &SlotState| Some(now.duration_since((*seat.waits_since())?));
            let longest = taken.iter().enumerate().max_by_key(|(_, seat)| waits(seat));
            let (at, _) = longest.filter(|(_, seat)| waits(seat) >= Some(SURE))?;
            taken.swap_remove(at).out.notify_one();
        }
        let seat = Arc::new(SlotState::default());
        taken.push(Arc::clone(&seat));
        Some(ConnectionSlot { seat, of: Arc::clone(self) })
    }

    /// Returns the number of occupied slots.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.taken().len()
    }

    fn taken(&self) -> MutexGuard<'_, Vec<Arc<SlotState>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConnectionSlot {
    pub(super) fn seat(&self) -> &Arc<SlotState> {
        &self.seat
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.of.taken().retain(|seat| !Arc::ptr_eq(seat, &self.seat));
    }
}

impl Default for SlotState {
    fn default() -> Self {
        Self { waits_since: Mutex::new(Some(Instant::now())), out: Notify::new() }
    }
}

impl SlotState {
    /// Marks the connection as waiting for its client.
    pub(super) fn waits(&self) {
        *self.waits_since() = Some(Instant::now());
    }

    /// Restarts the waiting time after progress. Does nothing if the connection is busy, for
    /// example if a response is sent before the whole head has arrived.
    pub(super) fn took(&self) {
        let mut since = self.waits_since();
        *since = since.map(|_| Instant::now());
    }

    /// Marks the connection as busy.
    pub(super) fn works(&self) {
        *self.waits_since() = None;
    }

    /// Waits until the slot is evicted.
    pub(super) async fn given_up(&self) {
        self.out.notified().await;
    }

    fn waits_since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.waits_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time;

    use super::*;

    async fn is_out(place: &ConnectionSlot) -> bool {
        time::timeout(Duration::ZERO, place.seat().given_up()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_waited_the_longest_for_its_client_goes() {
        let places = ConnectionSlots::new(3);
        let working = places.take().unwrap();
        working.seat().works();
        time::advance(SURE).await;
        let slow = places.take().unwrap();
        time::advance(SURE).await;
        let fresh = places.take().unwrap();
        let another = places.take().expect("the slow one's place");
        assert_eq!(
            [is_out(&working).await, is_out(&slow).await, is_out(&fresh).await],
            [false, true, false]
        );
        drop(slow);
        assert_eq!(places.count(), 3, "its place is not given back twice");
        drop((working, fresh, another));
        assert_eq!(places.count(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn a_place_is_sure_for_a_moment_and_while_we_work() {
        let places = ConnectionSlots::new(1);
        let only = places.take().unwrap();
        for (advanced, given) in [(SURE - Duration::from_millis(1), false), (SURE, true)] {
            only.seat().waits();
            time::advance(advanced).await;
            only.seat().works();
            assert!(places.take().is_none(), "it works");
            only.seat().waits();
            time::advance(advanced).await;
            assert_eq!(places.take().is_some(), given, "{advanced:?}");
        }
    }
}
