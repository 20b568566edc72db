//! Stack dumps of all tasks and all threads.
//!
//! - [`tasks`] captures the tasks that hold a [`TaskRegistration`] (those of [`crate::task`]), with
//!   a waker that records the stack on which it is cloned.
//! - [`threads`] captures the threads of the process with a signal. Its documentation lists the
//!   system calls that the signal interrupts.
//!
//! Both return rows, and addresses in a [`Profile`](crate::model::Profile), which `symbols`
//! symbolizes.

mod registry;
mod reply_queue;
mod slot;
pub mod tasks;
pub mod threads;
mod waker;

pub use registry::{PollGuard, TaskRegistration};
pub use reply_queue::poll_capturing;

use crate::os;

/// Errors of a dump.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The list of loaded files could not be read.
    #[error(transparent)]
    Images(#[from] os::images::Error),
    /// The list of threads could not be read.
    #[error(transparent)]
    Threads(#[from] os::proc::threads::Error),
}
