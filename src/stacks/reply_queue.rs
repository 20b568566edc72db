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
pub fn poll_seen<F: ?Sized, T>(
    turn: &PollGuard,
    cx: &mut Context<'_>,
    future: std::pin::Pin<&mut F>,
    poll: fn(std::pin::Pin<&mut F>, &mut Context<'_>) -> Poll<T>,
) -> Poll<T> {
    let Some((dump, number)) = turn.take_question() else { return poll(future, cx) };
    let capture = StackCapture::new(cx.waker());
    let waker = capture.waker();
    let outcome = poll(future, &mut Context::from_waker(waker.get()));
    let seen = capture.into_seen();
    if outcome.is_pending() {
        turn.disregard();
    }
    let ended = outcome.is_ready();
    DESK.hand_in(
        dump,
        TaskReply { number, ended, stacks: seen.stacks, more: seen.more, broken: seen.broken },
    );
    outcome
}

/// The captured stacks of one task.
#[derive(Debug)]
pub(super) struct TaskReply {
    pub(super) number: u64,
    /// `true` if the task completed in the captured poll.
    pub(super) ended: bool,
    pub(super) stacks: Vec<Box<[u64]>>,
    pub(super) more: u32,
    pub(super) broken: u32,
}

/// The queue of replies and its condvar.
pub(super) struct ReplyQueue {
    pile: Mutex<ReplyPile>,
    bell: Condvar,
}

#[derive(Default)]
struct ReplyPile {
    /// Number of the dump that accepts replies; 0 for none.
    dump: u32,
    /// Number of replies at which the condvar is notified.
    wanted: usize,
    answers: Vec<TaskReply>,
}

pub(super) static DESK: ReplyQueue = ReplyQueue {
    pile: Mutex::new(ReplyPile { dump: 0, wanted: 0, answers: Vec::new() }),
    bell: Condvar::new(),
};

impl ReplyQueue {
    fn pile(&self) -> MutexGuard<'_, ReplyPile> {
        self.pile.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn open(&self, dump: u32) {
        let mut pile = self.pile();
        pile.dump = dump;
        pile.answers.clear();
    }

    pub(super) fn close(&self) {
        *self.pile() = ReplyPile { dump: 0, wanted: 0, answers: Vec::new() };
    }

    fn hand_in(&self, dump: u32, answer: TaskReply) {
        let mut pile = self.pile();
        if pile.dump != dump {
            return;
        }
        pile.answers.push(answer);
        let ring = pile.answers.len() == pile.wanted;
        drop(pile);
        if ring {
            self.bell.notify_one();
        }
    }

    /// Takes all replies, once there are `wanted` of them or `most` has passed.
    pub(super) fn collect(&self, wanted: usize, most: Duration) -> Vec<TaskReply> {
        let mut pile = self.pile();
        pile.wanted = wanted;
        let short = |pile: &mut ReplyPile| pile.answers.len() < wanted;
        let (mut pile, _) =
            self.bell.wait_timeout_while(pile, most, short).unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut pile.answers)
    }
}
