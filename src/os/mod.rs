//! What the operating system tells about the process and lets it do.

#[cfg(target_os = "linux")]
pub mod cgroup;
#[cfg(target_os = "linux")]
mod kernel_file;
pub mod process;
#[cfg(target_os = "linux")]
pub mod procfs;
#[cfg(not(target_os = "linux"))]
mod unsupported;

#[cfg(not(target_os = "linux"))]
pub use unsupported::{cgroup, procfs};
