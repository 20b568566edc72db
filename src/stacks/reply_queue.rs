//! The queue of task stacks captured for a dump.
//!
//! There is one queue per process, behind a lock that is held only to push a reply or to take all
//! of them. The condvar is notified once per batch, when all expected replies have arrived: a
//! notification is a system call, made by a worker of the service. Replies for a dump that has
//! ended are dropped.

use crate::base::sync::Mutex;
use std::sync::{Condvar, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use super::registry::PollGuard;
use super::waker::StackCapture;

/// Polls a future with a capturing waker if a dump requests its stack, and queues the captured
/// stacks.
///
/// `poll` should call the future's own `poll` through a pointer, so that it is not inlined.
#[cold]
#[inline(never)]
pub fn poll_capturing<F: ?Sized, T>(
    guard: &PollGuard,
    cx: &mut Context<'_>,
    future: std::pin::Pin<&mut F>,
    poll: fn(std::pin::Pin<&mut F>, &mut Context<'_>) -> Poll<T>,
) -> Poll<T> {
    let Some((dump, number)) = guard.take_request() else { return poll(future, cx) };
    let capture = StackCapture::new(cx.waker());
    let waker = capture.waker();
    let outcome = poll(future, &mut Context::from_waker(waker.get()));
    let captured = capture.into_captured();
    if outcome.is_pending() {
        guard.restore_previous_poll();
    }
    let completed = outcome.is_ready();
    REPLY_QUEUE.push(
        dump,
        TaskReply {
            number,
            completed,
            stacks: captured.stacks,
            more_stacks: captured.more_stacks,
            incomplete_stacks: captured.incomplete_stacks,
        },
    );
    outcome
}

/// The captured stacks of one task.
#[derive(Debug)]
pub(super) struct TaskReply {
    pub(super) number: u64,
    /// `true` if the task completed in the captured poll.
    pub(super) completed: bool,
    pub(super) stacks: Vec<Box<[u64]>>,
    pub(super) more_stacks: u32,
    pub(super) incomplete_stacks: u32,
}

/// The queue of replies and its condvar.
pub(super) struct ReplyQueue {
    pending: Mutex<PendingReplies>,
    ready: Condvar,
}

#[derive(Default)]
struct PendingReplies {
    /// Number of the dump that accepts replies; 0 for none.
    dump: u32,
    /// Number of replies at which the condvar is notified.
    expected: usize,
    replies: Vec<TaskReply>,
}

pub(super) static REPLY_QUEUE: ReplyQueue = ReplyQueue {
    pending: Mutex::new(PendingReplies { dump: 0, expected: 0, replies: Vec::new() }),
    ready: Condvar::new(),
};

impl ReplyQueue {
    fn lock(&self) -> MutexGuard<'_, PendingReplies> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn open(&self, dump: u32) {
        let mut pending = self.lock();
        pending.dump = dump;
        pending.replies.clear();
    }

    pub(super) fn close(&self) {
        *self.lock() = PendingReplies { dump: 0, expected: 0, replies: Vec::new() };
    }

    fn push(&self, dump: u32, reply: TaskReply) {
        let mut pending = self.lock();
        if pending.dump != dump {
            return;
        }
        pending.replies.push(reply);
        let is_complete = pending.replies.len() == pending.expected;
        drop(pending);
        if is_complete {
            self.ready.notify_one();
        }
    }

    /// Takes all replies, once there are `expected` of them or `timeout` has passed.
    pub(super) fn collect(&self, expected: usize, timeout: Duration) -> Vec<TaskReply> {
        let mut pending = self.lock();
        pending.expected = expected;
        let is_incomplete = |pile: &mut PendingReplies| pile.replies.len() < expected;
        let (mut pending, _) = self
            .ready
            .wait_timeout_while(pending, timeout, is_incomplete)
            .unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut pending.replies)
    }
}
