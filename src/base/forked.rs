//! Values that a forked child inherits and must not use.
//!
//! A child of `fork` has the memory of its parent and one of its threads: threads to join are not there, locks
//! may be held for ever, some mappings and all timers are gone.

use std::process;
use std::sync::atomic::{AtomicU32, Ordering};

/// Forks between this process and the first one of the chain in which an agent was started.
static GENERATION: AtomicU32 = AtomicU32::new(0);

/// Returns the number of forks that led to this process, of those made after an agent was started.
pub(crate) fn generation() -> u32 {
    GENERATION.load(Ordering::Relaxed)
}

/// To be called in a forked child before anything else of marple is. Async-signal-safe.
pub(crate) fn enter_child() {
    GENERATION.fetch_add(1, Ordering::Relaxed);
}

/// A value that only the process that made it may use. In a forked child there is no value, and dropping this leaks it.
#[derive(Debug)]
pub(crate) struct OfProcess<T> {
    value: Option<T>,
    pid: u32,
}

impl<T> OfProcess<T> {
    /// Makes `value` one of the calling process.
    pub(crate) fn new(value: T) -> Self {
        Self { value: Some(value), pid: process::id() }
    }

    /// Whether the calling process is a child of the one that made the value.
    pub(crate) fn is_inherited(&self) -> bool {
        self.pid != process::id()
    }

    /// The value, or `None` in a child or once it was taken.
    #[cfg_attr(not(feature = "cpu"), allow(dead_code, reason = "sessions are asked through it"))]
    pub(crate) fn get(&self) -> Option<&T> {
        self.value.as_ref().filter(|_| !self.is_inherited())
    }

    /// Takes the value out, or returns `None` in a child or once it was taken.
    pub(crate) fn take(&mut self) -> Option<T> {
        if self.is_inherited() { None } else { self.value.take() }
    }
}

impl<T> Drop for OfProcess<T> {
    fn drop(&mut self) {
        if self.is_inherited() {
            std::mem::forget(self.value.take());
        }
    }
}

#[cfg(test)]
mod tests {
    use std::rc::Rc;

    use super::*;

    #[test]
    fn a_value_of_another_process_is_neither_shown_nor_dropped() {
        let value = Rc::new(());
        let mut own = OfProcess::new(Rc::clone(&value));
        assert!(own.get().is_some() && !own.is_inherited());
        own.pid ^= 1;
        assert!(own.get().is_none() && own.take().is_none() && own.is_inherited());
        drop(own);
        assert_eq!(Rc::strong_count(&value), 2, "leaked");
        drop(OfProcess::new(Rc::clone(&value)));
        assert_eq!(Rc::strong_count(&value), 2);
    }
}
