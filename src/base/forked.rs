//! Values that a forked child inherits but must not use.
//!
//! A child of `fork` has the memory of its parent but only one of its threads. Threads to join do
//! not exist, locks may be held forever, and some mappings and all timers are missing.

use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

/// Number of forks from the process that first started an agent to this one.
static FORK_GENERATION: AtomicU32 = AtomicU32::new(0);

/// Returns the number of forks that led to this process, counted from the first agent start.
pub(crate) fn fork_generation() -> u32 {
    FORK_GENERATION.load(Ordering::Relaxed)
}

/// Registers the fork in the child. Must be called before any other function of marple.
/// Async-signal-safe.
pub(crate) fn enter_child() {
    FORK_GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// A value that only the process that created it can use. In a forked child the value is absent,
/// and dropping this type leaks it.
#[derive(Debug)]
pub(crate) struct ProcessBound<T> {
    value: Option<T>,
    pid: u32,
}

impl<T> ProcessBound<T> {
    /// Binds `value` to the calling process.
    pub(crate) fn new(value: T) -> Self {
        Self { value: Some(value), pid: process::id() }
    }

    /// Returns `true` if the calling process is a child of the one that created the value.
    pub(crate) fn is_inherited(&self) -> bool {
        self.pid != process::id()
    }

    /// Returns the value, or `None` in a child or after [`take`](Self::take).
    #[cfg_attr(not(feature = "cpu"), allow(dead_code, reason = "only CPU sessions use it"))]
    pub(crate) fn get(&self) -> Option<&T> {
        self.value.as_ref().filter(|_| !self.is_inherited())
    }

    /// Takes the value. Returns `None` in a child or if it was taken before.
    pub(crate) fn take(&mut self) -> Option<T> {
        if self.is_inherited() { None } else { self.value.take() }
    }
}

impl<T> Drop for ProcessBound<T> {
    fn drop(&mut self) {
        if self.is_inherited() {
            std::mem::forget(self.value.take());
        }
    }
}

/// A flag that one thread holds at a time. A forked child does not inherit it set: the thread that
/// would clear it does not exist there.
#[derive(Debug)]
pub(crate) struct ForkAwareFlag {
    /// 1 + the fork generation of the process that set it, or 0.
    holder: AtomicU32,
}

impl ForkAwareFlag {
    pub(crate) const fn new() -> Self {
        Self { holder: AtomicU32::new(0) }
    }

    /// Sets the flag. Returns `false` if a thread of this process has set it already.
    pub(crate) fn try_set(&self) -> bool {
        let own = fork_generation().wrapping_add(1);
        let holder = self.holder.load(Ordering::Relaxed);
        let success = Ordering::Acquire;
        let failure = Ordering::Relaxed;
        holder != own && self.holder.compare_exchange(holder, own, success, failure).is_ok()
    }

    /// Clears the flag, if this process has set it.
    pub(crate) fn clear(&self) {
        let own = fork_generation().wrapping_add(1);
        let _ = self.holder.compare_exchange(own, 0, Ordering::Release, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn value_of_another_process_is_neither_returned_nor_dropped() {
        let value = Rc::new(());
        let mut bound = ProcessBound::new(Rc::clone(&value));
        assert!(bound.get().is_some() && !bound.is_inherited());
        bound.pid ^= 1;
        assert!(bound.get().is_none() && bound.take().is_none() && bound.is_inherited());
        drop(bound);
        assert_eq!(Rc::strong_count(&value), 2, "leaked");
        drop(ProcessBound::new(Rc::clone(&value)));
        assert_eq!(Rc::strong_count(&value), 2);
    }

    #[test]
    fn flag_of_the_parent_is_clear_in_a_child() {
        let flag = ForkAwareFlag::new();
        assert!(flag.try_set());
        assert!(!flag.try_set());
        flag.clear();
        assert!(flag.try_set(), "cleared");
        let inherited = ForkAwareFlag { holder: AtomicU32::new(fork_generation().wrapping_sub(1)) };
        inherited.clear();
        assert!(inherited.try_set(), "set by the parent");
        assert!(!inherited.try_set());
    }
}
