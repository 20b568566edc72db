//! Runtimes observed for the service.
//!
//! Only the list is shared. The reader owns the probes, and reads the list only if its count of
//! additions has changed. A tick therefore takes no lock that the service could hold.

use crate::base::sync::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};

use tokio::runtime::{Handle, Id, RuntimeFlavor};

use super::Error;
use crate::model::WorkerProgress;

/// Maximum number of observed runtimes: one per core of the largest machines, for services with a
/// thread and a runtime on each. An idle one costs a few loads per tick, and the wake-up rate of
/// idle ones does not grow with their number. A busy one is woken at each tick.
pub(super) const MAX_RUNTIMES: usize = 256;

/// Maximum number of their threads kept, for recognition by name.
pub(super) const MAX_THREADS: usize = 64;

/// Observed runtimes of one agent.
#[derive(Clone, Debug, Default)]
pub struct Runtimes(Arc<RuntimeList>);

#[derive(Debug)]
struct RuntimeList {
    handles: Mutex<Vec<ObservedRuntime>>,
    /// Number of handles ever added.
    added: AtomicU64,
    /// Latest threads that ran one of the runtimes.
    threads: Mutex<VecDeque<u32>>,
}

#[derive(Debug)]
struct ObservedRuntime {
    number: u64,
    handle: Handle,
    /// Thread that ran the probe last, or 0.
    thread: u32,
}

impl Default for RuntimeList {
    fn default() -> Self {
        // A tick that adds a thread does not allocate.
        let threads = Mutex::new(VecDeque::with_capacity(MAX_THREADS));
        Self { handles: Mutex::default(), added: AtomicU64::new(0), threads }
    }
}

impl Runtimes {
    /// Creates an empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Observes the runtime of `handle` from the next tick until it shuts down. Does nothing if the
    /// runtime is already observed.
    ///
    /// The observation adds one task to the runtime, which sleeps between ticks. The runtime's
    /// `num_alive_tasks` includes it, the vitals do not. It does not affect the shutdown of the
    /// runtime.
    ///
    /// # Errors
    ///
    /// [`Error::TooManyRuntimes`] if it would be more than 256.
    pub fn observe(&self, handle: Handle) -> Result<(), Error> {
        let mut handles = self.lock();
        if handles.iter().any(|known| known.handle.id() == handle.id()) {
            return Ok(());
        }
        if handles.len() >= MAX_RUNTIMES {
            return Err(Error::TooManyRuntimes);
        }
        let number = self.0.added.fetch_add(1, Ordering::Release) + 1;
        handles.push(ObservedRuntime { number, handle, thread: 0 });
        Ok(())
    }

    /// Returns the number of observed runtimes.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Returns `true` if no runtime is observed.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Returns the handles that are not `known`. `seen` is the count of additions at the last call;
    /// if it is unchanged, the result is empty.
    pub(super) fn new_handles(&self, seen: &mut u64, known: impl Fn(Id) -> bool) -> Vec<Handle> {
        let added = self.0.added.load(Ordering::Acquire);
        if added == *seen {
            return Vec::new();
        }
        *seen = added;
        let handles = self.lock();
        handles.iter().map(|it| &it.handle).filter(|it| !known(it.id())).cloned().collect()
    }

    /// Removes a runtime that has shut down.
    pub(super) fn remove(&self, id: Id) {
        self.lock().retain(|known| known.handle.id() != id);
    }

    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    /// Writes the counters of each worker into `into`. Costs some 20 ns a worker.
    ///
    /// A current-thread runtime appears busy while it is not driven. It is left out until a thread
    /// has driven it.
    pub fn read_worker_progress(&self, into: &mut Vec<WorkerProgress>) {
        into.clear();
        for ObservedRuntime { number, handle, thread } in self.lock().iter() {
            let driver = match handle.runtime_flavor() {
                RuntimeFlavor::MultiThread => None,
                _ if *thread == 0 => continue,
                _ => Some(*thread),
            };
            let metrics = handle.metrics();
            into.extend((0..metrics.num_workers()).map(|worker| {
                let park_unpark_count = metrics.worker_park_unpark_count(worker);
                let busy = metrics.worker_total_busy_duration(worker).as_nanos();
                WorkerProgress {
                    worker: (*number, worker as u32),
                    is_parked: is_parked(park_unpark_count),
                    counters: (park_unpark_count, busy as u64),
                    driver_tid: driver,
                }
            }));
        }
    }

    /// Returns the latest threads that ran one of the runtimes.
    pub fn threads(&self) -> Vec<u32> {
        lock(&self.0.threads).iter().copied().collect()
    }

    /// Copies the latest threads that ran one of the runtimes to `into`. Returns `true` if `into`
    /// has changed.
    pub(super) fn copy_threads(&self, into: &mut Vec<u32>) -> bool {
        let threads = lock(&self.0.threads);
        if threads.iter().eq(into.iter()) {
            return false;
        }
        into.clear();
        into.extend(threads.iter());
        true
    }

    /// Records that a task of the runtime `id` ran on `thread`.
    pub(super) fn record_thread(&self, id: Id, thread: u32) {
        if let Some(known) = self.lock().iter_mut().find(|known| known.handle.id() == id) {
            known.thread = thread;
        }
        let mut threads = lock(&self.0.threads);
        if !threads.contains(&thread) {
            if threads.len() >= MAX_THREADS {
                threads.pop_front();
            }
            threads.push_back(thread);
        }
    }

    fn lock(&self) -> MutexGuard<'_, Vec<ObservedRuntime>> {
        lock(&self.0.handles)
    }
}

/// Returns `true` if a worker with this count of parks and unparks is parked: the count is odd.
pub(super) const fn is_parked(park_unpark_count: u64) -> bool {
    park_unpark_count % 2 == 1
}

/// Ignores poisoning: no code panics under these locks, and a list is consistent between
/// statements.
fn lock<T: Default>(list: &Mutex<T>) -> MutexGuard<'_, T> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}
