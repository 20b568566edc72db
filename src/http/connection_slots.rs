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
//! Progress is measured in steps of [`MIN_PROGRESS_BYTES`](super::connection::MIN_PROGRESS_BYTES),
//! not in bytes, so a client that reads a byte now and then still counts as waiting.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// Time for which a new connection cannot be evicted. Without it a burst of connections would evict
/// each other before any is read from.
const MIN_HOLD: Duration = Duration::from_millis(250);

/// The connection slots of a listener.
pub(super) struct ConnectionSlots {
    capacity: usize,
    occupied: Mutex<Vec<Arc<SlotState>>>,
}

/// State of a connection that has a slot.
pub(super) struct SlotState {
    /// Time since which its client has to act, or `None` while a request is being served.
    waiting_since: Mutex<Option<Instant>>,
    eviction: Notify,
}

/// An occupied slot, freed on drop.
#[must_use = "the slot is freed on drop"]
pub(super) struct ConnectionSlot {
    state: Arc<SlotState>,
    slots: Arc<ConnectionSlots>,
}

impl ConnectionSlots {
    pub(super) fn new(capacity: usize) -> Arc<Self> {
        Arc::new(Self { capacity, occupied: Mutex::new(Vec::with_capacity(capacity)) })
    }

    /// Takes a slot, evicting the connection that has waited longest if all are taken. Returns
    /// `None` if none can be evicted.
    pub(super) fn acquire(self: &Arc<Self>) -> Option<ConnectionSlot> {
        let mut occupied = self.lock_occupied();
        if occupied.len() >= self.capacity {
            let now = Instant::now();
            let waiting_time =
                |state: &SlotState| Some(now.duration_since((*state.lock_waiting_since())?));
            let longest = occupied.iter().enumerate().max_by_key(|(_, state)| waiting_time(state));
            let (index, _) = longest.filter(|(_, state)| waiting_time(state) >= Some(MIN_HOLD))?;
            occupied.swap_remove(index).eviction.notify_one();
        }
        let state = Arc::new(SlotState::default());
        occupied.push(Arc::clone(&state));
        Some(ConnectionSlot { state, slots: Arc::clone(self) })
    }

    /// Returns the number of occupied slots.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.lock_occupied().len()
    }

    fn lock_occupied(&self) -> MutexGuard<'_, Vec<Arc<SlotState>>> {
        self.occupied.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ConnectionSlot {
    pub(super) fn state(&self) -> &Arc<SlotState> {
        &self.state
    }
}

impl Drop for ConnectionSlot {
    fn drop(&mut self) {
        self.slots.lock_occupied().retain(|state| !Arc::ptr_eq(state, &self.state));
    }
}

impl Default for SlotState {
    fn default() -> Self {
        Self { waiting_since: Mutex::new(Some(Instant::now())), eviction: Notify::new() }
    }
}

impl SlotState {
    /// Marks the connection as waiting for its client.
    pub(super) fn mark_waiting(&self) {
        *self.lock_waiting_since() = Some(Instant::now());
    }

    /// Restarts the waiting time after progress. Does nothing if the connection is busy, for
    /// example if a response is sent before the whole head has arrived.
    pub(super) fn mark_progress(&self) {
        let mut since = self.lock_waiting_since();
        *since = since.map(|_| Instant::now());
    }

    /// Marks the connection as busy.
    pub(super) fn mark_busy(&self) {
        *self.lock_waiting_since() = None;
    }

    /// Waits until the slot is evicted.
    pub(super) async fn evicted(&self) {
        self.eviction.notified().await;
    }

    fn lock_waiting_since(&self) -> MutexGuard<'_, Option<Instant>> {
        self.waiting_since.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

#[cfg(test)]
mod tests {
    use tokio::time;

    use super::*;

    async fn is_evicted(slot: &ConnectionSlot) -> bool {
        time::timeout(Duration::ZERO, slot.state().evicted()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn evicts_connection_waiting_longest_when_full() {
        let slots = ConnectionSlots::new(3);
        let busy = slots.acquire().unwrap();
        busy.state().mark_busy();
        time::advance(MIN_HOLD).await;
        let slow = slots.acquire().unwrap();
        time::advance(MIN_HOLD).await;
        let fresh = slots.acquire().unwrap();
        let another = slots.acquire().expect("the slot of the slow client");
        assert_eq!(
            [is_evicted(&busy).await, is_evicted(&slow).await, is_evicted(&fresh).await],
            [false, true, false]
        );
        drop(slow);
        assert_eq!(slots.count(), 3, "its slot is freed only once");
        drop((busy, fresh, another));
        assert_eq!(slots.count(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn slot_is_not_evicted_while_busy_or_within_min_hold() {
        let slots = ConnectionSlots::new(1);
        let only = slots.acquire().unwrap();
        for (advanced, can_evict) in
            [(MIN_HOLD - Duration::from_millis(1), false), (MIN_HOLD, true)]
        {
            only.state().mark_waiting();
            time::advance(advanced).await;
            only.state().mark_busy();
            assert!(slots.acquire().is_none(), "all slots are busy");
            only.state().mark_waiting();
            time::advance(advanced).await;
            assert_eq!(slots.acquire().is_some(), can_evict, "{advanced:?}");
        }
    }
}
