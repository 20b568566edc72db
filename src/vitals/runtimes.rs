//! The runtimes a service wants watched.
//!
//! The list is all that is shared. The reader keeps the probes to itself and looks at the list only when
//! its count of changes has moved, so a tick takes no lock the service could hold.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use tokio::runtime::{Handle, Id};

use super::Error;

/// How many runtimes may be watched: one for each core of the largest machines, for services that
/// run a thread and a runtime on each. An idle one is a few loads a tick, and how often idle ones are
/// woken does not grow with their number; a busy one is woken each tick.
pub(super) const MAX_RUNTIMES: usize = 256;

/// The observed runtimes of one agent.
#[derive(Clone, Debug, Default)]
pub struct Runtimes(Arc<List>);

#[derive(Debug, Default)]
struct List {
    handles: Mutex<Vec<Handle>>,
    /// How often a handle was added.
    added: AtomicU64,
}

impl Runtimes {
    /// No runtimes.
    pub fn new() -> Self {
        Self::default()
    }

    /// Watches the runtime of `handle` from the next tick on, until it shuts down. A runtime that is
    /// watched already stays so.
    ///
    /// Watching takes one task of the runtime's, asleep between ticks, which its own
    /// `num_alive_tasks` counts and the vitals do not. The runtime shuts down as it would without.
    ///
    /// # Errors
    ///
    /// [`Error::TooManyRuntimes`] when there are 256.
    pub fn observe(&self, handle: Handle) -> Result<(), Error> {
        let mut handles = self.lock();
        if handles.iter().any(|known| known.id() == handle.id()) {
            return Ok(());
        }
        if handles.len() >= MAX_RUNTIMES {
            return Err(Error::TooManyRuntimes);
        }
        handles.push(handle);
        self.0.added.fetch_add(1, Ordering::Release);
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

    /// The handles that are not `known`; `seen` is the count of changes at the last call, and without
    /// a change since there are none.
    pub(super) fn fresh(&self, seen: &mut u64, known: impl Fn(Id) -> bool) -> Vec<Handle> {
        let added = self.0.added.load(Ordering::Acquire);
        if added == *seen {
            return Vec::new();
        }
        *seen = added;
        self.lock().iter().filter(|handle| !known(handle.id())).cloned().collect()
    }

    /// Takes a runtime that has shut down off the list.
    pub(super) fn forget(&self, id: Id) {
        self.lock().retain(|handle| handle.id() != id);
    }

    /// Takes all of them off the list.
    pub(super) fn clear(&self) {
        self.lock().clear();
    }

    fn lock(&self) -> MutexGuard<'_, Vec<Handle>> {
        // Nothing panics under this lock, and a list is whole between any two statements.
        self.0.handles.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
