//! The cheapest clock there is, for dating what happens millions of times a second.
//!
//! On x86-64 the time-stamp counter and on aarch64 the virtual counter are read without a call, in some
//! 10 ns; `clock_gettime` takes three times as long, and the clock is most of what a recorded poll costs.
//! A counter is taken only where the kernel itself keeps its time by it: it has checked then that the
//! counter ticks at one rate, goes on in sleep and agrees between the cores, which no flag of the CPU
//! promises, least of all in a virtual machine. Everywhere else it is `CLOCK_MONOTONIC`.
//!
//! Ticks are dated by comparing them with `CLOCK_MONOTONIC` now and then ([`pair`]).

#![allow(unsafe_code)]

use std::fs::File;
use std::io::Read;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use super::threads;
use crate::base::{Clock, Moment, SystemClock};

/// What ticks are ticks of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TickSource {
    /// The CPU's own counter: x86-64's TSC, aarch64's virtual counter.
    Counter,
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    Monotonic,
}

impl TickSource {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter if cfg!(target_arch = "aarch64") => "virtual counter",
            Self::Counter => "TSC",
            Self::Monotonic => "CLOCK_MONOTONIC",
        }
    }
}

/// Where the kernel says by what it keeps the time.
const CLOCKSOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";

/// How the kernel calls the counter that [`now`] can read, which Miri cannot.
const COUNTER_NAME: Option<&str> = if cfg!(miri) {
    None
} else if cfg!(target_arch = "x86_64") {
    Some("tsc")
} else if cfg!(target_arch = "aarch64") {
    Some("arch_sys_counter")
} else {
    None
};

static BY_COUNTER: AtomicBool = AtomicBool::new(false);

/// The source of ticks in this process, decided at the first call, which has to come before the first
/// [`now`]: ticks of two sources do not compare.
pub fn source() -> TickSource {
    static SOURCE: OnceLock<TickSource> = OnceLock::new();
    *SOURCE.get_or_init(|| {
        let trusted = kernel_trusts_the_counter();
        BY_COUNTER.store(trusted, Ordering::Relaxed);
        if trusted { TickSource::Counter } else { TickSource::Monotonic }
    })
}

/// Whether the ticks can still be believed: a kernel that finds the counter wrong turns to another clock.
pub fn is_trusted() -> bool {
    source() == TickSource::Monotonic || kernel_trusts_the_counter()
}

/// The present tick. Of two reads on one thread the later is not the smaller; between threads they
/// agree to within some ten nanoseconds.
#[inline]
pub fn now() -> u64 {
    if BY_COUNTER.load(Ordering::Relaxed) { counter() } else { SystemClock.now().as_nanos() }
}

/// A tick of a little before: where the kernel's clock has to be asked, which takes long, as of the kernel's own
/// last tick.
#[inline]
pub fn recently() -> u64 {
    if BY_COUNTER.load(Ordering::Relaxed) { counter() } else { threads::recently().as_nanos() }
}

/// A tick and the moment it is: of a few tries the one that took the least time, so that an interruption
/// between the two reads does not count.
pub fn pair() -> (u64, Moment) {
    let tries = (0..5).map(|_| {
        let before = now();
        let moment = SystemClock.now();
        let after = now();
        (after.saturating_sub(before), before + after.saturating_sub(before) / 2, moment)
    });
    tries.min_by_key(|&(took, ..)| took).map_or((0, Moment::default()), |(_, tick, at)| (tick, at))
}

/// Without the heap: it is asked at the end of a capture.
fn kernel_trusts_the_counter() -> bool {
    let mut current = [0; 64];
    let read = File::open(CLOCKSOURCE).and_then(|mut file| file.read(&mut current));
    let current = read.ok().and_then(|read| current.get(..read)).map(<[u8]>::trim_ascii);
    current.is_some_and(|current| Some(current) == COUNTER_NAME.map(str::as_bytes))
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn counter() -> u64 {
    // SAFETY: every x86-64 has the instruction; a process that was forbidden it (PR_SET_TSC) could not
    // have read the kernel's clock either, whose vDSO uses it when the clock source is "tsc".
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(target_arch = "aarch64")]
#[inline]
fn counter() -> u64 {
    let ticks: u64;
    // SAFETY: reads a register that Linux lets user space read; touches no memory and no flags.
    unsafe {
        std::arch::asm!("mrs {}, cntvct_el0", out(reg) ticks, options(nomem, nostack, preserves_flags));
    }
    ticks
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn counter() -> u64 {
    SystemClock.now().as_nanos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_go_on_and_can_be_dated() {
        source();
        let (first_tick, first) = pair();
        std::thread::sleep(std::time::Duration::from_millis(5));
        let (last_tick, last) = pair();
        assert!(last_tick > first_tick && last > first);
        if source() == TickSource::Monotonic {
            assert!(last_tick.abs_diff(last.as_nanos()) < 1_000_000);
        }
    }

    #[test]
    fn recently_is_not_long_ago() {
        source();
        let (before, _) = pair();
        let recent = recently();
        let (after, _) = pair();
        // The kernel ticks 100 times a second at least; a counter, some times a nanosecond.
        assert!(recent <= after && before.saturating_sub(recent) < 1_000_000_000);
    }

    #[test]
    fn the_source_is_what_the_kernel_says() {
        let current = std::fs::read_to_string(CLOCKSOURCE).unwrap_or_default();
        let expected = Some(current.trim()) == COUNTER_NAME;
        assert_eq!(source() == TickSource::Counter, expected);
        assert!(is_trusted());
    }
}
