//! What a wrapped future shows of itself in a trace: its polls, its making and its end.
//!
//! The wrapper itself is `crate::task`, since a wrapped future can be asked for its stack as well. Its state
//! here lies in the future, behind tokio's one allocation for the task; a poll costs two reads of the clock
//! and a record of 16 bytes while a recording runs, and a relaxed load while none does. In a program built
//! with `tokio_unstable` on a runtime with marple's hooks, no poll is recorded a second time; the hooks' poll
//! is given the task's name.

use std::panic::Location;

use super::hooks;
use super::recorder;
use super::sites::Site;
use super::thread;
use crate::model::{RawKind, TaskKey};

/// What a wrapped future is in the trace. Its end is the task's end.
#[derive(Debug)]
pub(crate) struct Node {
    /// Number 0 until it is first seen during a recording.
    task: TaskKey,
}

impl Node {
    /// Of a task called `name`, made at `place`.
    #[inline]
    pub(crate) fn new(name: Option<&'static str>, place: &'static Location<'static>) -> Self {
        recorder::tasks_wrapped();
        let site = Site { name, place };
        let task = TaskKey { site: site.number(), number: thread::number() };
        if !hooks::see_tasks() {
            thread::task(RawKind::Spawned, task);
        }
        Self { task }
    }

    /// To be held during a poll.
    #[inline]
    pub(crate) fn poll(&mut self) -> Option<Slice> {
        if hooks::see_tasks() && thread::name(self.task.site) {
            return None;
        }
        if self.task.number == 0 {
            self.task.number = thread::number();
        }
        thread::begin(RawKind::WrappedPoll, self.task);
        Some(Slice { task: self.task })
    }
}

impl Drop for Node {
    #[inline]
    fn drop(&mut self) {
        if !hooks::see_tasks() {
            thread::task(RawKind::Ended, self.task);
        }
    }
}

/// A poll under way. It ends also when the future panics.
pub(crate) struct Slice {
    task: TaskKey,
}

impl Drop for Slice {
    #[inline]
    fn drop(&mut self) {
        thread::end(RawKind::WrappedPoll, || self.task);
    }
}
