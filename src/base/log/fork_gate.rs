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
const MAX_FORK_WAIT: Duration = Duration::from_millis(50);

/// Maximum time a delivery waits for forks. Without it, a fork that fails in an unknown way would
/// stop the log.
const MAX_DELIVERY_WAIT: Duration = Duration::from_secs(1);

const POLL_INTERVAL: Duration = Duration::from_micros(200);

/// State: bit 0 is set during a delivery; `state / FORK_UNIT` is the number of forks in progress.
const DELIVERING_BIT: u32 = 1;
const FORK_UNIT: u32 = 2;

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
            let may_enter = state < FORK_UNIT || start.elapsed() >= MAX_DELIVERY_WAIT;
            let entered = state | DELIVERING_BIT;
            let success = Ordering::AcqRel;
            let failure = Ordering::Relaxed;
            if may_enter && self.0.compare_exchange(state, entered, success, failure).is_ok() {
                break;
            }
            thread::sleep(POLL_INTERVAL);
        }
        let result = deliver();
        self.0.fetch_and(!DELIVERING_BIT, Ordering::AcqRel);
        result
    }

    fn before_fork(&self) {
        self.0.fetch_add(FORK_UNIT, Ordering::AcqRel);
        let start = Instant::now();
        while self.0.load(Ordering::Acquire) & DELIVERING_BIT != 0
            && start.elapsed() < MAX_FORK_WAIT
        {
            thread::sleep(POLL_INTERVAL);
        }
    }

    fn after_fork(&self) {
        self.0.fetch_sub(FORK_UNIT, Ordering::AcqRel);
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
    fn fork_and_delivery_wait_for_each_other() {
        let gate = Arc::new(ForkGate::new());
        let (started, is_started) = channel();
        let (events, order) = channel();
        let log = Arc::clone(&gate);
        let sender = events.clone();
        let deliveries = thread::spawn(move || {
            log.deliver(|| {
                started.send(()).unwrap();
                thread::sleep(Duration::from_millis(10));
                sender.send("first delivery").unwrap();
            });
            log.deliver(|| sender.send("second delivery").unwrap());
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
    fn stuck_subscriber_does_not_block_forks() {
        let gate = ForkGate::new();
        // Like a subscriber that forks: on the delivering thread.
        gate.deliver(|| {
            gate.before_fork();
            gate.after_fork();
        });
        assert_eq!(gate.0.load(Ordering::Relaxed), 0);
    }
}
