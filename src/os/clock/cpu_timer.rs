//! CPU-clock timers of single threads, set from another thread.
//!
//! The kernel checks such a timer at its tick (100 to 1000 Hz, mostly 250). A timer with a shorter
//! period fires at the tick and reports its missed expirations as overruns. The code uses system
//! calls instead of libc: `timer_create` of libc needs a helper thread for part of this, and does
//! not accept thread IDs.

#![allow(unsafe_code, reason = "system calls of timers and clocks, which take pointers")]

use std::ffi::{c_int, c_void};
use std::io;
use std::mem::MaybeUninit;
use std::ptr;
use std::time::Duration;

use crate::os::failed_call::FailedCall;
use crate::os::syscalls::{OptionalCall, permit};

/// A timer on a thread's CPU time that sends a signal to that thread. Dropping it disarms it; a
/// pending signal may still arrive.
#[derive(Debug)]
pub struct ThreadTimer {
    id: c_int,
}

impl ThreadTimer {
    /// Creates a disarmed timer, which sends `signal` with `value` to the thread `tid` of this
    /// process.
    ///
    /// # Errors
    ///
    /// Returns an error if there is no such thread, too many signals are queued
    /// (`RLIMIT_SIGPENDING`), or a filter denies the call.
    pub fn new(tid: u32, signal: c_int, value: u64) -> Result<Self, FailedCall> {
        permit(OptionalCall::ThreadTimers)?;
        // SAFETY: an all-zero sigevent is a valid one.
        let mut event: libc::sigevent = unsafe { MaybeUninit::zeroed().assume_init() };
        event.sigev_value.sival_ptr = ptr::without_provenance_mut::<c_void>(value as usize);
        event.sigev_signo = signal;
        event.sigev_notify = libc::SIGEV_THREAD_ID;
        event.sigev_notify_thread_id = tid as c_int;
        let mut id: c_int = 0;
        // SAFETY: the kernel reads a sigevent and writes an int.
        let failed = unsafe {
            libc::syscall(
                libc::SYS_timer_create,
                thread_clock_id(tid),
                &raw const event,
                &raw mut id,
            )
        };
        if failed != 0 {
            return Err(FailedCall::new(OptionalCall::ThreadTimers, io::Error::last_os_error()));
        }
        Ok(Self { id })
    }

    /// Arms the timer: it fires after `first` of the thread's CPU time, and then each `period`.
    ///
    /// # Errors
    ///
    /// Returns an error if the thread has exited, or a filter denies the call.
    pub fn arm(&mut self, first: Duration, period: Duration) -> io::Result<()> {
        permit(OptionalCall::ThreadTimers)?;
        let spec = |time: Duration| libc::timespec {
            tv_sec: time.as_secs().try_into().unwrap_or(i64::MAX),
            tv_nsec: time.subsec_nanos().into(),
        };
        let times = libc::itimerspec {
            it_interval: spec(period),
            // Zero would disarm it.
            it_value: spec(first.max(Duration::from_nanos(1))),
        };
        // SAFETY: the kernel reads an itimerspec, and does not write the old one, whose pointer is
        // null.
        let failed = unsafe {
            libc::syscall(
                libc::SYS_timer_settime,
                self.id,
                0,
                &raw const times,
                ptr::null_mut::<libc::itimerspec>(),
            )
        };
        if failed == 0 { Ok(()) } else { Err(io::Error::last_os_error()) }
    }
}

impl Drop for ThreadTimer {
    fn drop(&mut self) {
        // If a filter was installed that kills the process for this call, the timer is leaked.
        if permit(OptionalCall::ThreadTimers).is_ok() {
            // SAFETY: takes no pointer; this timer owns the ID.
            unsafe { libc::syscall(libc::SYS_timer_delete, self.id) };
        }
    }
}

/// Returns the CPU time of the thread `tid` of this process since its start. Costs 0.3 us.
///
/// # Errors
///
/// Returns an error if the thread has exited.
pub fn thread_cpu_time(tid: u32) -> io::Result<Duration> {
    // SAFETY: an all-zero timespec is a valid one.
    let mut time: libc::timespec = unsafe { MaybeUninit::zeroed().assume_init() };
    // SAFETY: the kernel writes a timespec. A raw system call, because libc may reject such a
    // clock.
    let failed =
        unsafe { libc::syscall(libc::SYS_clock_gettime, thread_clock_id(tid), &raw mut time) };
    if failed != 0 {
        return Err(io::Error::last_os_error());
    }
    let seconds = u64::try_from(time.tv_sec).unwrap_or_default();
    Ok(Duration::new(seconds, u32::try_from(time.tv_nsec).unwrap_or_default()))
}

/// Returns the CPU clock of the thread `tid`: `!tid << 3 | CPUCLOCK_PERTHREAD (4) | CPUCLOCK_SCHED
/// (2)`.
fn thread_clock_id(tid: u32) -> c_int {
    (!tid.cast_signed() << 3) | 4 | 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::os::proc::process::cpu_time;
    use crate::os::signal::tests::install_test_target;
    use crate::os::stack_snapshot::StackSnapshot;

    #[test]
    fn busy_thread_receives_signals_and_overruns_are_counted() {
        let target = install_test_target(64, 16 << 10);
        // SAFETY: takes no pointer and cannot fail.
        let tid = unsafe { libc::gettid() } as u32;
        let mut timer = ThreadTimer::new(tid, target.signal(), target.value(5)).unwrap();
        let period = Duration::from_micros(500);
        timer.arm(period, period).unwrap();
        let mut samples = 0u32;
        let mut weight = 0;
        let end = cpu_time() + Duration::from_millis(100);
        let mut copied = StackSnapshot::default();
        while cpu_time() < end {
            target.slots().drain(&mut copied, |copied| {
                assert_eq!((copied.header.tid, copied.header.tag), (tid, 5));
                samples += 1;
                weight += copied.header.weight;
            });
        }
        drop(timer);
        assert!(samples > 0);
        // No kernel ticks at 2000 Hz.
        assert!(weight > samples, "{weight} of {samples}");
    }

    #[test]
    fn timer_for_missing_thread_is_rejected() {
        assert!(ThreadTimer::new(i32::MAX as u32 - 1, libc::SIGPROF, 0).is_err());
        assert!(thread_cpu_time(i32::MAX as u32 - 1).is_err());
    }

    #[test]
    fn cpu_time_of_another_thread_is_readable() {
        let (tid_sender, tid_receiver) = std::sync::mpsc::channel();
        let (end, wait) = std::sync::mpsc::channel::<()>();
        let thread = std::thread::spawn(move || {
            let own = || thread_cpu_time(crate::os::proc::threads::current_tid()).unwrap();
            while own() < Duration::from_millis(20) {
                std::hint::spin_loop();
            }
            tid_sender.send(crate::os::proc::threads::current_tid()).unwrap();
            let _ = wait.recv();
        });
        assert!(
            thread_cpu_time(tid_receiver.recv().unwrap()).unwrap() >= Duration::from_millis(20)
        );
        drop(end);
        thread.join().unwrap();
    }
}
