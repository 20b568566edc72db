//! Trace records of a wrapped future: its polls, its spawn and its end.
//!
//! The wrapper itself is in `crate::task`, because task dumps use it too. Its trace state is part
//! of the future, so it needs no allocation beyond tokio's one for the task. While recording, a
//! poll costs a clock read and a 16-byte record, in addition to the clock read that task dumps
//! need. While not recording, it costs a relaxed load. In a program built with `tokio_unstable`, on
//! a runtime with marple's hooks, polls are not recorded twice: the hooks' poll gets the task's
//! name.

use std::mem::ManuallyDrop;

use super::epoch::is_recording;
use super::sources;
use super::thread;
use crate::model::{RawKind, TaskKey};
use crate::os::clock::cycle_clock;

/// The trace state of a wrapped future. Dropping it ends the task.
#[derive(Debug)]
pub(crate) struct PollNode {
    /// Number 0 once the end is recorded.
    task: TaskKey,
}

impl PollNode {
    /// Records the spawn of a task with this site and number.
    #[inline]
    pub(crate) fn new(site: u16, number: u64) -> Self {
        sources::mark_tasks_wrapped();
        let task = TaskKey { site, number };
        if !sources::has_task_hooks() {
            thread::record_task_event(RawKind::Spawned, task);
        }
        Self { task }
    }

    /// Returns the current tick. It is exact only while polls are recorded.
    #[inline]
    pub(crate) fn tick() -> u64 {
        if is_recording() { cycle_clock::now() } else { cycle_clock::coarse_now() }
    }

    /// Starts a poll at `tick`. Returns its slice, or `None` if the hooks record the poll.
    #[inline]
    pub(crate) fn begin_poll(&mut self, tick: u64) -> Option<PollSlice> {
        if sources::has_task_hooks() && thread::set_poll_site(self.task.site) {
            return None;
        }
        thread::begin_slice(RawKind::WrappedPoll, self.task, tick);
        Some(PollSlice { task: self.task, start: tick })
    }

    /// Ends a poll that returned `Pending`.
    #[inline]
    pub(crate) fn end_pending_poll(slice: Option<PollSlice>) {
        if let Some(slice) = slice {
            // Ended by hand, which the optimizer inlines. A guard's `drop` that may run during
            // unwinding is not inlined.
            let PollSlice { task, start } = *ManuallyDrop::new(slice);
            thread::end_known_slice(RawKind::WrappedPoll, task, start);
        }
    }

    /// Ends the last poll and the task, at the same tick.
    #[inline]
    pub(crate) fn end_task(&mut self, slice: Option<PollSlice>) {
        if let Some(slice) = slice.filter(|_| !sources::has_task_hooks()) {
            let PollSlice { task, start } = *ManuallyDrop::new(slice);
            thread::end_slice_and_task(RawKind::WrappedPoll, task, start);
            self.task.number = 0;
        }
    }
}

impl Drop for PollNode {
    #[inline]
    fn drop(&mut self) {
        if !sources::has_task_hooks() {
            thread::record_task_event(RawKind::Ended, self.task);
        }
    }
}

/// A poll in progress. Dropping it ends the poll if the future panics.
pub(crate) struct PollSlice {
    task: TaskKey,
    start: u64,
}

impl Drop for PollSlice {
    #[cold]
    fn drop(&mut self) {
        thread::end_known_slice(RawKind::WrappedPoll, self.task, self.start);
    }
}
