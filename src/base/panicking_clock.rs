//! A clock for tests that inject a panic: every part of the agent reads the clock.

use std::sync::atomic::{AtomicUsize, Ordering};

use jiff::Timestamp;

use super::{Clock, Moment, SystemClock};

/// A clock that panics a given number of times.
#[derive(Default)]
pub(crate) struct PanickingClock(AtomicUsize);

impl PanickingClock {
    pub(crate) fn arm(&self, panics: usize) {
        self.0.store(panics, Ordering::SeqCst);
    }

    fn panic_if_armed(&self) {
        let countdown =
            self.0.fetch_update(Ordering::SeqCst, Ordering::SeqCst, |left| left.checked_sub(1));
        assert!(countdown.is_err(), "an injected panic");
    }
}

impl Clock for PanickingClock {
    fn now(&self) -> Moment {
        self.panic_if_armed();
        SystemClock.now()
    }

    fn wall(&self) -> Timestamp {
        self.panic_if_armed();
        SystemClock.wall()
    }
}
