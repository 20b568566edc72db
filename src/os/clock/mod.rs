//! Clocks and timers: the CPU's cycle counter, CPU time of threads, and timers of the kernel.

#[cfg(target_os = "linux")]
pub mod cpu_timer;
pub mod cycle_clock;
#[cfg(target_os = "linux")]
pub mod timerfd;

#[cfg(not(target_os = "linux"))]
pub use super::unsupported::{cpu_timer, timerfd};
