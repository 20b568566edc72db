//! How much is in use, as it changes, and a mark on it.
//!
//! Each sample raises the level by what it stands for when its block comes and lowers it when it goes, so
//! it is at every moment the sum of the live table. The sample that carries it over the mark wakes the
//! agent, from within the allocation: polling at 4 Hz would see it up to half a gigabyte later.
//!
//! A mark is good for one waking. A program that breathes around it would otherwise wake the agent at
//! every breath; whoever listens sets the next mark when it has time for another.

use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

use crate::base::Bytes;
use crate::os::wake::Wake;

const NO_MARK: i64 = i64::MAX;

pub(crate) struct Level {
    in_use: AtomicI64,
    mark: AtomicI64,
    wake: Wake,
}

impl Level {
    pub(crate) const fn new() -> Self {
        Self { in_use: AtomicI64::new(0), mark: AtomicI64::new(NO_MARK), wake: Wake::new() }
    }

    pub(crate) fn rise(&self, bytes: i64) {
        let level = self.in_use.fetch_add(bytes, SeqCst).saturating_add(bytes);
        self.compare(level);
    }

    pub(crate) fn sink(&self, bytes: i64) {
        self.in_use.fetch_sub(bytes, SeqCst);
    }

    pub(crate) fn in_use(&self) -> Bytes {
        // A free may be counted before the allocation another thread is still putting in.
        Bytes(self.in_use.load(SeqCst).max(0) as u64)
    }

    pub(crate) fn watch(&self, mark: Bytes) {
        // Without a descriptor to spare nobody can be woken, and nothing else is lost.
        let _ = self.wake.open();
        self.mark.store(i64::try_from(mark.get()).unwrap_or(NO_MARK), SeqCst);
        // What rose before the store has not seen the mark.
        self.compare(self.in_use.load(SeqCst));
    }

    pub(crate) fn unwatch(&self) {
        self.mark.store(NO_MARK, SeqCst);
    }

    pub(crate) fn wake(&self) -> &Wake {
        &self.wake
    }

    fn compare(&self, level: i64) {
        let mark = self.mark.load(SeqCst);
        // Of several threads that are above it, one takes the mark away and wakes.
        if level > mark && self.mark.compare_exchange(mark, NO_MARK, SeqCst, SeqCst).is_ok() {
            self.wake.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_mark_is_told_of_once_and_only_from_above() {
        let level = Level::new();
        level.watch(Bytes(100));
        level.rise(100);
        assert!(level.wake.hear().is_err(), "at the mark is not above it");
        level.rise(1);
        level.rise(1);
        assert!(level.wake.hear().is_ok());
        level.sink(50);
        level.rise(50);
        assert!(level.wake.hear().is_err(), "it was good for one waking");
        assert_eq!(level.in_use(), Bytes(102));
    }

    #[test]
    fn a_mark_below_the_level_is_told_of_at_once() {
        let level = Level::new();
        level.rise(10);
        level.watch(Bytes(9));
        assert!(level.wake.hear().is_ok());
        level.watch(Bytes(9));
        level.unwatch();
        level.wake.hear().unwrap();
        level.rise(10);
        assert!(level.wake.hear().is_err(), "nobody watches");
    }
}
