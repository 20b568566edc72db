//! Where everything stands: the stacks of all tasks and all threads, now.
//!
//! - [`tasks`] asks the tasks that carry a [`Ticket`] (those of [`crate::task`]), by a waker that shows
//!   where it is cloned.
//! - [`threads`] asks the threads of the process, by a signal, and lists the system calls it cuts short.
//!
//! Both give addresses in a [`Profile`](crate::model::Profile), to be named by `symbols`, and rows.

mod desk;
#[cfg(feature = "trace")]
pub(crate) mod polls;
mod registry;
mod slot;
pub mod tasks;
pub mod threads;
mod waker;

pub use desk::poll_seen;
pub use registry::{Ticket, Turn};

use crate::os;

/// Why there is no dump.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The loaded files are unknown.
    #[error(transparent)]
    Images(#[from] os::images::Error),
    /// The threads are unknown.
    #[error(transparent)]
    Threads(#[from] os::threads::Error),
}
