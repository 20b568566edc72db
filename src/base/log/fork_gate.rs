//! Mutual exclusion of forks and deliveries of log events.
//!
//! A subscriber takes its own locks, such as those of standard error, a file or a registry. If
//! `marple-log` held one at a fork, the child would deadlock at its first log line. A fork
//! therefore waits for the delivery in progress, and deliveries wait for the fork. A stuck
//! subscriber delays a fork by 50 ms at most.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;
use std::time::{Duration, Instant};

/// Maximum time a fork waits for a delivery.
const MAX_WAIT: Duration = Duration::from_millis(50);

/// Maximum time a delivery waits for forks. Without it, a fork that fails in an unknown way would
/// stop the log.
const MAX_FORK: Duration = Duration::from_secs(1);

const STEP: Duration = Duration::from_micros(200);

/// State: bit 0 is set during a delivery; `state / FORK` is the number of forks in progress.
const DELIVERING: u32 = 1;
const FORK: u32 = 2;

static GATE: ForkGate = ForkGate::new();

#[derive(Debug)]
struct ForkGate(AtomicU32);

impl ForkGate {
    const fn new() -> Self {
        Self(AtomicU32::new(0))
    }

    fn deliver<R>(&self, deliver: impl FnOnce() -> R) -> R {
        let start = Instant::now();
        loop {
            let state = self.0.load(Ordering::Acquire);
            let may_enter = state < FORK || start.elapsed() >= MAX_FORK;
            let entered = state | DELIVERING;
            let (success, failure) = (Ordering::AcqRel, Ordering::Relaxed);
            if may_enter && self.0.compare_exchange(state, entered, success, failure).is_ok() {
                break;
            }
            thread::sleep(STEP);
        }
        let result = deliver();
        self.0.fetch_and(!DELIVERING, Ordering::AcqRel);
        result
    }

    fn before_fork(&self) {
        self.0.fetch_add(FORK, Ordering::AcqRel);
        let start = Instant::now();
        while self.0.load(Ordering::Acquire) & DELIVERING != 0 && start.elapsed() < MAX_WAIT {
            thread::sleep(STEP);
        }
    }

    fn after_fork(&self) {
        self.0.fetch_sub(FORK, Ordering::AcqRel);
    }
}

/// Runs `deliver` while no fork is in progress.
pub(super) fn deliver<R>(deliver: impl FnOnce() -> R) -> R {
    GATE.deliver(deliver)
}

/// Waits until no event is being delivered. Must be called before a fork.
pub(crate) fn before_fork() {
    GATE.before_fork();
}

/// Ends the wait of deliveries. Must be called in the parent after a fork.
pub(crate) fn after_fork() {
    GATE.after_fork();
}

/// Resets the gate. Must be called in the child of a fork. Async-signal-safe.
pub(crate) fn enter_child() {
    GATE.0.store(0, Ordering::Release);
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    use super::*;

    #[test]
    fn a_fork_waits_for_a_delivery_and_the_next_delivery_for_the_fork() {
        let gate = Arc::new(ForkGate::new());
        let (started, is_started) = channel();
        let (events, order) = channel();
        let (log, own) = (Arc::clone(&gate), events.clone());
        let deliveries = thread::spawn(move || {
            log.deliver(|| {
                started.send(()).unwrap();
                thread::sleep(Duration::from_millis(10));
                own.send("first delivery").unwrap();
            });
            log.deliver(|| own.send("second delivery").unwrap());
        });
        is_started.recv().unwrap();
        gate.before_fork();
        events.send("fork").unwrap();
        thread::sleep(Duration::from_millis(10));
        events.send("fork is done").unwrap();
        gate.after_fork();
        deliveries.join().unwrap();
        drop(events);
        let order: Vec<_> = order.iter().collect();
        assert_eq!(order, ["first delivery", "fork", "fork is done", "second delivery"]);
    }

    #[test]
    fn a_subscriber_that_is_stuck_does_not_stop_forks() {
        let gate = ForkGate::new();
        // Like a subscriber that forks: on the delivering thread.
        gate.deliver(|| {
            gate.before_fork();
            gate.after_fork();
        });
        assert_eq!(gate.0.load(Ordering::Relaxed), 0);
    }
}
