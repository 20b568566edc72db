//! A bounded queue of log events and the thread that sends them to the host's `tracing` subscriber.
//!
//! A subscriber is host code. It may block (on a pipe without a reader), panic, or wait for a lock
//! held by a blocked thread. Only the thread `marple-log` calls it, so that no other thread of
//! marple depends on it. All others append to the queue and continue:
//!
//! ```text
//!  log::warn(..) ──► queue (1024 events, 1 MiB) ──► marple-log ──► tracing ──► the host's layers
//!                     └─ full: the event is dropped and counted
//! ```
//!
//! The thread delivers nothing during a fork (`fork_gate.rs`), so that a child does not inherit a
//! locked subscriber.
//!
//! The first event starts the thread. A forked child gets a separate queue and thread: the parent's
//! thread does not exist there, and the mutex of the parent's queue may be locked.
//!
//! Texts are escaped here, in one place. Names of threads, tasks, spans and files come from
//! outside. A line break or terminal escape in them must not forge a log line.

#[cfg_attr(not(feature = "http"), allow(dead_code, reason = "only the endpoint logs requests"))]
mod event;
pub(crate) mod fork_gate;
mod quiet;
mod text;

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Condvar, Mutex, MutexGuard, OnceLock, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use serde::Serialize;

use super::host_panic::catch_host_panic;
use super::warnings;
pub(crate) use event::{LogEvent, LogLevel};
pub(crate) use quiet::quiet;
pub(crate) use text::escape;

/// Maximum number of queued events. A busy incident logs about 20.
const MAX_QUEUED_EVENTS: usize = 1024;

/// Maximum size of the queued texts in bytes.
const MAX_QUEUED_BYTES: usize = 1 << 20;

/// Minimum time between attempts to start the thread.
const THREAD_START_RETRY_INTERVAL: Duration = Duration::from_secs(1);

/// Duration of a delivery after which the subscriber counts as stuck.
const STUCK_TIMEOUT: Duration = Duration::from_secs(5);

/// Topic of the warning about undelivered events.
const WARNING_TOPIC: &str = "log";

/// Queues, one per process in a chain of forks. Processes cannot share one; see the module.
static QUEUES: [OnceLock<LogQueue>; 8] = [const { OnceLock::new() }; 8];

/// Number of [`QUEUES`] in use.
static QUEUES_USED: AtomicUsize = AtomicUsize::new(0);

/// Function that the thread `marple-log` calls first.
static ON_START: OnceLock<fn()> = OnceLock::new();

/// Logs `message` at level `ERROR`.
pub(crate) fn error(message: impl Into<String>) {
    LogEvent::new(LogLevel::Error, message).send();
}

/// Logs `message` at level `WARN`.
pub(crate) fn warn(message: impl Into<String>) {
    LogEvent::new(LogLevel::Warn, message).send();
}

/// Logs `message` at level `INFO`.
pub(crate) fn info(message: impl Into<String>) {
    LogEvent::new(LogLevel::Info, message).send();
}

/// The state of the log queue, as shown in `/status`.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LogStatus {
    /// Events delivered to the subscriber since the start.
    pub delivered: u64,
    /// Events waiting for delivery.
    pub queued: usize,
    /// Events dropped since the start because the queue was full.
    pub dropped: u64,
    /// Panics of the subscriber since the start, on events of marple.
    pub panics: u64,
}

/// Sets the function that the thread `marple-log` calls first. Only the first call has an effect.
pub(crate) fn set_on_start(on_start: fn()) {
    let _ = ON_START.set(on_start);
}

/// Waits until all events are delivered, for up to `timeout`. Returns `false` on timeout.
pub(crate) fn flush(timeout: Duration) -> bool {
    existing_queue().is_none_or(|queue| queue.flush(timeout))
}

/// Returns the state of the queue and updates the warning about it.
pub(crate) fn check_status() -> LogStatus {
    let Some(queue) = existing_queue() else { return LogStatus::default() };
    let (status, problem) = queue.lock().check(Instant::now());
    match problem {
        Some(problem) => warnings::set(WARNING_TOPIC, problem),
        None => warnings::clear(WARNING_TOPIC),
    }
    status
}

/// Returns the queue of this process, if it has one.
fn existing_queue() -> Option<&'static LogQueue> {
    let pid = std::process::id();
    QUEUES.iter().filter_map(OnceLock::get).find(|queue| queue.pid == pid)
}

/// Returns the queue of this process, creating it if necessary. `None` if the chain of forks is
/// longer than the number of queues.
fn queue() -> Option<&'static LogQueue> {
    existing_queue().or_else(|| {
        // Each caller takes a separate slot. A forked child must not wait for an initialisation
        // started by a thread of the parent. Two concurrent callers take two slots; the first is
        // used from then on.
        let index = QUEUES_USED.fetch_add(1, Ordering::Relaxed).min(QUEUES.len());
        QUEUES.get(index).map(|slot| slot.get_or_init(LogQueue::new))
    })
}

#[derive(Debug)]
struct LogQueue {
    pid: u32,
    state: Mutex<LogState>,
    pushed: Condvar,
    drained: Condvar,
}

#[derive(Debug, Default)]
struct LogState {
    events: VecDeque<(Instant, LogEvent)>,
    bytes: usize,
    has_thread: bool,
    /// Time and error of the last failed attempt to start the thread.
    start_failure: Option<(Instant, String)>,
    /// Start of the delivery in progress.
    delivery_start: Option<Instant>,
    status: LogStatus,
    /// Dropped events not yet reported in the log.
    unreported_drops: u64,
    last_panic: Option<String>,
}

impl LogState {
    /// Appends `event`. Returns `false` and counts it as dropped if the queue is full.
    fn push(&mut self, event: LogEvent) -> bool {
        let size = event.size();
        if self.events.len() >= MAX_QUEUED_EVENTS || self.bytes + size > MAX_QUEUED_BYTES {
            self.status.dropped += 1;
            self.unreported_drops += 1;
            return false;
        }
        self.bytes += size;
        self.events.push_back((Instant::now(), event));
        true
    }

    fn pop(&mut self) -> Option<(Instant, LogEvent)> {
        let (at, event) = self.events.pop_front()?;
        self.bytes -= event.size();
        Some((at, event))
    }

    fn is_drained(&self) -> bool {
        self.events.is_empty() && self.delivery_start.is_none()
    }

    /// Returns the status and a description of the problem, if any. The description contains no
    /// varying number, because each distinct text is logged once.
    fn check(&self, now: Instant) -> (LogStatus, Option<String>) {
        let mut status = self.status.clone();
        status.queued = self.events.len();
        let is_stuck =
            self.delivery_start.is_some_and(|since| now.duration_since(since) >= STUCK_TIMEOUT);
        let problem = if let (false, Some((_, why))) = (self.has_thread, &self.start_failure) {
            Some(format!("events are not logged: cannot start the thread `marple-log`: {why}"))
        } else if is_stuck || self.events.len() >= MAX_QUEUED_EVENTS / 2 {
            Some(
                "events are queued or dropped: the tracing subscriber of the service does not \
                 accept them in time; see `log` for counters, and check the reader of the \
                 subscriber's output"
                    .to_owned(),
            )
        } else {
            self.last_panic
                .as_ref()
                .map(|panic| format!("the tracing subscriber of the service panicked: {panic}"))
        };
        (status, problem)
    }
}

impl LogQueue {
    fn new() -> Self {
        Self {
            pid: std::process::id(),
            state: Mutex::default(),
            pushed: Condvar::new(),
            drained: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, LogState> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&'static self, event: LogEvent) {
        let mut state = self.lock();
        let was_pushed = state.push(event);
        let may_start = state
            .start_failure
            .as_ref()
            .is_none_or(|(tried, _)| tried.elapsed() >= THREAD_START_RETRY_INTERVAL);
        if !state.has_thread && may_start {
            let thread = thread::Builder::new().name("marple-log".to_owned());
            match thread.spawn(|| self.run()) {
                Ok(_) => state.has_thread = true,
                Err(error) => state.start_failure = Some((Instant::now(), error.to_string())),
            }
        }
        drop(state);
        if was_pushed {
            self.pushed.notify_one();
        }
    }

    /// Runs the thread `marple-log`.
    fn run(&self) {
        if let Some(on_start) = ON_START.get() {
            on_start();
        }
        let mut state = self.lock();
        loop {
            let Some((queued, event)) = state.pop() else {
                self.drained.notify_all();
                state = self.pushed.wait(state).unwrap_or_else(PoisonError::into_inner);
                continue;
            };
            let dropped = std::mem::take(&mut state.unreported_drops);
            state.delivery_start = Some(Instant::now());
            drop(state);
            // `catch_host_panic`, not `fence`: a panic here is in host code, so the host's panic
            // hook must run.
            let deliver = || {
                event.deliver(queued.elapsed());
                if dropped > 0 {
                    let text = format!(
                        "{dropped} events of marple were not logged: the tracing subscriber did \
                         not accept them in time"
                    );
                    LogEvent::new(LogLevel::Warn, text).deliver(Duration::ZERO);
                }
            };
            let delivered = fork_gate::deliver(|| catch_host_panic(deliver));
            state = self.lock();
            state.delivery_start = None;
            match delivered {
                Ok(()) => {
                    state.status.delivered += 1;
                    state.last_panic = None;
                }
                Err(panic) => {
                    state.status.panics += 1;
                    state.unreported_drops += dropped;
                    state.last_panic = Some(panic);
                }
            }
        }
    }

    fn flush(&self, timeout: Duration) -> bool {
        let state = self.lock();
        if !state.has_thread {
            return state.is_drained();
        }
        let is_waiting = |state: &mut LogState| !state.is_drained();
        let result = self.drained.wait_timeout_while(state, timeout, is_waiting);
        let (state, _) = result.unwrap_or_else(PoisonError::into_inner);
        state.is_drained()
    }
}

#[cfg(test)]
mod tests;
