//! Threads that are started as soon as the system allows it.

use std::io;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use super::Error as AgentError;
use crate::base::{Bytes, Error, warnings};
use crate::os;

/// Topic of the warning raised while a thread cannot be started.
const TOPIC: &str = "threads";

/// Address space that must be left below `RLIMIT_AS` to start a thread. An allocation that fails
/// ends the process. The stack takes 2 MiB; with 8 to 12 MiB left, the allocations of the agent and
/// the service ended it.
const MIN_ADDRESS_SPACE: Bytes = Bytes::mib(16);

type Body = Box<dyn FnOnce() + Send>;

/// The threads of an agent. Each is started as soon as the system allows it: a limit on threads may
/// be exhausted when the agent starts and not a minute later.
pub(super) struct AgentThreads {
    pub(super) agent_loop: PendingThread,
    pub(super) capture: PendingThread,
    pub(super) callbacks: PendingThread,
}

impl AgentThreads {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            agent_loop: PendingThread::new("marple"),
            capture: PendingThread::new("marple-capture"),
            callbacks: PendingThread::new("marple-callbacks"),
        })
    }

    /// Starts the helper threads that are not running and reports those that cannot be started.
    /// Returns `true` if all run.
    pub(super) fn start_helpers(&self) -> bool {
        let helpers = [&self.capture, &self.callbacks];
        let mut errors = helpers.iter().filter_map(|thread| thread.start().err());
        match errors.next() {
            Some(error) => {
                warnings::set(TOPIC, format!("{error}; retried every few seconds"));
                false
            }
            None => {
                warnings::clear(TOPIC);
                true
            }
        }
    }
}

/// A thread that is running or waits to be started.
pub(super) struct PendingThread {
    name: &'static str,
    /// `None` once the thread has taken it, or if there is nothing to run.
    body: Arc<Mutex<Option<Body>>>,
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl PendingThread {
    fn new(name: &'static str) -> Self {
        Self { name, body: Arc::default(), handle: Mutex::default() }
    }

    /// Sets the body of the thread.
    pub(super) fn set_body(&self, body: impl FnOnce() + Send + 'static) {
        *lock(&self.body) = Some(Box::new(body));
    }

    /// Starts the thread unless it is already started or has no body.
    pub(super) fn start(&self) -> Result<(), Error> {
        let mut handle = lock(&self.handle);
        if handle.is_some() || lock(&self.body).is_none() {
            return Ok(());
        }
        // A failed `spawn` drops its closure, so the closure must not own the body.
        let body = Arc::clone(&self.body);
        let run = move || {
            os::own_thread::enter();
            let body = lock(&body).take();
            if let Some(body) = body {
                body();
            }
        };
        let started = match os::mapped_memory::remaining_address_space() {
            Some(left) if left < MIN_ADDRESS_SPACE => Err(io::Error::other(format!(
                "only {left} of address space left below RLIMIT_AS (ulimit -v); a thread needs \
                 {MIN_ADDRESS_SPACE}"
            ))),
            _ => thread::Builder::new().name(self.name.to_owned()).spawn(run),
        };
        let failed = |error| Error::from(AgentError::ThreadNotStarted { name: self.name, error });
        *handle = Some(started.map_err(failed)?);
        Ok(())
    }

    pub(super) fn is_started(&self) -> bool {
        lock(&self.handle).is_some()
    }

    /// Drops the body of a thread that was not started.
    pub(super) fn cancel(&self) {
        let body = lock(&self.body).take();
        drop(body);
    }

    pub(super) fn take_handle(&self) -> Option<JoinHandle<()>> {
        lock(&self.handle).take()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
