//! A task of ours on somebody else's runtime, woken to see how late it runs.
//!
//! One task for each runtime, asleep between ticks. Each tick wakes it as any task is woken from outside,
//! through the runtime's common queue, and dates the waking; its poll dates the running. While it has
//! not run it is not woken again, so a stuck runtime gathers nothing of ours.
//!
//! ```text
//! reader   sent = now, ran = 0, notify ───────────────> next tick: lag = ran - sent, or so far now - sent
//! task                                ran = now
//! ```
//!
//! Spawning a task each tick would say the same and allocate each time, run the service's spawn hooks and
//! fill its trace with births and deaths. The price of one that stays is that the runtime's own
//! `num_alive_tasks` is one higher; the vitals subtract it.
//!
//! **What it cannot see**: a stall that begins after the probe ran and ends before the next tick. A
//! runtime with several workers runs the probe on any that is free, so one stuck worker of many is no
//! lag; and a current-thread runtime that nobody drives is late without end, which is the truth.
//!
//! **End.** A runtime that shuts down drops the task, which says so as it dies; dropping the [`Probe`]
//! wakes the task to end it. The handle kept here holds the runtime's shared memory, not the runtime:
//! shutting down does not wait for handles.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::{Handle, Id};
use tokio::sync::Notify;

use crate::base::{Clock, Moment};

/// One observed runtime.
pub(super) struct Probe {
    runtime: Handle,
    shared: Arc<Shared>,
    /// When the task was woken, if that has not been accounted for.
    sent: Option<Moment>,
}

/// What one tick tells about a runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    /// Tasks alive, ours not among them.
    pub(super) tasks: u64,
    /// How late the task woken a tick ago ran, or is; none at the first tick.
    pub(super) lag: Option<Duration>,
}

impl Probe {
    /// Spawns the task. On a runtime that has shut down it is dead at once, which [`Self::read`] tells.
    pub(super) fn start(runtime: Handle, clock: Arc<dyn Clock>) -> Self {
        let shared = Arc::new(Shared::default());
        // Nothing waits for the task: it ends itself, or the runtime ends it.
        drop(runtime.spawn(run(Alive(shared.clone()), clock)));
        Self { runtime, shared, sent: None }
    }

    /// The runtime.
    pub(super) fn id(&self) -> Id {
        self.runtime.id()
    }

    /// Reads, and wakes the task for the next tick; none when the runtime has shut down.
    pub(super) fn read(&mut self, clock: &dyn Clock) -> Option<Reading> {
        if self.shared.dead.load(Ordering::Acquire) {
            return None;
        }
        let alive = self.runtime.metrics().num_alive_tasks() as u64;
        let now = clock.now();
        let lag = self.sent.map(|sent| match self.shared.ran.load(Ordering::Acquire) {
            0 => now.since(sent),
            ran => {
                self.sent = None;
                Moment::from_nanos(ran - 1).since(sent)
            }
        });
        if self.sent.is_none() {
            self.sent = Some(now);
            self.shared.ran.store(0, Ordering::Relaxed);
            self.shared.wake.notify_one();
        }
        Some(Reading { tasks: alive.saturating_sub(1), lag })
    }
}

impl Drop for Probe {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.wake.notify_one();
    }
}

/// What the reader and the task share.
#[derive(Default)]
struct Shared {
    wake: Notify,
    /// When the task ran, in nanoseconds after the clock's zero plus one; 0 while it has not.
    ran: AtomicU64,
    stop: AtomicBool,
    dead: AtomicBool,
}

/// Says that the task is dead when it is dropped, run or not.
struct Alive(Arc<Shared>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.dead.store(true, Ordering::Release);
    }
}

async fn run(alive: Alive, clock: Arc<dyn Clock>) {
    let shared = &alive.0;
    loop {
        shared.wake.notified().await;
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        shared.ran.store(clock.now().as_nanos().saturating_add(1), Ordering::Release);
    }
}
