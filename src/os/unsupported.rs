//! Stubs of the Linux modules for other systems, with the same interface. Values that sysinfo
//! provides are returned, all others are `None`.

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
