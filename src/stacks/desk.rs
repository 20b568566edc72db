//! Where tasks hand in what a poll showed, and the dump collects it.
//!
//! One pile for the process, under a lock that is held to push or to take the whole of it. The bell is rung
//! once a lot, when as many have answered as are waited for: ringing is a system call, and it is the
//! service's workers that would make it. What comes for a dump that is over is dropped.

use crate::base::sync::Mutex;
use std::sync::{Condvar, MutexGuard, PoisonError};
use std::task::{Context, Poll};
use std::time::Duration;

use super::registry::Turn;
use super::waker::Capture;

/// Polls through a capturing waker, by way of `poll`, what a dump asks about, and hands in what was seen.
///
/// `poll` should call the future's own `poll` through a pointer, so that it is not inlined into it.
#[cold]
#[inline(never)]
pub fn poll_seen<F: ?Sized, T>(
    turn: &Turn,
    cx: &mut Context<'_>,
    future: std::pin::Pin<&mut F>,
    poll: fn(std::pin::Pin<&mut F>, &mut Context<'_>) -> Poll<T>,
) -> Poll<T> {
    let Some((dump, number)) = turn.take_question() else { return poll(future, cx) };
    let capture = Capture::new(cx.waker());
    let waker = capture.waker();
    let outcome = poll(future, &mut Context::from_waker(waker.get()));
    let seen = capture.into_seen();
    if outcome.is_pending() {
        turn.disregard();
    }
    let ended = outcome.is_ready();
    DESK.hand_in(
        dump,
        Answer { number, ended, stacks: seen.stacks, more: seen.more, broken: seen.broken },
    );
    outcome
}

/// What a task said.
#[derive(Debug)]
pub(super) struct Answer {
    pub(super) number: u64,
    /// It came to its end in the poll it was asked by.
    pub(super) ended: bool,
    pub(super) stacks: Vec<Box<[u64]>>,
    pub(super) more: u32,
    pub(super) broken: u32,
}

/// Where answers are handed in.
pub(super) struct Desk {
    pile: Mutex<Pile>,
    bell: Condvar,
}

#[derive(Default)]
struct Pile {
    /// The dump that takes answers; 0 for none.
    dump: u32,
    /// The bell is rung at this many.
    wanted: usize,
    answers: Vec<Answer>,
}

pub(super) static DESK: Desk = Desk {
    pile: Mutex::new(Pile { dump: 0, wanted: 0, answers: Vec::new() }),
    bell: Condvar::new(),
};

impl Desk {
    fn pile(&self) -> MutexGuard<'_, Pile> {
        self.pile.lock().unwrap_or_else(PoisonError::into_inner)
    }

    pub(super) fn open(&self, dump: u32) {
        let mut pile = self.pile();
        pile.dump = dump;
        pile.answers.clear();
    }

    pub(super) fn close(&self) {
        *self.pile() = Pile { dump: 0, wanted: 0, answers: Vec::new() };
    }

    fn hand_in(&self, dump: u32, answer: Answer) {
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

    /// What was handed in, once that is `wanted` or `most` has passed.
    pub(super) fn collect(&self, wanted: usize, most: Duration) -> Vec<Answer> {
        let mut pile = self.pile();
        pile.wanted = wanted;
        let short = |pile: &mut Pile| pile.answers.len() < wanted;
        let (mut pile, _) =
            self.bell.wait_timeout_while(pile, most, short).unwrap_or_else(PoisonError::into_inner);
        std::mem::take(&mut pile.answers)
    }
}
