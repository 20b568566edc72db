//! Stubs of the Linux modules for other systems, with the same interface. Values that sysinfo
//! provides are returned, all others are `None`.

pub mod cpu_timer;
pub mod descriptors;
pub mod eventfd;
pub mod own_thread;
pub mod procfs;
pub mod thread_list;
pub mod thread_reader;
pub mod threads;
pub mod timerfd;
