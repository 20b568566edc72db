//! Thread-start notifications.
//!
//! The CPU profiler lists threads periodically and would miss short-lived ones. A runtime hook can
//! call [`notify_thread_started`] in each new thread to trigger an immediate rescan.

use crate::base::sync::Mutex;
use std::sync::PoisonError;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};

type StartListener = Box<dyn Fn() + Send>;

/// The current listener and the number of its [`Subscription`].
static LISTENER: Mutex<Option<(u64, StartListener)>> = Mutex::new(None);

/// `true` if the next thread start triggers a notification.
static ARMED: AtomicBool = AtomicBool::new(false);

/// Notifies the listener that the calling thread has started.
///
/// Costs one load if no notification is requested. Never blocks: if two threads start at once, one
/// of the two notifications may be skipped.
pub fn notify_thread_started() {
    if !ARMED.load(Ordering::Relaxed) || !ARMED.swap(false, Ordering::AcqRel) {
        return;
    }
    if let Ok(registration) = LISTENER.try_lock()
        && let Some((_, listener)) = &*registration
    {
        listener();
    }
}

/// Requests one notification, at the next thread start.
pub fn arm() {
    ARMED.store(true, Ordering::Release);
}

/// Registers `listener` to be called on the starting thread, for each [requested](arm)
/// notification.
///
/// `listener` should be short. The registration lasts as long as the returned value. There is one
/// listener: a later one replaces an earlier one.
pub fn subscribe(listener: impl Fn() + Send + 'static) -> Subscription {
    static NUMBER: AtomicU64 = AtomicU64::new(0);
    let number = NUMBER.fetch_add(1, Ordering::Relaxed);
    let boxed: StartListener = Box::new(listener);
    let replaced = LISTENER.lock().unwrap_or_else(PoisonError::into_inner).replace((number, boxed));
    drop(replaced);
    Subscription(number)
}

/// A registration of a listener. Dropping it removes the listener, unless another one has replaced
/// it.
#[derive(Debug)]
#[must_use = "dropping it removes the listener"]
pub struct Subscription(u64);

impl Drop for Subscription {
    fn drop(&mut self) {
        let is_own = |registration: &mut (u64, StartListener)| registration.0 == self.0;
        let removed = LISTENER.lock().unwrap_or_else(PoisonError::into_inner).take_if(is_own);
        drop(removed);
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::AtomicU32;

    use super::*;

    #[test]
    fn armed_listener_is_notified_once_per_arm() {
        let notifications = Arc::new(AtomicU32::new(0));
        let count_notifications = |action: &dyn Fn()| {
            let before = notifications.load(Ordering::Relaxed);
            action();
            notifications.load(Ordering::Relaxed) - before
        };
        let earlier = subscribe(|| panic!("another listener has replaced this one"));
        let current = subscribe({
            let notifications = Arc::clone(&notifications);
            move || _ = notifications.fetch_add(1, Ordering::Relaxed)
        });
        // A recorder may end while its successor is starting.
        drop(earlier);
        assert_eq!(count_notifications(&notify_thread_started), 0, "not armed");
        arm();
        assert_eq!(count_notifications(&|| (0..3).for_each(|_| notify_thread_started())), 1);
        arm();
        assert_eq!(count_notifications(&notify_thread_started), 1);
        arm();
        drop(current);
        arm();
        assert_eq!(count_notifications(&notify_thread_started), 0, "no listener");
    }
}
