//! Thread-start notifications.
//!
//! The CPU profiler lists threads periodically and would miss short-lived ones. A runtime hook can
//! call [`tell`] in each new thread to trigger an immediate rescan.

use crate::base::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

type StartListener = Box<dyn Fn() + Send>;

/// The current listener and the number of its [`Subscription`].
static EAR: Mutex<Option<(u64, StartListener)>> = Mutex::new(None);

/// Set if the next thread start triggers a notification.
static WANTED: AtomicBool = AtomicBool::new(false);

/// Notifies the listener that the calling thread has started.
///
/// Costs one load if no notification is requested. Never blocks: if two threads start at once, one
/// of the two notifications may be skipped.
pub fn tell() {
    if !WANTED.load(Ordering::Relaxed) || !WANTED.swap(false, Ordering::AcqRel) {
        return;
    }
    if let Ok(ear) = EAR.try_lock()
        && let Some((_, hear)) = &*ear
    {
        hear();
    }
}

/// Requests a notification for the next thread start only; must be called again for another.
pub fn want() {
    WANTED.store(true, Ordering::Release);
}

/// Registers `hear` to be called on the starting thread, for each [requested](want) notification.
///
/// `hear` should be short. The registration lasts as long as the returned value. There is one
/// listener: a later one replaces an earlier one.
pub fn listen(hear: impl Fn() + Send + 'static) -> Subscription {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let ear: StartListener = Box::new(hear);
    let before = EAR.lock().unwrap_or_else(PoisonError::into_inner).replace((number, ear));
    drop(before);
    Subscription(number)
}

/// A registration of a listener. Dropping it removes the listener, unless another one has replaced
/// it.
#[derive(Debug)]
#[must_use = "nobody listens once it is dropped"]
pub struct Subscription(u64);

impl Drop for Subscription {
    fn drop(&mut self) {
        let own = |ear: &mut (u64, StartListener)| ear.0 == self.0;
        let ear = EAR.lock().unwrap_or_else(PoisonError::into_inner).take_if(own);
        drop(ear);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn a_birth_is_told_once_for_each_time_it_is_wanted() {
        let heard = Arc::new(AtomicU32::new(0));
        let told = |by: &dyn Fn()| {
            let before = heard.load(Ordering::Relaxed);
            by();
            heard.load(Ordering::Relaxed) - before
        };
        let earlier = listen(|| panic!("another has taken the place"));
        let listening = listen({
            let heard = Arc::clone(&heard);
            move || _ = heard.fetch_add(1, Ordering::Relaxed)
        });
        // A recorder may end while its successor is starting.
        drop(earlier);
        assert_eq!(told(&tell), 0, "nobody has asked");
        want();
        assert_eq!(told(&|| (0..3).for_each(|_| tell())), 1);
        want();
        assert_eq!(told(&tell), 1);
        want();
        drop(listening);
        want();
        assert_eq!(told(&tell), 0, "nobody listens");
    }
}
