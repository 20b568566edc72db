//! A cheap clock for events that occur millions of times a second.
//!
//! On x86-64 the time-stamp counter and on aarch64 the virtual counter are read without a call, in
//! about 10 ns. `clock_gettime` takes three times as long, and the clock is most of the cost of a
//! recorded poll. A counter is used only if the kernel itself uses it as its clock source. The
//! kernel has then checked that the counter has a constant rate, continues during sleep and agrees
//! between cores. No CPU flag guarantees that, least of all in a virtual machine. Otherwise the
//! clock is `CLOCK_MONOTONIC`.
//!
//! Ticks are converted to times by comparing them with `CLOCK_MONOTONIC` from time to time
//! ([`tick_and_time`]).

#![allow(unsafe_code, reason = "instructions that read the counter")]

use std::fs::File;
use std::io::Read;
use std::sync::OnceLock;
use std::sync::atomic::{AtomicBool, Ordering};

use crate::base::{Clock, Moment, SystemClock};
use crate::os::proc::threads;

/// The clock that ticks are read from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum TickSource {
    /// The CPU's counter: TSC on x86-64, virtual counter on aarch64.
    Counter,
    /// `CLOCK_MONOTONIC`, in nanoseconds.
    Monotonic,
}

impl TickSource {
    /// Returns the name of the clock.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Counter if cfg!(target_arch = "aarch64") => "virtual counter",
            Self::Counter => "TSC",
            Self::Monotonic => "CLOCK_MONOTONIC",
        }
    }
}

/// File with the kernel's current clock source.
const CLOCKSOURCE: &str = "/sys/devices/system/clocksource/clocksource0/current_clocksource";

/// Name of the kernel's clock source that [`now`] can read; `None` under Miri.
const COUNTER_NAME: Option<&str> = if cfg!(miri) {
    None
} else if cfg!(target_arch = "x86_64") {
    Some("tsc")
} else if cfg!(target_arch = "aarch64") {
    Some("arch_sys_counter")
} else {
    None
};

static USE_COUNTER: AtomicBool = AtomicBool::new(false);

/// Returns the tick source of this process. The first call determines it and must precede the first
/// [`now`]: ticks of two sources are not comparable.
pub fn source() -> TickSource {
    static SOURCE: OnceLock<TickSource> = OnceLock::new();
    *SOURCE.get_or_init(|| {
        let trusted = kernel_uses_counter();
        USE_COUNTER.store(trusted, Ordering::Relaxed);
        if trusted { TickSource::Counter } else { TickSource::Monotonic }
    })
}

/// Returns `true` if ticks are still reliable. A kernel that finds the counter unreliable switches
/// to another clock source.
pub fn is_trusted() -> bool {
    source() == TickSource::Monotonic || kernel_uses_counter()
}

/// Returns the current tick. On one thread a later read is never smaller; between threads ticks
/// agree to within some ten nanoseconds.
#[inline]
pub fn now() -> u64 {
    if USE_COUNTER.load(Ordering::Relaxed) { read_counter() } else { SystemClock.now().as_nanos() }
}

/// Returns a recent tick. Without a counter it is the time of the kernel's last tick, which is
/// cheaper than the clock.
#[inline]
pub fn coarse_now() -> u64 {
    if USE_COUNTER.load(Ordering::Relaxed) {
        read_counter()
    } else {
        threads::coarse_now().as_nanos()
    }
}

/// Returns a tick and its time. Of several attempts the shortest is used, which excludes an
/// interruption between the two reads.
pub fn tick_and_time() -> (u64, Moment) {
    let attempts = (0..5).map(|_| {
        let before = now();
        let moment = SystemClock.now();
        let after = now();
        (after.saturating_sub(before), before + after.saturating_sub(before) / 2, moment)
    });
    attempts
        .min_by_key(|&(duration, ..)| duration)
        .map_or((0, Moment::default()), |(_, tick, at)| (tick, at))
}

/// Does not allocate: called at the end of a capture.
fn kernel_uses_counter() -> bool {
    let mut current = [0; 64];
    let read = File::open(CLOCKSOURCE).and_then(|mut file| file.read(&mut current));
    let current = read.ok().and_then(|read| current.get(..read)).map(<[u8]>::trim_ascii);
    current.is_some_and(|current| Some(current) == COUNTER_NAME.map(str::as_bytes))
}

#[cfg(target_arch = "x86_64")]
#[inline]
fn read_counter() -> u64 {
    // SAFETY: every x86-64 has the instruction. A process without access to it (PR_SET_TSC) could
    // not read the kernel's clock either: the vDSO uses the TSC if the clock source is "tsc".
    unsafe { std::arch::x86_64::_rdtsc() }
}

#[cfg(target_arch = "aarch64")]
#[inline]
fn read_counter() -> u64 {
    let ticks: u64;
    // SAFETY: reads a register that Linux makes readable in user space; touches no memory and no
    // flags.
    unsafe {
        std::arch::asm!("mrs {}, cntvct_el0", out(reg) ticks, options(nomem, nostack, preserves_flags));
    }
    ticks
}

#[cfg(not(any(target_arch = "x86_64", target_arch = "aarch64")))]
fn read_counter() -> u64 {
    SystemClock.now().as_nanos()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ticks_increase_and_convert_to_times() {
        source();
        let (first_tick, first) = tick_and_time();
        std::thread::sleep(std::time::Duration::from_millis(5));
        let (last_tick, last) = tick_and_time();
        assert!(last_tick > first_tick && last > first);
        if source() == TickSource::Monotonic {
            assert!(last_tick.abs_diff(last.as_nanos()) < 1_000_000);
        }
    }

    #[test]
    fn coarse_now_is_at_most_one_second_old() {
        source();
        let (before, _) = tick_and_time();
        let recent = coarse_now();
        let (after, _) = tick_and_time();
        // The kernel ticks at least 100 times a second; a counter ticks up to a few times a
        // nanosecond.
        assert!(recent <= after && before.saturating_sub(recent) < 1_000_000_000);
    }

    #[test]
    fn source_follows_kernel_clocksource() {
        let current = std::fs::read_to_string(CLOCKSOURCE).unwrap_or_default();
        let expected = Some(current.trim()) == COUNTER_NAME;
        assert_eq!(source() == TickSource::Counter, expected);
        assert!(is_trusted());
    }
}
