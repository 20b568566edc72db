//! The waker that shows where a future waits.
//!
//! A future that is not ready keeps a clone of the waker it was polled with. Inside that clone the whole
//! chain of calls from the task down to the leaf stands on the stack, and there it is unwound:
//!
//! ```text
//! poll with a CaptureWaker ─> async fn ─> async fn ─> leaf ─> Waker::clone ─> clone() below
//!                                                              unwind up to the poll, hand out the
//!                                                              *real* waker's clone
//! ```
//!
//! The clone that is handed out is the real waker's, in data and table, so nothing of this file outlives
//! the poll: no forwarding, no reference count, nothing that could wake a task late. Leaves that compare
//! wakers before cloning see a table they do not know and clone.
//!
//! Unsafe code is needed because a table of functions over a plain pointer is what a waker is; the safe
//! `std::task::Wake` wants an `Arc`, whose clones would stay behind in every leaf.
//!
//! **What it cannot see**: a leaf that keeps no waker (`std::future::pending`), and futures that are polled
//! with a waker of their own making inside the task (`FuturesUnordered`), of which the outer one is seen;
//! wrap those one by one.

#![allow(unsafe_code)]

use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{RawWaker, RawWakerVTable, Waker};

use crate::unwind::{self, End, MAX_FRAMES};

/// The stacks kept of one poll: a `select!` over more leaves is counted.
const MAX_STACKS: usize = 8;

/// The stacks walked in one poll, some 5 us each: leaves beyond this are counted and not walked, so that a dump holds
/// the worker of a task with 50,000 leaves up for no longer than 0.5 ms.
const MAX_WALKS: u32 = 64;

/// What one poll showed.
#[derive(Debug, Default)]
pub(super) struct Seen {
    /// The stacks, innermost frame first, without the function that polled.
    pub(super) stacks: Vec<Box<[u64]>>,
    /// Leaves beyond those that are kept.
    pub(super) more: u32,
    /// Stacks that could not be walked, or not to their end.
    pub(super) broken: u32,
    /// How many were walked.
    walks: u32,
}

/// One poll to be seen. Stands in the frame of the function that polls, and so says where that is.
#[derive(Debug)]
pub(super) struct Capture<'a> {
    real: &'a Waker,
    seen: Mutex<Seen>,
}

impl<'a> Capture<'a> {
    /// Sees through `real`, the waker the future would be polled with.
    pub(super) fn new(real: &'a Waker) -> Self {
        Self { real, seen: Mutex::default() }
    }

    /// The waker to poll with instead.
    pub(super) fn waker(&self) -> CaptureWaker<'_> {
        // SAFETY: the functions of TABLE ask of the pointer that it leads to a `Capture`, which it does as
        // long as this borrow. They may be called by several threads at once, as a `Waker` may be: a
        // `Capture` is Sync. A copy of the pointer that outlives the borrow could only be made by `clone`,
        // which hands out another waker's.
        let waker = unsafe { Waker::new(ptr::from_ref(self).cast(), &TABLE) };
        CaptureWaker { waker: ManuallyDrop::new(waker), _capture: PhantomData }
    }

    /// What was seen.
    pub(super) fn into_seen(self) -> Seen {
        self.seen.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn seen(&self) -> MutexGuard<'_, Seen> {
        self.seen.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Keeps the stack above the caller, which is in turn the caller of one of the functions of the table.
    #[inline(always)]
    fn see(&self) {
        {
            let mut seen = self.seen();
            if seen.walks >= MAX_WALKS {
                seen.more = seen.more.saturating_add(1);
                return;
            }
            seen.walks += 1;
        }
        let mut frames = [0; MAX_FRAMES];
        // The caller itself is one of ours; the rest begins with whoever cloned.
        let walk = unwind::unwind_up_to(ptr::from_ref(self).addr() as u64, 1, &mut frames);
        self.keep(walk.ok().map(|walk| (walk.end, frames.get(..walk.depth).unwrap_or_default())));
    }

    /// Keeps the outcome of a walk.
    fn keep(&self, walk: Option<(End, &[u64])>) {
        let mut seen = self.seen();
        let Some((end, frames)) = walk else {
            seen.broken += 1;
            return;
        };
        // The outermost is the function that polled.
        let frames = match end {
            End::Whole => frames.split_last().map_or(frames, |(_, inner)| inner),
            End::Truncated | End::TooDeep | End::Broken | End::Elsewhere => {
                seen.broken += 1;
                frames
            }
        };
        if seen.stacks.iter().any(|known| **known == *frames) {
            return;
        }
        if seen.stacks.len() < MAX_STACKS {
            seen.stacks.push(frames.into());
        } else {
            seen.more += 1;
        }
    }
}

/// A waker that shows where it is cloned. Lives as long as its [`Capture`] is borrowed.
#[derive(Debug)]
pub(super) struct CaptureWaker<'a> {
    waker: ManuallyDrop<Waker>,
    _capture: PhantomData<&'a Capture<'a>>,
}

impl CaptureWaker<'_> {
    /// The waker.
    pub(super) fn get(&self) -> &Waker {
        &self.waker
    }
}

/// Whether `waker` is one of these.
pub(super) fn is_capturing(waker: &Waker) -> bool {
    ptr::eq(waker.vtable(), &TABLE)
}

static TABLE: RawWakerVTable = RawWakerVTable::new(clone, wake, wake_by_ref, forget);

/// # Safety
///
/// `data` must lead to a `Capture`.
unsafe fn clone(data: *const ()) -> RawWaker {
    // SAFETY: the caller's promise.
    let capture = unsafe { &*data.cast::<Capture<'_>>() };
    capture.see();
    // Taken apart instead of dropped: whoever gets the parts drops them.
    let real = ManuallyDrop::new(capture.real.clone());
    RawWaker::new(real.data(), real.vtable())
}

/// # Safety
///
/// `data` must lead to a `Capture`.
unsafe fn wake(data: *const ()) {
    // SAFETY: the caller's promise.
    let capture = unsafe { &*data.cast::<Capture<'_>>() };
    capture.real.wake_by_ref();
}

/// A future that wakes itself yields, and this is where.
///
/// # Safety
///
/// `data` must lead to a `Capture`.
unsafe fn wake_by_ref(data: *const ()) {
    // SAFETY: the caller's promise.
    let capture = unsafe { &*data.cast::<Capture<'_>>() };
    capture.see();
    capture.real.wake_by_ref();
}

/// # Safety
///
/// None: there is nothing to give back.
unsafe fn forget(_: *const ()) {}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};
    use std::task::Wake;
    use std::thread;

    use super::*;

    #[derive(Default)]
    struct Woken(AtomicUsize);

    impl Wake for Woken {
        fn wake(self: Arc<Self>) {
            self.0.fetch_add(1, Ordering::Relaxed);
        }
    }

    fn woken() -> (Arc<Woken>, Waker) {
        let woken = Arc::new(Woken::default());
        (Arc::clone(&woken), Waker::from(woken))
    }

    #[test]
    fn what_it_clones_is_the_real_waker_and_outlives_it() {
        let (woken, real) = woken();
        let kept = {
            let capture = Capture::new(&real);
            let waker = capture.waker();
            assert!(is_capturing(waker.get()));
            let kept = waker.get().clone();
            assert!(!is_capturing(&kept));
            assert_eq!(kept.data(), real.data());
            kept
        };
        assert_eq!(Arc::strong_count(&woken), 3);
        drop(real);
        kept.wake();
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert_eq!(Arc::strong_count(&woken), 1);
    }

    #[test]
    fn it_wakes_the_real_one_and_holds_nothing() {
        let (woken, real) = woken();
        let capture = Capture::new(&real);
        capture.waker().get().wake_by_ref();
        capture.waker().get().wake_by_ref();
        assert_eq!(woken.0.load(Ordering::Relaxed), 2);
        assert_eq!(Arc::strong_count(&woken), 2);
        let seen = capture.into_seen();
        assert!(!seen.stacks.is_empty() || seen.broken > 0, "yielding is seen");
    }

    #[test]
    fn leaves_beyond_those_that_are_walked_are_counted() {
        let (_woken, real) = woken();
        let capture = Capture::new(&real);
        let count = if cfg!(miri) { 200 } else { 50_000 };
        let leaves: Vec<Waker> = (0..count).map(|_| capture.waker().get().clone()).collect();
        assert!(leaves.iter().all(|leaf| leaf.data() == real.data()));
        let seen = capture.into_seen();
        assert_eq!(seen.walks, MAX_WALKS);
        assert!(seen.more >= count - MAX_WALKS, "{}", seen.more);
    }

    #[test]
    fn several_threads_may_clone_it_at_once() {
        let (woken, real) = woken();
        let capture = Capture::new(&real);
        let waker = capture.waker();
        thread::scope(|scope| {
            for _ in 0..3 {
                let waker = waker.get();
                scope.spawn(move || {
                    let kept = waker.clone();
                    thread::yield_now();
                    kept.wake();
                });
            }
        });
        assert_eq!(woken.0.load(Ordering::Relaxed), 3);
        assert_eq!(Arc::strong_count(&woken), 2);
    }
}
