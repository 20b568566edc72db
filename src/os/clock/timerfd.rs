//! A one-shot sleep that causes a single thread wakeup, based on `timerfd`.
//!
//! tokio's timer wheel groups deadlines into slots of 64 ms (then 4 s). A sleep longer than its
//! slot wakes the thread twice: when the slot starts, to be sorted in, and at the deadline. Waking
//! an idle core costs up to 0.1 ms of CPU. For a thread that sleeps 100 ms or 250 ms at a time in
//! an idle process, the extra wakeup is half of its cost. A `timerfd` costs one system call to set
//! and one to read.
//!
//! If the kernel provides no timer, or the poller rejects it (no descriptors left), sleeps fall
//! back to tokio's timers: same duration, twice the wakeups.

#![allow(unsafe_code, reason = "registration of a descriptor, which must stay open, in the poller")]

use std::io;
use std::os::fd::OwnedFd;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

/// A one-shot timer bound to the runtime it was created on.
#[derive(Debug)]
pub struct TimerFd(Option<AsyncFd<OwnedFd>>);

impl TimerFd {
    /// Creates an unset timer. Must be called on a runtime with I/O and time enabled.
    pub fn on_current_runtime() -> Self {
        Self(create_timer().ok())
    }

    /// Sleeps until `deadline`. Supports one sleep at a time: a new sleep replaces one that was
    /// dropped.
    pub async fn sleep_until(&self, deadline: Instant) {
        let result = match &self.0 {
            Some(timer) => sleep_with_timer(timer, deadline).await,
            None => Err(io::ErrorKind::Unsupported.into()),
        };
        if result.is_err() {
            tokio::time::sleep_until(deadline).await;
        }
    }
}

fn create_timer() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
    // SAFETY: the `AsyncFd` owns the descriptor and does not expose it, so it stays open and
    // unchanged until it is removed from the poller and closed.
    Ok(unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?)
}

/// Sleeps until `deadline`, or fails without sleeping if the timer cannot be set or awaited.
async fn sleep_with_timer(timer: &AsyncFd<OwnedFd>, deadline: Instant) -> io::Result<()> {
    let remaining = deadline.saturating_duration_since(Instant::now());
    if remaining.is_zero() {
        return Ok(());
    }
    let seconds = i64::try_from(remaining.as_secs()).unwrap_or(i64::MAX);
    let value = Timespec { tv_sec: seconds, tv_nsec: remaining.subsec_nanos().into() };
    let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
    // Setting the timer discards an earlier expiration, so only this one can be read.
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)?;
    loop {
        let mut ready = timer.readable().await?;
        match ready.try_io(|timer| Ok(rustix::io::read(timer, &mut [0; 8])?)) {
            Ok(Ok(_)) => {
                // Nothing is left to read until the timer is set again; the poller reports that.
                ready.clear_ready();
                return Ok(());
            }
            Ok(Err(error)) => return Err(error),
            Err(_) => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;

    fn run_on_runtime<F: Future>(work: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    }

    #[test]
    fn sleep_does_not_end_before_its_deadline() {
        run_on_runtime(async {
            let with_timerfd = TimerFd::on_current_runtime();
            let tokio_fallback = TimerFd(None);
            assert!(with_timerfd.0.is_some(), "no timer of its own");
            for (timer, millis) in [
                (&with_timerfd, 0),
                (&with_timerfd, 1),
                (&with_timerfd, 30),
                (&tokio_fallback, 0),
                (&tokio_fallback, 2),
            ] {
                let due = Instant::now() + Duration::from_millis(millis);
                timer.sleep_until(due).await;
                assert!(Instant::now() >= due, "{timer:?}, {millis} ms");
            }
        });
    }

    #[test]
    fn dropped_sleep_does_not_end_the_next_one() {
        run_on_runtime(async {
            let timer = TimerFd::on_current_runtime();
            let soon = Instant::now() + Duration::from_millis(5);
            let late = soon + Duration::from_millis(40);
            let slept = tokio::time::timeout(Duration::ZERO, timer.sleep_until(soon)).await;
            assert!(slept.is_err());
            tokio::time::sleep_until(soon + Duration::from_millis(5)).await;
            timer.sleep_until(late).await;
            assert!(Instant::now() >= late);
        });
    }
}
