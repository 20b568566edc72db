//! A sleep that wakes its thread once: a `timerfd`.
//!
//! tokio's timers are kept by slots of 64 ms (then of 4 s): a sleep that goes beyond its slot wakes the thread as the
//! slot begins, to sort it in, and again when it is over. Waking an idle core costs up to 0.1 ms of CPU, so
//! for somebody who sleeps 100 ms or 250 ms at a time in an idle process that is half of all he costs. Setting this
//! costs a system call, and so does its going off.
//!
//! Where the kernel gives no timer, or the poller does not take it (a process out of descriptors), tokio's timers
//! are slept by: as long, and at twice the wakeups.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::OwnedFd;

use rustix::time::{
    Itimerspec, TimerfdClockId, TimerfdFlags, TimerfdTimerFlags, Timespec, timerfd_create,
    timerfd_settime,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::time::Instant;

/// Goes off when it is set to; on the runtime it was made on.
#[derive(Debug)]
pub struct Alarm(Option<AsyncFd<OwnedFd>>);

impl Alarm {
    /// One that is not set; to be called on a runtime that has I/O and time enabled.
    pub fn here() -> Self {
        Self(timer().ok())
    }

    /// Sleeps until `due`. One sleep at a time: the next takes the place of one that was dropped.
    pub async fn sleep_until(&self, due: Instant) {
        let slept = match &self.0 {
            Some(timer) => sleep_by(timer, due).await,
            None => Err(io::ErrorKind::Unsupported.into()),
        };
        if slept.is_err() {
            tokio::time::sleep_until(due).await;
        }
    }
}

fn timer() -> io::Result<AsyncFd<OwnedFd>> {
    let flags = TimerfdFlags::CLOEXEC | TimerfdFlags::NONBLOCK;
    let timer = timerfd_create(TimerfdClockId::Monotonic, flags)?;
    // SAFETY: the `AsyncFd` owns the descriptor and gives it to nobody, so it stays open and the same until
    // it is taken from the poller and closed.
    Ok(unsafe { AsyncFd::register_with_interest(timer, Interest::READABLE) }?)
}

/// Sleeps, or has not slept at all if the timer cannot be set or waited for.
async fn sleep_by(timer: &AsyncFd<OwnedFd>, due: Instant) -> io::Result<()> {
    let left = due.saturating_duration_since(Instant::now());
    if left.is_zero() {
        return Ok(());
    }
    let seconds = i64::try_from(left.as_secs()).unwrap_or(i64::MAX);
    let value = Timespec { tv_sec: seconds, tv_nsec: left.subsec_nanos().into() };
    let once = Itimerspec { it_interval: Timespec { tv_sec: 0, tv_nsec: 0 }, it_value: value };
    // That it went off before is forgotten with this, so only this can be read.
    timerfd_settime(timer, TimerfdTimerFlags::empty(), &once)?;
    loop {
        let mut ready = timer.readable().await?;
        match ready.try_io(|timer| Ok(rustix::io::read(timer, &mut [0; 8])?)) {
            Ok(Ok(_)) => {
                // Nothing is left to read until it is set again, and then the poller says so.
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

    fn on_a_runtime<F: Future>(work: F) -> F::Output {
        tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap().block_on(work)
    }

    #[test]
    fn it_goes_off_when_it_is_due_and_not_before() {
        on_a_runtime(async {
            let (own, tokios) = (Alarm::here(), Alarm(None));
            assert!(own.0.is_some(), "no timer of its own");
            for (alarm, millis) in [(&own, 0), (&own, 1), (&own, 30), (&tokios, 0), (&tokios, 2)] {
                let due = Instant::now() + Duration::from_millis(millis);
                alarm.sleep_until(due).await;
                assert!(Instant::now() >= due, "{alarm:?}, {millis} ms");
            }
        });
    }

    #[test]
    fn a_sleep_that_was_dropped_does_not_end_the_next() {
        on_a_runtime(async {
            let alarm = Alarm::here();
            let soon = Instant::now() + Duration::from_millis(5);
            let late = soon + Duration::from_millis(40);
            let slept = tokio::time::timeout(Duration::ZERO, alarm.sleep_until(soon)).await;
            assert!(slept.is_err());
            tokio::time::sleep_until(soon + Duration::from_millis(5)).await;
            alarm.sleep_until(late).await;
            assert!(Instant::now() >= late);
        });
    }
}
