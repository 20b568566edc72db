//! Readers of `/proc/self`: threads, memory, descriptors, mounts and CPU use of this process.

pub mod cores;
#[cfg(target_os = "linux")]
pub(crate) mod cpu_mask;
#[cfg(target_os = "linux")]
pub mod descriptors;
#[cfg(unix)]
pub mod mounts;
pub mod process;
#[cfg(target_os = "linux")]
pub mod procfs;
#[cfg(feature = "heap")]
pub mod resident;
#[cfg(target_os = "linux")]
pub mod stack_bounds;
pub mod thread;
#[cfg(target_os = "linux")]
pub mod thread_list;
#[cfg(target_os = "linux")]
pub mod thread_reader;
#[cfg(target_os = "linux")]
pub mod threads;

#[cfg(not(target_os = "linux"))]
pub use super::unsupported::{descriptors, procfs, thread_list, thread_reader, threads};
