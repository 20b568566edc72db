//! A probe task on an observed runtime, which measures scheduling latency.
//!
//! There is one task per runtime, which sleeps between ticks. A tick wakes it like any task that is
//! woken from outside, through the runtime's injection queue, and records the time. Its poll
//! records the time at which it runs. It is not woken again before it has run, so nothing
//! accumulates in a stuck runtime.
//!
//! ```text
//! reader   sent = now, ran = None, notify ─────> next tick: lag = ran - sent, or so far now - sent
//! task                                ran = now
//! ```
//!
//! Spawning a task each tick would measure the same. It would also allocate each time, run the
//! service's spawn hooks and fill its trace with short tasks. The cost of a permanent task is that
//! the runtime's `num_alive_tasks` is one too high; the vitals subtract it.
//!
//! **An idle runtime is left asleep.** A runtime with a parked worker has nothing queued. Waking it
//! would be most of the cost of a tick: 40 us and more of the *service's* CPU, for the parked
//! worker and the one that it wakes to search for more work. It is therefore woken once in two
//! seconds, or more rarely if there are many, to measure the machine's latency. Its lag is zero in
//! between. This does not delay the detection of a stall: a stall starts after the last probe has
//! run in either case, and the next tick finds no worker parked. It relies on tokio counting a
//! worker's parks and unparks as they happen, which it does from 1.54 on.
//! `worker_total_busy_duration` is not sufficient, because it does not change during a batch of 61
//! polls.
//!
//! **Not detected**: a stall that starts after the probe has run and ends before the next tick. A
//! runtime with several workers runs the probe on any free one, so a single stuck worker causes no
//! lag. A current-thread runtime that is not driven has an ever-growing lag, which is correct.
//!
//! **Shutdown.** A runtime that shuts down drops the task, which sets `is_dropped` on drop.
//! Dropping the [`RuntimeProbe`] wakes the task to end it. The handle stored here keeps the
//! runtime's shared memory alive, not the runtime: shutdown does not wait for handles.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU32, Ordering};
use std::time::Duration;

use tokio::runtime::{Handle, Id, RuntimeFlavor, RuntimeMetrics};
use tokio::sync::Notify;

use super::blocking::BlockingProbe;
use super::run_time::RunTime;
use super::runtimes::is_parked;
use super::stalled::{ProbeState, StalledTime};
use crate::base::{Clock, Moment, standstill};
use crate::os::proc::threads;

/// Returns the interval at which an idle runtime is woken: two seconds for each four observed
/// runtimes, which limits wake-ups to two per second.
pub(super) fn idle_wake_interval(runtimes: usize) -> Duration {
    Duration::from_secs(2 * runtimes.div_ceil(4) as u64)
}

/// The probe of one observed runtime.
pub(super) struct RuntimeProbe {
    handle: Handle,
    state: Arc<RuntimeProbeState>,
    /// Time at which the task was woken, if its run has not been accounted for yet.
    sent_at: Option<Moment>,
    /// Time at which the task was last woken.
    last_sent_at: Option<Moment>,
    /// Thread returned by the last call of `take_changed_thread`.
    last_thread: u32,
    pub(super) blocking: BlockingProbe,
    pub(super) stalled: StalledTime,
}

/// Result of one tick for a runtime.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct ProbeReading {
    /// Number of live tasks, without the probe.
    pub(super) tasks: u64,
    /// Lag of the task that was woken at the last tick, so far if it has not run. Zero if it was
    /// left asleep; `None` at the first tick.
    pub(super) lag: Option<Duration>,
    /// State of the task that was woken at the last tick.
    pub(super) state: ProbeState,
}

impl RuntimeProbe {
    /// Spawns the task. On a runtime that has shut down it is dropped at once, and [`Self::read`]
    /// returns `None`.
    pub(super) fn start(runtime: Handle, clock: Arc<dyn Clock>) -> Self {
        let shared = Arc::new(RuntimeProbeState::default());
        // The task is not joined: it ends by itself, or the runtime drops it.
        drop(runtime.spawn(run(Alive(shared.clone()), clock)));
        Self {
            handle: runtime,
            state: shared,
            sent_at: None,
            last_sent_at: None,
            last_thread: 0,
            blocking: BlockingProbe::new(),
            stalled: StalledTime::default(),
        }
    }

    pub(super) fn id(&self) -> Id {
        self.handle.id()
    }

    /// Sends a closure through the blocking pool unless one is pending.
    pub(super) fn send_blocking(&mut self, now: Moment, clock: &Arc<dyn Clock>) {
        self.blocking.send(now, &self.handle, clock);
    }

    /// Returns the number of worker threads: 0 for a current-thread runtime, which runs on a
    /// service thread.
    pub(super) fn worker_count(&self) -> usize {
        match self.handle.runtime_flavor() {
            RuntimeFlavor::MultiThread => self.handle.metrics().num_workers(),
            _ => 0,
        }
    }

    /// Returns the thread that last ran the task, or `None` if it has not changed since the last
    /// call.
    pub(super) fn take_changed_thread(&mut self) -> Option<u32> {
        let thread = self.state.thread.load(Ordering::Relaxed);
        (std::mem::replace(&mut self.last_thread, thread) != thread).then_some(thread)
    }

    /// Returns the reading, and wakes the task for the next tick. An idle runtime's task is woken
    /// only if `wake_interval` has passed since the last time. Returns `None` if the runtime has
    /// shut down.
    pub(super) fn read(
        &mut self,
        clock: &dyn Clock,
        wake_interval: Duration,
    ) -> Option<ProbeReading> {
        if self.state.is_dropped.load(Ordering::Acquire) {
            return None;
        }
        let metrics = self.handle.metrics();
        let tasks = (metrics.num_alive_tasks() as u64).saturating_sub(1);
        let now = clock.now();
        let state = match (self.sent_at, self.state.ran_at.get()) {
            (None, _) => ProbeState::Asleep,
            (Some(sent), None) => ProbeState::Waiting(standstill::running_time(sent, now)),
            (Some(sent), Some(ran_at)) => {
                self.sent_at = None;
                ProbeState::Ran(standstill::running_time(sent, ran_at))
            }
        };
        let lag = self.last_sent_at.map(|_| state.lag());
        let was_woken_recently =
            self.last_sent_at.is_some_and(|last| now.since(last) < wake_interval);
        if self.sent_at.is_none() && !(was_woken_recently && has_parked_worker(&metrics)) {
            self.sent_at = Some(now);
            self.last_sent_at = self.sent_at;
            self.state.ran_at.clear();
            self.state.wake.notify_one();
        }
        Some(ProbeReading { tasks, lag, state })
    }
}

fn has_parked_worker(runtime: &RuntimeMetrics) -> bool {
    (0..runtime.num_workers()).any(|worker| is_parked(runtime.worker_park_unpark_count(worker)))
}

impl Drop for RuntimeProbe {
    fn drop(&mut self) {
        self.state.stop.store(true, Ordering::Release);
        self.state.wake.notify_one();
    }
}

/// State shared by the reader and the task.
#[derive(Default)]
struct RuntimeProbeState {
    wake: Notify,
    /// Time at which the task ran.
    ran_at: RunTime,
    /// Thread that ran the task: a worker.
    thread: AtomicU32,
    stop: AtomicBool,
    is_dropped: AtomicBool,
}

/// Guard that sets `is_dropped` when the task is dropped, whether or not it has run.
struct Alive(Arc<RuntimeProbeState>);

impl Drop for Alive {
    fn drop(&mut self) {
        self.0.is_dropped.store(true, Ordering::Release);
    }
}

async fn run(alive: Alive, clock: Arc<dyn Clock>) {
    let shared = &alive.0;
    loop {
        shared.wake.notified().await;
        if shared.stop.load(Ordering::Acquire) {
            return;
        }
        shared.thread.store(threads::current_tid(), Ordering::Relaxed);
        shared.ran_at.set(clock.now());
    }
}
