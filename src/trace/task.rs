//! What a wrapped future shows of itself in a trace: its polls, its making and its end.
//!
//! The wrapper itself is `crate::task`, since a wrapped future can be asked for its stack as well. Its state
//! here lies in the future, behind tokio's one allocation for the task; a poll costs a read of the clock
//! and a record of 16 bytes while a recording runs, beside the read that dumps take as well, and a relaxed load
//! while none does. In a program built
//! with `tokio_unstable` on a runtime with marple's hooks, no poll is recorded a second time; the hooks' poll
//! is given the task's name.

use std::mem::ManuallyDrop;

use super::hooks;
use super::recorder;
use super::thread;
use crate::model::{RawKind, TaskKey};
use crate::os::ticks;

/// What a wrapped future is in the trace. Its end is the task's end.
#[derive(Debug)]
pub(crate) struct Node {
    /// Number 0 once its end is told.
    task: TaskKey,
}

impl Node {
    /// Of a task with this number, called by this site.
    #[inline]
    pub(crate) fn new(site: u16, number: u64) -> Self {
        recorder::tasks_wrapped();
        let task = TaskKey { site, number };
        if !hooks::see_tasks() {
            thread::task(RawKind::Spawned, task);
        }
        Self { task }
    }

    /// The present, as well as it has to be known.
    #[inline]
    pub(crate) fn tick() -> u64 {
        if thread::is_recorded() { ticks::now() } else { ticks::recently() }
    }

    /// To be held during a poll, which begins at `tick`.
    #[inline]
    pub(crate) fn poll(&mut self, tick: u64) -> Option<Slice> {
        if hooks::see_tasks() && thread::name(self.task.site) {
            return None;
        }
        thread::begin(RawKind::WrappedPoll, self.task, tick);
        Some(Slice { task: self.task, start: tick })
    }

    /// The poll is over; the task goes on.
    #[inline]
    pub(crate) fn pause(slice: Option<Slice>) {
        if let Some(slice) = slice {
            // By hand, which the optimizer inlines: a guard that may unwind it calls.
            let Slice { task, start } = *ManuallyDrop::new(slice);
            thread::end_known(RawKind::WrappedPoll, task, start);
        }
    }

    /// The poll was the last: the task ends with it, at the same tick.
    #[inline]
    pub(crate) fn end(&mut self, slice: Option<Slice>) {
        if let Some(slice) = slice.filter(|_| !hooks::see_tasks()) {
            let Slice { task, start } = *ManuallyDrop::new(slice);
            thread::end_task(RawKind::WrappedPoll, task, start);
            self.task.number = 0;
        }
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
    start: u64,
}

impl Drop for Slice {
    #[cold]
    fn drop(&mut self) {
        thread::end_known(RawKind::WrappedPoll, self.task, self.start);
    }
}
