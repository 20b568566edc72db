//! Interfaces to the operating system: `/proc`, cgroups, signals, timers, perf events and ELF
//! files.

#[cfg(target_os = "linux")]
pub mod alarm;
pub mod births;
#[cfg(target_os = "linux")]
pub mod cgroup;
#[cfg_attr(not(target_os = "linux"), allow(dead_code, reason = "only Linux fills it"))]
pub mod copied;
pub mod cores;
#[cfg(target_os = "linux")]
pub mod cpu_contention;
#[cfg(target_os = "linux")]
mod cpu_mask;
#[cfg(target_os = "linux")]
pub mod descriptors;
pub(crate) mod elf;
#[cfg(target_os = "linux")]
pub mod failed_call;
pub mod file_lock;
pub mod fork;
#[cfg(target_os = "linux")]
pub mod glance;
pub mod images;
#[cfg(all(feature = "jemalloc", target_os = "linux"))]
pub mod jemalloc;
#[cfg(target_os = "linux")]
mod kernel_file;
mod loaded_files;
pub mod memory;
#[cfg(unix)]
pub mod mounts;
pub(crate) mod own_memory;
pub(crate) mod own_stack;
#[cfg(target_os = "linux")]
pub mod own_thread;
#[cfg(target_os = "linux")]
pub mod perf;
pub mod process;
#[cfg(target_os = "linux")]
pub mod procfs;
#[cfg(target_os = "linux")]
pub mod quota;
#[cfg(feature = "heap")]
pub mod resident;
#[cfg(target_os = "linux")]
pub mod signal;
#[cfg(target_os = "linux")]
mod signal_bounds;
#[cfg(target_os = "linux")]
mod signal_context;
pub mod sigprof;
#[cfg(target_os = "linux")]
pub mod stack_bounds;
#[cfg(target_os = "linux")]
pub mod syscalls;
#[cfg(target_os = "linux")]
pub mod tasks;
#[cfg(target_os = "linux")]
pub mod threads;
pub mod ticks;
#[cfg(target_os = "linux")]
pub mod timer;
#[cfg(not(target_os = "linux"))]
mod unsupported;
#[cfg(target_os = "linux")]
pub mod wake;

// Separate from the module under test: `tests/os_loom.rs` compiles that file with atomics that work
// only in loom models.
#[cfg(test)]
mod copied_tests;

#[cfg(not(target_os = "linux"))]
pub use unsupported::{
    alarm, cgroup, cpu_contention, descriptors, glance, own_thread, procfs, tasks, threads, timer,
    wake,
};
