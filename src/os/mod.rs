//! What the operating system tells about the process and lets it do.

#[cfg(target_os = "linux")]
pub mod cgroup;
pub mod images;
#[cfg(target_os = "linux")]
mod kernel_file;
pub mod memory;
pub mod process;
#[cfg(target_os = "linux")]
pub mod procfs;
pub mod sigprof;
pub mod threads;
#[cfg(not(target_os = "linux"))]
mod unsupported;
pub mod unwind;
mod unwind_modules;
mod unwind_thread;

#[cfg(not(target_os = "linux"))]
pub use unsupported::{cgroup, procfs};
