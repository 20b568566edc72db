//! Safe wrappers over what the kernel offers to a process.

pub mod clock;
pub(crate) mod elf;
#[cfg(target_os = "linux")]
pub mod eventfd;
#[cfg(target_os = "linux")]
pub mod failed_call;
pub mod file_lock;
pub mod fork;
pub mod images;
#[cfg(all(feature = "jemalloc", target_os = "linux"))]
pub mod jemalloc;
#[cfg(target_os = "linux")]
pub(crate) mod kernel_file;
mod loaded_files;
pub mod mapped_memory;
pub(crate) mod mapped_segment;
pub(crate) mod own_memory;
pub(crate) mod own_stack;
#[cfg(target_os = "linux")]
pub mod own_thread;
#[cfg(target_os = "linux")]
pub mod perf;
#[cfg(target_os = "linux")]
pub mod perf_limits;
pub mod proc;
#[cfg(target_os = "linux")]
pub mod quota;
#[cfg(target_os = "linux")]
pub mod signal;
pub mod sigprof;
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "only Linux uses it"))]
pub mod stack_snapshot;
#[cfg(target_os = "linux")]
pub mod syscalls;
#[cfg(not(target_os = "linux"))]
mod unsupported;
pub(crate) mod unused_stack;

// A file of its own, because `tests/loom/signal_handlers.rs` compiles `stack_snapshot.rs` with
// loom's atomics, which work only inside a loom model.
#[cfg(test)]
mod stack_snapshot_tests;

#[cfg(not(target_os = "linux"))]
pub use unsupported::{eventfd, own_thread};
