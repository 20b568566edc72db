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

const NO_THRESHOLD: i64 = i64::MAX;

pub(crate) struct LiveBytes {
    in_use: AtomicI64,
    threshold: AtomicI64,
    wake_fd: WakeFd,
}

impl LiveBytes {
    pub(crate) const fn new() -> Self {
        Self {
            in_use: AtomicI64::new(0),
            threshold: AtomicI64::new(NO_THRESHOLD),
            wake_fd: WakeFd::new(),
        }
    }

    pub(crate) fn add(&self, bytes: i64) {
        let in_use = self.in_use.fetch_add(bytes, SeqCst).saturating_add(bytes);
        self.fire_if_exceeded(in_use);
    }

    pub(crate) fn sub(&self, bytes: i64) {
        self.in_use.fetch_sub(bytes, SeqCst);
    }

    pub(crate) fn in_use(&self) -> Bytes {
        // A free may be subtracted before another thread adds its concurrent allocation.
        Bytes(self.in_use.load(SeqCst).max(0) as u64)
    }

    pub(crate) fn arm(&self, threshold: Bytes) {
        // Without a free descriptor no listener can be woken; nothing else is lost.
        let _ = self.wake_fd.open();
        self.threshold.store(i64::try_from(threshold.get()).unwrap_or(NO_THRESHOLD), SeqCst);
        // Increases before the store were not compared with this threshold.
        self.fire_if_exceeded(self.in_use.load(SeqCst));
    }

    pub(crate) fn disarm(&self) {
        self.threshold.store(NO_THRESHOLD, SeqCst);
    }

    pub(crate) fn wake_fd(&self) -> &WakeFd {
        &self.wake_fd
    }

    fn fire_if_exceeded(&self, in_use: i64) {
        let threshold = self.threshold.load(SeqCst);
        // Of several threads above the threshold, only one removes it and wakes the listener.
        if in_use > threshold
            && self.threshold.compare_exchange(threshold, NO_THRESHOLD, SeqCst, SeqCst).is_ok()
        {
            self.wake_fd.wake();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn threshold_fires_once_when_exceeded() {
        let live_bytes = LiveBytes::new();
        live_bytes.arm(Bytes(100));
        live_bytes.add(100);
        assert!(live_bytes.wake_fd.consume().is_err(), "the threshold itself does not fire");
        live_bytes.add(1);
        live_bytes.add(1);
        assert!(live_bytes.wake_fd.consume().is_ok());
        live_bytes.sub(50);
        live_bytes.add(50);
        assert!(live_bytes.wake_fd.consume().is_err(), "the threshold fires once");
        assert_eq!(live_bytes.in_use(), Bytes(102));
    }

    #[test]
    fn threshold_below_current_value_fires_at_once() {
        let live_bytes = LiveBytes::new();
        live_bytes.add(10);
        live_bytes.arm(Bytes(9));
        assert!(live_bytes.wake_fd.consume().is_ok());
        live_bytes.arm(Bytes(9));
        live_bytes.disarm();
        live_bytes.wake_fd.consume().unwrap();
        live_bytes.add(10);
        assert!(live_bytes.wake_fd.consume().is_err(), "a disarmed threshold does not fire");
    }
}
