//! A bounded queue of log events, which a thread of its own hands to the host's `tracing` subscriber.
//!
//! A subscriber is code of the host: it may block (a pipe that nobody reads), panic, or take a lock that a stuck thread
//! holds. No thread of marple may depend on that, so only the thread `marple-log` calls it. All others put an event into
//! the queue and go on:
//!
//! ```text
//!  log::warn(..) ──► queue (1024 events, 1 MiB) ──► marple-log ──► tracing ──► the host's layers
//!                     └─ full: the event is dropped and counted
//! ```
//!
//! The thread delivers nothing during a fork (`fork_gate.rs`), so that a child inherits no lock of the subscriber from it.
//!
//! The thread starts with the first event. A forked child has a queue and a thread of its own, since it has neither the
//! parent's thread nor any use for a mutex that was locked when it was forked.
//!
//! Texts are escaped here, in one place: names of threads, tasks, spans and files come from outside, and a line break or
//! a terminal escape in one of them must not forge a log line.

#[cfg_attr(not(feature = "http"), allow(dead_code, reason = "only the endpoint audits"))]
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

use super::{panics, warnings};
pub(crate) use event::{Event, Level};
pub(crate) use quiet::quiet;
pub(crate) use text::escaped;

/// Maximum number of events that wait. A busy incident logs some 20.
const MAX_EVENTS: usize = 1024;

/// Maximum size of the texts that wait, in bytes.
const MAX_BYTES: usize = 1 << 20;

/// Time after which another attempt is made to start the thread.
const RETRY: Duration = Duration::from_secs(1);

/// Time that one event may take before the subscriber counts as stuck.
const STUCK: Duration = Duration::from_secs(5);

/// Topic of the warning about events that do not get through.
const TOPIC: &str = "log";

/// Queues, one for each process of a chain of forks; there is no way to share one (see the module).
static QUEUES: [OnceLock<Queue>; 8] = [const { OnceLock::new() }; 8];

/// Number of [`QUEUES`] that are in use.
static USED: AtomicUsize = AtomicUsize::new(0);

/// Called first on the thread `marple-log`.
static ON_START: OnceLock<fn()> = OnceLock::new();

/// Logs `message` at the level `ERROR`.
pub(crate) fn error(message: impl Into<String>) {
    Event::new(Level::Error, message).send();
}

/// Logs `message` at the level `WARN`.
pub(crate) fn warn(message: impl Into<String>) {
    Event::new(Level::Warn, message).send();
}

/// Logs `message` at the level `INFO`.
pub(crate) fn info(message: impl Into<String>) {
    Event::new(Level::Info, message).send();
}

/// State of the queue, as `/status` shows it.
#[derive(Clone, Debug, Default, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct LogStatus {
    /// Events that were handed to the subscriber since the start.
    pub delivered: u64,
    /// Events that wait for the subscriber.
    pub queued: usize,
    /// Events that were dropped since the start because the queue was full.
    pub dropped: u64,
    /// Panics of the subscriber on events of marple since the start.
    pub panics: u64,
}

/// Sets the function that the thread `marple-log` calls first. Only the first call has an effect.
pub(crate) fn set_on_start(on_start: fn()) {
    let _ = ON_START.set(on_start);
}

/// Waits until the subscriber has taken all events, at most for `timeout`. Returns `false` if it has not.
pub(crate) fn flush(timeout: Duration) -> bool {
    existing().is_none_or(|queue| queue.flush(timeout))
}

/// Returns the state of the queue, and sets or clears the warning about it.
pub(crate) fn check() -> LogStatus {
    let Some(queue) = existing() else { return LogStatus::default() };
    let (status, problem) = queue.lock().check(Instant::now());
    match problem {
        Some(problem) => warnings::set(TOPIC, problem),
        None => warnings::clear(TOPIC),
    }
    status
}

/// The queue of this process, if it has one.
fn existing() -> Option<&'static Queue> {
    let pid = std::process::id();
    QUEUES.iter().filter_map(OnceLock::get).find(|queue| queue.pid == pid)
}

/// The queue of this process, or `None` at the end of a chain of more forks than there are queues.
fn queue() -> Option<&'static Queue> {
    existing().or_else(|| {
        // A slot of its own for each caller: a forked child must not wait for an initialisation that a thread of the
        // parent had begun. Two threads at once take two slots, the first of which is used from then on.
        let used = USED.fetch_add(1, Ordering::Relaxed).min(QUEUES.len());
        QUEUES.get(used).map(|slot| slot.get_or_init(Queue::new))
    })
}

#[derive(Debug)]
struct Queue {
    pid: u32,
    state: Mutex<State>,
    pushed: Condvar,
    drained: Condvar,
}

#[derive(Debug, Default)]
struct State {
    events: VecDeque<(Instant, Event)>,
    bytes: usize,
    has_thread: bool,
    /// Time of the last attempt to start the thread that failed, and why.
    refused: Option<(Instant, String)>,
    /// Time since which the subscriber has the event it was handed last.
    delivering: Option<Instant>,
    status: LogStatus,
    /// Dropped events that no line in the log mentions yet.
    unmentioned: u64,
    last_panic: Option<String>,
}

impl State {
    /// Adds `event`, or counts it as dropped.
    fn push(&mut self, event: Event) -> bool {
        let size = event.size();
        if self.events.len() >= MAX_EVENTS || self.bytes + size > MAX_BYTES {
            self.status.dropped += 1;
            self.unmentioned += 1;
            return false;
        }
        self.bytes += size;
        self.events.push_back((Instant::now(), event));
        true
    }

    fn pop(&mut self) -> Option<(Instant, Event)> {
        let (at, event) = self.events.pop_front()?;
        self.bytes -= event.size();
        Some((at, event))
    }

    fn is_drained(&self) -> bool {
        self.events.is_empty() && self.delivering.is_none()
    }

    /// Returns the state and what is wrong. The text holds no number that changes while nothing else does: each text is
    /// logged once.
    fn check(&self, now: Instant) -> (LogStatus, Option<String>) {
        let mut status = self.status.clone();
        status.queued = self.events.len();
        let is_stuck = self.delivering.is_some_and(|since| now.duration_since(since) >= STUCK);
        let problem = if let (false, Some((_, why))) = (self.has_thread, &self.refused) {
            Some(format!("events are not logged: cannot start the thread `marple-log`: {why}"))
        } else if is_stuck || self.events.len() >= MAX_EVENTS / 2 {
            Some(
                "events are queued or dropped: the tracing subscriber of the service does not take them; \
                 see `log` for numbers, and what reads its output"
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

impl Queue {
    fn new() -> Self {
        Self {
            pid: std::process::id(),
            state: Mutex::default(),
            pushed: Condvar::new(),
            drained: Condvar::new(),
        }
    }

    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&'static self, event: Event) {
        let mut state = self.lock();
        let was_pushed = state.push(event);
        let may_start = state.refused.as_ref().is_none_or(|(tried, _)| tried.elapsed() >= RETRY);
        if !state.has_thread && may_start {
            let thread = thread::Builder::new().name("marple-log".to_owned());
            match thread.spawn(|| self.run()) {
                Ok(_) => state.has_thread = true,
                Err(error) => state.refused = Some((Instant::now(), error.to_string())),
            }
        }
        drop(state);
        if was_pushed {
            self.pushed.notify_one();
        }
    }

    /// The thread `marple-log`.
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
            let dropped = std::mem::take(&mut state.unmentioned);
            state.delivering = Some(Instant::now());
            drop(state);
            // The host's panic hook is called for it: it is the host's code that panics.
            let deliver = || {
                event.deliver(queued.elapsed());
                if dropped > 0 {
                    let text = format!(
                        "{dropped} events of marple were not logged: the tracing subscriber did not take them in time"
                    );
                    Event::new(Level::Warn, text).deliver(Duration::ZERO);
                }
            };
            let delivered = fork_gate::deliver(|| panics::catch(deliver));
            state = self.lock();
            state.delivering = None;
            match delivered {
                Ok(()) => {
                    state.status.delivered += 1;
                    state.last_panic = None;
                }
                Err(panic) => {
                    state.status.panics += 1;
                    state.unmentioned += dropped;
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
        let is_waiting = |state: &mut State| !state.is_drained();
        let waited = self.drained.wait_timeout_while(state, timeout, is_waiting);
        let (state, _) = waited.unwrap_or_else(PoisonError::into_inner);
        state.is_drained()
    }
}

#[cfg(test)]
mod tests;
