//! The places there are for connections, and who gives his up when all are taken.
//!
//! A connection *waits* while its client is to do something: send a head, take an answer, ask again on a
//! connection it keeps. It does not while we do what was asked. When somebody comes and there is no place,
//! the connection that has waited the longest ends and its place is his. So heads that never end, idle
//! connections and clients that take an answer as slowly as they may ([`connection`](super::connection))
//! hold places for as long as nobody wants them, and keep nobody out: who means to ask has asked within a
//! round trip. The obvious alternative, shorter patience for all, ends honest clients on bad lines for
//! nothing.
//!
//! Progress counts by [`PACE`](super::connection::PACE) and not by the byte, so that taking a byte now and
//! then does not make a client look quick.

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use tokio::sync::Notify;
use tokio::time::Instant;

/// How long a connection has its place for sure: else a burst of new ones would end each other before any
/// has been read from.
const SURE: Duration = Duration::from_millis(250);

/// All places.
pub(super) struct Places {
    most: usize,
    taken: Mutex<Vec<Arc<Seat>>>,
}

/// What is known of a connection that has a place.
pub(super) struct Seat {
    /// Since when its client is to do something; none while we are.
    waits_since: Mutex<Option<Instant>>,
    out: Notify,
}

/// A place; dropping it gives it back.
#[must_use = "a place that is dropped is given back"]
pub(super) struct Place {
    seat: Arc<Seat>,
    of: Arc<Places>,
}

impl Places {
    pub(super) fn new(most: usize) -> Arc<Self> {
        Arc::new(Self { most, taken: Mutex::new(Vec::with_capacity(most)) })
    }

    /// A place, if there is one or somebody has to give his up.
    pub(super) fn take(self: &Arc<Self>) -> Option<Place> {
        let mut taken = self.taken();
        if taken.len() >= self.most {
            let now = Instant::now();
            let waits = |seat: &Seat| Some(now.duration_since((*seat.waits_since())?));
            let longest = taken.iter().enumerate().max_by_key(|(_, seat)| waits(seat));
            let (at, _) = longest.filter(|(_, seat)| waits(seat) >= Some(SURE))?;
            taken.swap_remove(at).out.notify_one();
        }
        let seat = Arc::new(Seat::default());
        taken.push(Arc::clone(&seat));
        Some(Place { seat, of: Arc::clone(self) })
    }

    /// How many are taken.
    #[cfg(test)]
    pub(super) fn count(&self) -> usize {
        self.taken().len()
    }

    fn taken(&self) -> MutexGuard<'_, Vec<Arc<Seat>>> {
        self.taken.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Place {
    pub(super) fn seat(&self) -> &Arc<Seat> {
        &self.seat
    }
}

impl Drop for Place {
    fn drop(&mut self) {
        self.of.taken().retain(|seat| !Arc::ptr_eq(seat, &self.seat));
    }
}

impl Default for Seat {
    fn default() -> Self {
        Self { waits_since: Mutex::new(Some(Instant::now())), out: Notify::new() }
    }
}

impl Seat {
    /// From here on the client is to do something.
    pub(super) fn waits(&self) {
        *self.waits_since() = Some(Instant::now());
    }

    /// The client has done a part of it, and has its time anew; unless we are at work, as when a head is
    /// answered before all of it was sent.
    pub(super) fn took(&self) {
        let mut since = self.waits_since();
        *since = since.map(|_| Instant::now());
    }

    /// From here on we are.
    pub(super) fn works(&self) {
        *self.waits_since() = None;
    }

    /// Comes when the place is somebody else's.
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

    async fn is_out(place: &Place) -> bool {
        time::timeout(Duration::ZERO, place.seat().given_up()).await.is_ok()
    }

    #[tokio::test(start_paused = true)]
    async fn who_has_waited_the_longest_for_its_client_goes() {
        let places = Places::new(3);
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
        let places = Places::new(1);
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
