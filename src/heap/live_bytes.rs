//! The current estimate of bytes in use, and a threshold on it.
//!
//! Each sample adds its bytes when its block is allocated and subtracts them when it is freed, so
//! the value always equals the sum of the live table. The sample that exceeds the threshold wakes
//! the agent from within the allocation: polling at 4 Hz would detect it up to half a gigabyte
//! later.
//!
//! A threshold fires once. Otherwise a heap that oscillates around it would wake the agent each
//! time; the listener sets the next threshold when it is ready for another event.

use std::sync::atomic::{AtomicI64, Ordering::SeqCst};

use crate::base::Bytes;
use crate::os::eventfd::WakeFd;

const NO_MARK: i64 = i64::MAX;

pub(crate) struct LiveBytes {
    in_use: AtomicI64,
    mark: AtomicI64,
    wake: WakeFd,
}

impl LiveBytes {
    pub(crate) const fn new() -> Self {
        Self { in_use: AtomicI64::new(0), mark: AtomicI64::new(NO_MARK), wake: WakeFd::new() }
    }

    pub(crate) fn rise(&self, bytes: i64) {
        let level = self.in_use.fetch_add(bytes, SeqCst).saturating_add(bytes);
        self.compare(level);
    }

    pub(crate) fn sink(&self, bytes: i64) {
        self.in_use.fetch_sub(bytes, SeqCst);
    }

    pub(crate) fn in_use(&self) -> Bytes {
        // A free may be subtracted before another thread adds its concurrent allocation.
        Bytes(self.in_use.load(SeqCst).max(0) as u64)
    }

    pub(crate) fn watch(&self, mark: Bytes) {
        // Without a free descriptor no listener can be woken; nothing else is lost.
        let _ = self.wake.open();
        self.mark.store(i64::try_from(mark.get()).unwrap_or(NO_MARK), SeqCst);
        // Increases before the store were not compared with this threshold.
        self.compare(self.in_use.load(SeqCst));
    }

    pub(crate) fn unwatch(&self) {
        self.mark.store(NO_MARK, SeqCst);
    }

    pub(crate) fn wake(&self) -> &WakeFd {
        &self.wake
    }

    fn compare(&self, level: i64) {
        let mark = self.mark.load(SeqCst);
        // Of several threads above the threshold, only one removes it and wakes the listener.
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
        let level = LiveBytes::new();
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
        let level = LiveBytes::new();
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
