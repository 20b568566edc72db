//! The runtimes a service wants watched.
//!
//! The list is all that is shared. The reader keeps the probes to itself and looks at the list only
//! when its count of changes has moved, so a tick takes no lock the service could hold.

use crate::base::sync::Mutex;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, MutexGuard, PoisonError};

use tokio::runtime::{Handle, Id, RuntimeFlavor};

use super::Error;
use crate::model::Beat;

/// How many runtimes may be watched: one for each core of the largest machines, for services that
/// run a thread and a runtime on each. An idle one is a few loads a tick, and how often idle ones
/// are woken does not grow with their number; a busy one is woken each tick.
pub(super) const MAX_RUNTIMES: usize = 256;

/// How many threads of theirs are kept, to be known by their names.
pub(super) const MAX_THREADS: usize = 64;

/// The observed runtimes of one agent.
#[derive(Clone, Debug, Default)]
pub struct Runtimes(Arc<List>);

#[derive(Debug)]
struct List {
    handles: Mutex<Vec<Observed>>,
    /// How often a handle was added.
    added: AtomicU64,
    /// Threads that were seen to work for one of them, the last ones.
    threads: Mutex<VecDeque<u32>>,
}

/// An observed runtime.
#[derive(Debug)]
struct Observed {
    number: u64,
    handle: Handle,
    /// The thread that ran the probe last, or 0.
    thread: u32,
}

impl Default for List {
    fn default() -> Self {
        // A tick that meets another thread of theirs allocates nothing.
        let threads = Mutex::new(VecDeque::with_capacity(MAX_THREADS));
        Self { handles: Mutex::default(), added: AtomicU64::new(0), threads }
    }
}

impl Runtimes {
    /// No runtimes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Watches the runtime of `handle` from the next tick on, until it shuts down. A runtime that
    /// is watched already stays so.
    ///
    /// Watching takes one task of the runtime's, asleep between ticks, which its own
    /// `num_alive_tasks` counts and the vitals do not. The runtime shuts down as it would without.
    ///
    /// # Errors
    ///
    /// [`Error::TooManyRuntimes`] when there are 256.
    pub fn observe(&self, handle: Handle) -> Result<(), Error> {
        let mut handles = self.lock();
        if handles.iter().any(|known| known.handle.id() == handle.id()) {
            return Ok(());
        }
        if handles.len() >= MAX_RUNTIMES {
            return Err(Error::TooManyRuntimes);
        }
        let number = self.0.added.fetch_add(1, Ordering::Release) + 1;
        handles.push(Observed { number, handle, thread: 0 });
        Ok(())
    }

    /// How many are watched.
    pub fn len(&self) -> usize {
        self.lock().len()
    }

    /// Whether none is.
    pub fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// The handles that are not `known`; `seen` is the count of changes at the last call, and
    /// without a change since there are none.
    pub(super) fn fresh(&self, seen: &mut u64, known: impl Fn(Id) -> bool) -> Vec<Handle> {
        let added = self.0.added.load(Ordering::Acquire);
        if added == *seen {
            return Vec::new();
        }
        *seen = added;
        let handles = self.lock();
        handles.iter().map(|it| &it.handle).filter(|it| !known(it.id())).cloned().collect()
    }

    /// Takes a runtime that has shut down off the list.
    pub(super) fn forget(&self, id: Id) {
        self.lock().retain(|known| known.handle.id() != id);
    }

    /// Takes all of them off the list.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    /// Puts the counters of each worker into `into`. Costs some 20 ns a worker.
    ///
    /// A runtime of one thread counts as at work while nothing drives it. It is left out until a thread has driven it.
    pub fn beats(&self, into: &mut Vec<Beat>) {
        into.clear();
        for Observed { number, handle, thread } in self.lock().iter() {
            let driver = match handle.runtime_flavor() {
                RuntimeFlavor::MultiThread => None,
                _ if *thread == 0 => continue,
                _ => Some(*thread),
            };
            let metrics = handle.metrics();
            into.extend((0..metrics.num_workers()).map(|worker| {
                let turns = metrics.worker_park_unpark_count(worker);
                let busy = metrics.worker_total_busy_duration(worker).as_nanos();
                Beat {
                    worker: (*number, worker as u32),
                    // It has parked once more than it has unparked.
                    parked: turns % 2 == 1,
                    mark: (turns, busy as u64),
                    driver,
                }
            }));
        }
    }

    /// The last threads that were seen to work for one of them.
    pub fn threads(&self) -> Vec<u32> {
        lock(&self.0.threads).iter().copied().collect()
    }

    /// Puts the last threads that were seen to work for one of them into `into`. Returns whether that has changed it.
    pub(super) fn copy_threads(&self, into: &mut Vec<u32>) -> bool {
        let threads = lock(&self.0.threads);
        if threads.iter().eq(into.iter()) {
            return false;
        }
        into.clear();
        into.extend(threads.iter());
        true
    }

    /// A task of the runtime `id` ran on `thread`.
    pub(super) fn works_on(&self, id: Id, thread: u32) {
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

    fn lock(&self) -> MutexGuard<'_, Vec<Observed>> {
        lock(&self.0.handles)
    }
}

/// Nothing panics under these locks, and a list is whole between any two statements.
fn lock<T: Default>(list: &Mutex<T>) -> MutexGuard<'_, T> {
    list.lock().unwrap_or_else(PoisonError::into_inner)
}
