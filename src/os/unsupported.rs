//! What stands in for the Linux modules elsewhere, of the same shape: what sysinfo tells, else
//! nothing.

pub mod alarm;
pub mod cgroup;
pub mod cpu_contention;
pub mod descriptors;
pub mod glance;
pub mod own_thread;
pub mod procfs;
pub mod tasks;
pub mod threads;
pub mod timer;
pub mod wake;
