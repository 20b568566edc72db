//! A task of ours on somebody else's runtime, woken to see how late it runs.
//!
//! One task for each runtime, asleep between ticks. A tick wakes it as any task is woken from
//! outside, through the runtime's common queue, and dates the waking; its poll dates the running.
//! While it has not run it is not woken again, so a stuck runtime gathers nothing of ours.
//!
//! ```text
//! reader   sent = now, ran = 0, notify ────────> next tick: lag = ran - sent, or so far now - sent
//! task                                ran = now
//! ```
//!
//! Spawning a task each tick would say the same and allocate each time, run the service's spawn
//! hooks and fill its trace with births and deaths. The price of one that stays is that the
//! runtime's own `num_alive_tasks` is one higher; the vitals subtract it.
//!
//! **An idle runtime is left asleep.** A runtime with a parked worker has nothing waiting, and the
//! waking would be most of what a tick costs: 40 us and more of the *service's* CPU, for the parked
//! worker and the one it wakes to look for more. So it is woken once in two seconds, more rarely if they
//! are many, which tells how long the machine takes to run it; its lag is zero in between. A stall
//! is seen no later for it: it begins after the last probe has run in either case, and the next
//! tick finds no worker parked. This rests on tokio counting a worker's parks and unparks as they
//! happen, which it does from 1.54 on; `worker_total_busy_duration` would not do, as it stands
//! still through a batch of 61 polls.
//!
//! **What it cannot see**: a stall that begins after the probe ran and ends before the next tick. A
//! runtime with several workers runs the probe on any that is free, so one stuck worker of many is
//! no lag; and a current-thread runtime that nobody drives is late without end, which is the truth.
//!
//! **End.** A runtime that shuts down drops the task, which says so as it dies; dropping the
//! [`Probe`] wakes the task to end it. The handle kept here holds the runtime's shared memory, not
//! the runtime: shutting down does not wait for handles.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::{Handle, Id, RuntimeFlavor, RuntimeMetrics};
use tokio::sync::Notify;

use super::blocking::BlockingProbe;
use super::stalled::{ProbeState, StalledTime};
use crate::base::{Clock, Moment, standstill};
use crate::os::threads;

/// How long an idle runtime is left asleep when `runtimes` are watched: two seconds for each four of
/// them, so that two wakings a second are all there are.
pub(super) fn rest(runtimes: usize) -> Duration {
    Duration::from_secs(2 * runtimes.div_ceil(4) as u64)
}

/// One observed runtime.
pub(super) struct Probe {
    runtime: Handle,
    shared: Arc<Shared>,
    /// When the task was woken, if that has not been accounted for.
    sent: Option<Moment>,
    /// When the task was last woken.
    last: Option<Moment>,
    /// The thread that was told last.
    thread: u32,
    pub(super) blocking: BlockingProbe,
    pub(super) stalled: StalledTime,
}

/// What one tick tells about a runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Reading {
    /// Tasks alive, ours not among them.
    pub(super) tasks: u64,
    /// How late the task woken a tick ago ran, or is; zero if it was left asleep, none at the first
    /// tick.
    pub(super) lag: Option<Duration>,
    /// What came of the task that was woken a tick ago.
    pub(super) state: ProbeState,
}

impl Probe {
    /// Spawns the task. On a runtime that has shut down it is dead at once, which [`Self::read`]
    /// tells.
    pub(super) fn start(runtime: Handle, clock: Arc<dyn Clock>) -> Self {
        let shared = Arc::new(Shared::default());
        // Nothing waits for the task: it ends itself, or the runtime ends it.
        drop(runtime.spawn(run(Alive(shared.clone()), clock)));
        Self {
            runtime,
            shared,
            sent: None,
            last: None,
            thread: 0,
            blocking: BlockingProbe::new(),
            stalled: StalledTime::default(),
        }
    }

    /// The runtime.
    pub(super) fn id(&self) -> Id {
        self.runtime.id()
    }

    /// Sends a closure through the blocking pool, unless one is on its way.
    pub(super) fn send_blocking(&mut self, now: Moment, clock: &Arc<dyn Clock>) {
        self.blocking.send(now, &self.runtime, clock);
    }

    /// Returns the number of worker threads. A runtime of one thread runs on one of the service's.
    pub(super) fn workers(&self) -> usize {
        match self.runtime.runtime_flavor() {
            RuntimeFlavor::MultiThread => self.runtime.metrics().num_workers(),
            _ => 0,
        }
    }

    /// The thread that last ran the task, if it is another than when this was last asked.
    pub(super) fn fresh_thread(&mut self) -> Option<u32> {
        let thread = self.shared.thread.load(Ordering::Relaxed);
        (std::mem::replace(&mut self.thread, thread) != thread).then_some(thread)
    }

    /// Reads, and wakes the task for the next tick, an idle runtime's only if `rest` has passed
    /// since the last time; none when the runtime has shut down.
    pub(super) fn read(&mut self, clock: &dyn Clock, rest: Duration) -> Option<Reading> {
        if self.shared.dead.load(Ordering::Acquire) {
            return None;
        }
        let metrics = self.runtime.metrics();
        let tasks = (metrics.num_alive_tasks() as u64).saturating_sub(1);
        let now = clock.now();
        let state = match (self.sent, self.shared.ran.load(Ordering::Acquire)) {
            (None, _) => ProbeState::Asleep,
            (Some(sent), 0) => ProbeState::Waiting(standstill::running_time(sent, now)),
            (Some(sent), ran) => {
                self.sent = None;
                ProbeState::Ran(standstill::running_time(sent, Moment::from_nanos(ran - 1)))
            }
        };
        let lag = self.last.map(|_| state.lag());
        let rested = self.last.is_some_and(|last| now.since(last) < rest);
        if self.sent.is_none() && !(rested && is_idle(&metrics)) {
            self.sent = Some(now);
            self.last = self.sent;
            self.shared.ran.store(0, Ordering::Relaxed);
            self.shared.wake.notify_one();
        }
        Some(Reading { tasks, lag, state })
    }
}

/// Whether a worker is parked: it has parked once more than it has unparked.
fn is_idle(runtime: &RuntimeMetrics) -> bool {
    (0..runtime.num_workers()).any(|worker| runtime.worker_park_unpark_count(worker) % 2 == 1)
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
    /// Where it ran, which is on a worker.
    thread: AtomicU32,
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
        shared.thread.store(threads::current(), Ordering::Relaxed);
        shared.ran.store(clock.now().as_nanos().saturating_add(1), Ordering::Release);
    }
}
