//! Threads of marple: not profiled as the service's, and their allocations not counted.

use super::collectors;
use crate::base::side_thread::SideThread;
use crate::os;

/// Marks the current thread as one of marple until it ends.
pub(crate) fn enter() {
    os::own_thread::enter();
    collectors::heap::exclude_thread_permanently();
}

/// Creates the handle of a side thread called `name`.
pub(crate) fn side_thread(name: &'static str) -> SideThread {
    SideThread::new(name, enter)
}
