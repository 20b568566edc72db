//! A mutex that a forked child can lock even if another thread of its parent held it at the fork.
//!
//! `fork` copies the memory of a process but only the calling thread. A mutex that another thread
//! held at that time stays locked in the child forever. Threads of marple hold mutexes at any time
//! (a heap dump takes 50 ms). The child may start its own agent, or call functions of marple such
//! as `marple::task::spawn`.
//!
//! A mutex that was free at the fork works in the child as in the parent. A mutex counts as
//! abandoned if it cannot be locked for 0.1 s and no thread of the child has locked it. A successor
//! with the default value then replaces it, because the abandoned value may be half updated.
//!
//! In a process that was not forked while an agent was running, the cost is one load.

use std::sync::atomic::{AtomicU32, Ordering};
use std::sync::{self, LockResult, MutexGuard, OnceLock, PoisonError, TryLockError, TryLockResult};
use std::thread;
use std::time::Duration;

use super::forked::fork_generation;

/// Number of attempts to lock a mutex before it counts as abandoned, and the interval between them.
/// The total leaves a thread of the child that has just locked it time to set `locked_in`.
const MAX_ATTEMPTS: u32 = 20;
const ATTEMPT_INTERVAL: Duration = Duration::from_millis(5);

/// A mutex that survives a fork, with the interface of [`std::sync::Mutex`].
#[derive(Debug, Default)]
pub(crate) struct Mutex<T> {
    inner: sync::Mutex<T>,
    /// Generation of the process that locked it last. 0 in a process that was not forked.
    last_lock_generation: AtomicU32,
    /// The mutex that replaces this one in the current process.
    successor: OnceLock<Box<Self>>,
}

impl<T> Mutex<T> {
    /// Creates a mutex that protects `value`.
    pub(crate) const fn new(value: T) -> Self {
        Self {
            inner: sync::Mutex::new(value),
            last_lock_generation: AtomicU32::new(0),
            successor: OnceLock::new(),
        }
    }
}

impl<T: Default> Mutex<T> {
    /// Locks the mutex. Blocks while another thread of this process holds it.
    ///
    /// # Errors
    ///
    /// Returns an error if a thread panicked while holding the mutex.
    pub(crate) fn lock(&self) -> LockResult<MutexGuard<'_, T>> {
        match fork_generation() {
            0 => self.inner.lock(),
            generation => self.lock_in_child(generation),
        }
    }

    /// Locks the mutex if it is free.
    ///
    /// # Errors
    ///
    /// Fails as [`std::sync::Mutex::try_lock`] does.
    pub(crate) fn try_lock(&self) -> TryLockResult<MutexGuard<'_, T>> {
        match fork_generation() {
            0 => self.inner.try_lock(),
            generation => self.latest().try_lock_in_child(generation),
        }
    }

    #[cold]
    fn lock_in_child(&self, generation: u32) -> LockResult<MutexGuard<'_, T>> {
        let latest = self.latest();
        for _ in 0..MAX_ATTEMPTS {
            match latest.try_lock_in_child(generation) {
                Ok(guard) => return Ok(guard),
                Err(TryLockError::Poisoned(poisoned)) => return Err(poisoned),
                Err(TryLockError::WouldBlock) => {}
            }
            if latest.last_lock_generation.load(Ordering::Relaxed) == generation {
                let guard = latest.inner.lock();
                latest.last_lock_generation.store(generation, Ordering::Relaxed);
                return guard;
            }
            thread::sleep(ATTEMPT_INTERVAL);
        }
        let successor = latest.successor.get_or_init(Box::default);
        successor.lock_in_child(generation)
    }

    fn try_lock_in_child(&self, generation: u32) -> TryLockResult<MutexGuard<'_, T>> {
        let guard = self.inner.try_lock();
        if !matches!(guard, Err(TryLockError::WouldBlock)) {
            self.last_lock_generation.store(generation, Ordering::Relaxed);
        }
        guard
    }

    /// Returns the mutex in use, which is the last successor.
    fn latest(&self) -> &Self {
        let mut latest = self;
        while let Some(successor) = latest.successor.get() {
            latest = successor;
        }
        latest
    }
}

/// Locks `mutex`, ignoring poisoning.
#[allow(dead_code, reason = "its users depend on the features")]
pub(crate) fn lock<T: Default>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::mpsc::channel;

    use super::*;

    /// Returns a mutex with the value 7 that a thread holds forever, like a thread lost in a fork.
    fn mutex_held_elsewhere(locked_in: u32) -> Arc<Mutex<u32>> {
        let mutex = Arc::new(Mutex::new(7));
        let (sender, receiver) = channel();
        let holder = Arc::clone(&mutex);
        thread::spawn(move || {
            let guard = holder.inner.lock();
            holder.last_lock_generation.store(locked_in, Ordering::Relaxed);
            sender.send(()).unwrap();
            thread::park();
            drop(guard);
        });
        receiver.recv().unwrap();
        mutex
    }

    #[test]
    fn mutex_held_at_fork_is_replaced_once() {
        for locked_in in [0, 1] {
            let mutex = mutex_held_elsewhere(locked_in);
            *mutex.lock_in_child(2).unwrap() += 1;
            assert_eq!(*mutex.lock_in_child(2).unwrap(), 1, "a default value that stays");
            let guard = mutex.lock_in_child(2).unwrap();
            assert!(matches!(mutex.latest().try_lock_in_child(2), Err(TryLockError::WouldBlock)));
            drop(guard);
            // A child of the child: the value was not locked at this fork, so it is kept.
            assert_eq!(*mutex.lock_in_child(3).unwrap(), 1);
        }
    }

    #[test]
    fn mutex_free_at_fork_keeps_its_value() {
        let mutex = Mutex::new(7);
        *mutex.lock_in_child(1).unwrap() += 1;
        assert_eq!(*mutex.lock_in_child(1).unwrap(), 8);
        assert!(mutex.successor.get().is_none());
    }

    #[test]
    fn threads_of_child_process_exclude_each_other() {
        let mutex = Arc::new(Mutex::new(0_u32));
        let guard = mutex.lock_in_child(1).unwrap();
        let other = Arc::clone(&mutex);
        let waiter = thread::spawn(move || *other.lock_in_child(1).unwrap());
        // Longer than the time after which a mutex counts as abandoned.
        thread::sleep(ATTEMPT_INTERVAL * (MAX_ATTEMPTS + 10));
        let mut guard = guard;
        *guard = 5;
        drop(guard);
        assert_eq!(waiter.join().unwrap(), 5);
    }
}
