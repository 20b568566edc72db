//! The threads: how they are started and what they run.

use std::io;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};

use tokio::sync::mpsc;

use super::Error as AgentError;
use super::capture::Worker;
use super::collect;
use super::core::Core;
use super::deferred::Deferred;
use super::event::Event;
use super::handle::AgentHandle;
use super::run;
use super::service::Service;
use super::stream::work::{Desk, Order};
use crate::base::retry::Backoff;
use crate::base::{Clock, Error, warnings};
use crate::config::StoreSettings;
use crate::os;
use crate::vitals::Runtimes;

/// How many threads may read files for the endpoint at once; they end when they have been idle.
const BLOCKING_THREADS: usize = 2;

/// The topic of the warning while a thread cannot be started.
const TOPIC: &str = "threads";

/// The topic of the warning while the loop has no poller.
const POLLER: &str = "descriptors";

type Body = Box<dyn FnOnce() + Send>;

/// The threads of an agent. Each is started as soon as the system allows it: a limit on threads may be exhausted at the
/// agent's start and not a minute later.
pub(super) struct Threads {
    pub(super) agent_loop: PendingThread,
    pub(super) capture: PendingThread,
    pub(super) callbacks: PendingThread,
}

impl Threads {
    pub(super) fn new() -> Arc<Self> {
        Arc::new(Self {
            agent_loop: PendingThread::new("marple"),
            capture: PendingThread::new("marple-capture"),
            callbacks: PendingThread::new("marple-callbacks"),
        })
    }

    /// Starts the threads beside the loop's that are not running, and reports those that cannot be started. Returns
    /// whether all run.
    pub(super) fn start_helpers(&self) -> bool {
        let helpers = [&self.capture, &self.callbacks];
        let mut refused = helpers.iter().filter_map(|thread| thread.start().err());
        match refused.next() {
            Some(error) => {
                warnings::set(TOPIC, format!("{error}; tried again every few seconds"));
                false
            }
            None => {
                warnings::clear(TOPIC);
                true
            }
        }
    }
}

/// A thread that is running or is to be started.
pub(super) struct PendingThread {
    name: &'static str,
    /// `None` once the thread has taken it, or if nothing is to be run.
    body: Arc<Mutex<Option<Body>>>,
    handle: Mutex<Option<JoinHandle<()>>>,
}

impl PendingThread {
    fn new(name: &'static str) -> Self {
        Self { name, body: Arc::default(), handle: Mutex::default() }
    }

    /// Sets what the thread runs.
    pub(super) fn prepare(&self, body: impl FnOnce() + Send + 'static) {
        *lock(&self.body) = Some(Box::new(body));
    }

    /// Starts the thread unless it was started or has nothing to run.
    pub(super) fn start(&self) -> Result<(), Error> {
        let mut handle = lock(&self.handle);
        if handle.is_some() || lock(&self.body).is_none() {
            return Ok(());
        }
        // A refused `spawn` drops its closure, so the closure does not own the body.
        let body = Arc::clone(&self.body);
        let run = move || {
            os::memory::release_own_stack();
            let body = lock(&body).take();
            if let Some(body) = body {
                body();
            }
        };
        let started = thread::Builder::new().name(self.name.to_owned()).spawn(run);
        let failed = |error| Error::new(AgentError::Thread { name: self.name, error });
        *handle = Some(started.map_err(failed)?);
        Ok(())
    }

    pub(super) fn is_started(&self) -> bool {
        lock(&self.handle).is_some()
    }

    /// Drops what a thread that was not started was to run.
    pub(super) fn cancel(&self) {
        let body = lock(&self.body).take();
        drop(body);
    }

    /// Returns the running or ended thread.
    pub(super) fn take(&self) -> Option<JoinHandle<()>> {
        lock(&self.handle).take()
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The thread `marple`: a runtime of its own, and the loop on it.
///
/// Without the descriptors for a poller the loop runs on timers alone: vitals, rules and status are there, the endpoint
/// and the signal are not, until there are descriptors.
pub(super) fn lead(
    mut core: Core,
    mut queue: mpsc::Receiver<Event>,
    services: Vec<Box<dyn Service>>,
    handle: &AgentHandle,
    runtimes: &Runtimes,
    mut deferred: Deferred,
) {
    let mut backoff = Backoff::new();
    loop {
        let error = match runtime() {
            Ok(runtime) => {
                warnings::clear(POLLER);
                runtime.block_on(async {
                    for service in services {
                        tokio::spawn(service.serve(handle.clone()));
                    }
                    run::run(&mut core, &mut queue, runtimes, &mut deferred).await;
                });
                return;
            }
            Err(error) => error,
        };
        warnings::set(POLLER, without_poller(&error));
        match tokio::runtime::Builder::new_current_thread().enable_time().build() {
            Ok(runtime) => {
                let ended = runtime.block_on(run::run_without_poller(
                    &mut core,
                    &mut queue,
                    &mut deferred,
                    backoff.delay(),
                ));
                if ended {
                    return;
                }
            }
            Err(error) => {
                tracing::error!(target: "marple", "no runtime for the agent: {error}");
                thread::sleep(backoff.delay());
            }
        }
    }
}

fn without_poller(error: &io::Error) -> String {
    let limit = crate::os::process::descriptor_limit();
    let limit = limit.map_or_else(|| "no limit".to_owned(), |limit| format!("a limit of {limit}"));
    format!(
        "no endpoint, no signal and no stalls: a poller needs {} descriptors: {error} (the process has {limit}: \
         raise `ulimit -n`, LimitNOFILE=); vitals and rules go on, and it is tried again every few seconds",
        run::DESCRIPTORS
    )
}

/// A runtime with a poller, timers and signals.
fn runtime() -> io::Result<tokio::runtime::Runtime> {
    // tokio panics where it cannot make its pair of sockets for signals.
    run::check_descriptors()?;
    // Files are read for the endpoint on threads of this runtime, a few at a time; what they allocate is
    // no more the service's than what the agent's thread does.
    tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .thread_name("marple-files")
        .max_blocking_threads(BLOCKING_THREADS)
        .on_thread_start(|| {
            os::memory::release_own_stack();
            collect::heap::exclude_for_good();
        })
        .build()
}

/// The thread `marple-capture`.
pub(super) fn work(
    mut worker: Worker,
    clock: &dyn Clock,
    settings: &StoreSettings,
    inbox: &Receiver<Order>,
    events: &mpsc::Sender<Event>,
) {
    worker.prepare();
    let mut desk = Desk::new(events.clone());
    loop {
        if let Some(opened) = worker.take_opened()
            && events.blocking_send(Event::DirectoryOpened(Box::new(opened))).is_err()
        {
            return;
        }
        let order = match worker.until_retry() {
            None => inbox.recv().map_err(|_| RecvTimeoutError::Disconnected),
            Some(wait) => inbox.recv_timeout(wait),
        };
        let order = match order {
            Ok(order) => order,
            Err(RecvTimeoutError::Timeout) => {
                worker.retry(settings);
                continue;
            }
            Err(RecvTimeoutError::Disconnected) => return,
        };
        let done = match order {
            Order::Incident(task) => Event::Done(worker.perform(*task)),
            Order::Stream(task) => {
                if let Some(error) = task.state.as_ref().and_then(|state| worker.save(state).err())
                    && events.blocking_send(Event::NotSaved(error)).is_err()
                {
                    return;
                }
                Event::Streamed(desk.perform(clock, task))
            }
        };
        if events.blocking_send(done).is_err() {
            return;
        }
    }
}
