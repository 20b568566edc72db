//! A waker that records the stack on which a future waits.
//!
//! A future that is not ready keeps a clone of the waker it was polled with. During that clone the
//! stack holds the whole call chain from the task to the leaf, and it is unwound there:
//!
//! ```text
//! poll with a CaptureWaker ─> async fn ─> async fn ─> leaf ─> Waker::clone ─> clone() below
//!                                                              unwind up to the poll, return a
//!                                                              clone of the *real* waker
//! ```
//!
//! The returned clone is the real waker's, in data and vtable, so nothing of this file outlives the
//! poll: no forwarding, no reference count, nothing that could delay a wake-up. Leaves that compare
//! wakers before cloning find an unknown vtable and clone.
//!
//! Unsafe code is needed because a waker is a vtable over a plain pointer. The safe
//! `std::task::Wake` needs an `Arc`, whose clones would remain in every leaf.
//!
//! **Limits**: a leaf that keeps no waker (`std::future::pending`) is not captured. Futures polled
//! with another waker inside of the task (`FuturesUnordered`) are not captured either, only the one
//! around them; wrap those one by one.

#![allow(unsafe_code, reason = "a waker without reference counts needs a raw function table")]

use std::marker::PhantomData;
use std::mem::ManuallyDrop;
use std::ptr;
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::{RawWaker, RawWakerVTable, Waker};

use crate::unwind::{self, MAX_FRAMES, WalkEnd};

/// Maximum number of stacks kept per poll; a `select!` over more leaves counts the rest.
const MAX_STACKS: usize = 8;

/// Maximum number of stacks unwound per poll, about 5 us each; the other leaves are counted. So a
/// dump delays the worker of a task with 50,000 leaves by at most 0.5 ms.
const MAX_WALKS: u32 = 64;

/// The stacks captured in one poll.
#[derive(Debug, Default)]
pub(super) struct CapturedStacks {
    /// Stacks, innermost frame first, without the function that polled.
    pub(super) stacks: Vec<Box<[u64]>>,
    /// Number of leaves without a kept stack.
    pub(super) more_stacks: u32,
    /// Number of stacks that could not be unwound, or not completely.
    pub(super) incomplete_stacks: u32,
    /// Number of stacks unwound.
    walk_count: u32,
}

/// The capture of one poll. It is a local variable of the function that polls, so its address
/// bounds the unwinding.
#[derive(Debug)]
pub(super) struct StackCapture<'a> {
    real: &'a Waker,
    captured: Mutex<CapturedStacks>,
}

impl<'a> StackCapture<'a> {
    /// Creates a capture around `real`, the waker that the future would be polled with.
    pub(super) fn new(real: &'a Waker) -> Self {
        Self { real, captured: Mutex::default() }
    }

    /// Returns the waker to poll with instead.
    pub(super) fn waker(&self) -> CaptureWaker<'_> {
        // SAFETY: the functions of TABLE require a pointer to a `StackCapture`, which this pointer
        // is for as long as this borrow lives. Several threads may call them at once, as for any
        // `Waker`: a `StackCapture` is Sync. Only `clone` could make a copy of the pointer that
        // outlives the borrow, and it returns another waker's pointer.
        let waker = unsafe { Waker::new(ptr::from_ref(self).cast(), &CAPTURE_VTABLE) };
        CaptureWaker { waker: ManuallyDrop::new(waker), _capture: PhantomData }
    }

    /// Returns the captured stacks.
    pub(super) fn into_captured(self) -> CapturedStacks {
        self.captured.into_inner().unwrap_or_else(PoisonError::into_inner)
    }

    fn lock(&self) -> MutexGuard<'_, CapturedStacks> {
        self.captured.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Captures the stack above the caller, which must be called by one of the functions of the
    /// vtable.
    #[inline(always)]
    fn record_stack(&self) {
        {
            let mut captured = self.lock();
            if captured.walk_count >= MAX_WALKS {
                captured.more_stacks = captured.more_stacks.saturating_add(1);
                return;
            }
            captured.walk_count += 1;
        }
        let mut frames = [0; MAX_FRAMES];
        // Skips the caller itself: the stack starts with the code that cloned the waker.
        let walk = unwind::unwind_up_to(ptr::from_ref(self).addr() as u64, 1, &mut frames);
        self.record_walk(
            walk.ok().map(|walk| (walk.end, frames.get(..walk.depth).unwrap_or_default())),
        );
    }

    /// Keeps the result of unwinding.
    fn record_walk(&self, walk: Option<(WalkEnd, &[u64])>) {
        let mut captured = self.lock();
        let Some((end, frames)) = walk else {
            captured.incomplete_stacks += 1;
            return;
        };
        // The outermost frame is the function that polled.
        let frames = match end {
            WalkEnd::Complete => frames.split_last().map_or(frames, |(_, inner)| inner),
            WalkEnd::CopyTooShort
            | WalkEnd::TooManyFrames
            | WalkEnd::NoUnwindInfo
            | WalkEnd::OtherStack => {
                captured.incomplete_stacks += 1;
                frames
            }
        };
        if captured.stacks.iter().any(|known| **known == *frames) {
            return;
        }
        if captured.stacks.len() < MAX_STACKS {
            captured.stacks.push(frames.into());
        } else {
            captured.more_stacks += 1;
        }
    }
}

/// A waker that captures the stack on which it is cloned. Lives as long as its [`StackCapture`] is
/// borrowed.
#[derive(Debug)]
pub(super) struct CaptureWaker<'a> {
    waker: ManuallyDrop<Waker>,
    _capture: PhantomData<&'a StackCapture<'a>>,
}

impl CaptureWaker<'_> {
    pub(super) fn get(&self) -> &Waker {
        &self.waker
    }
}

/// Returns `true` if `waker` is a [`CaptureWaker`].
pub(super) fn is_capturing(waker: &Waker) -> bool {
    ptr::eq(waker.vtable(), &CAPTURE_VTABLE)
}

static CAPTURE_VTABLE: RawWakerVTable = RawWakerVTable::new(clone, wake, wake_by_ref, drop_nothing);

/// # Safety
///
/// `data` must point to a `StackCapture`.
unsafe fn clone(data: *const ()) -> RawWaker {
    // SAFETY: the caller guarantees it.
    let capture = unsafe { &*data.cast::<StackCapture<'_>>() };
    capture.record_stack();
    // Taken apart instead of dropped: the receiver of the parts drops them.
    let real = ManuallyDrop::new(capture.real.clone());
    RawWaker::new(real.data(), real.vtable())
}

/// # Safety
///
/// `data` must point to a `StackCapture`.
unsafe fn wake(data: *const ()) {
    // SAFETY: the caller guarantees it.
    let capture = unsafe { &*data.cast::<StackCapture<'_>>() };
    capture.real.wake_by_ref();
}

/// Captures the stack too: a future that yields wakes itself here.
///
/// # Safety
///
/// `data` must point to a `StackCapture`.
unsafe fn wake_by_ref(data: *const ()) {
    // SAFETY: the caller guarantees it.
    let capture = unsafe { &*data.cast::<StackCapture<'_>>() };
    capture.record_stack();
    capture.real.wake_by_ref();
}

/// # Safety
///
/// None: nothing is released.
unsafe fn drop_nothing(_: *const ()) {}

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
    fn clone_is_the_real_waker_and_outlives_capture() {
        let (woken, real) = woken();
        let cloned = {
            let capture = StackCapture::new(&real);
            let waker = capture.waker();
            assert!(is_capturing(waker.get()));
            let cloned = waker.get().clone();
            assert!(!is_capturing(&cloned));
            assert_eq!(cloned.data(), real.data());
            cloned
        };
        assert_eq!(Arc::strong_count(&woken), 3);
        drop(real);
        cloned.wake();
        assert_eq!(woken.0.load(Ordering::Relaxed), 1);
        assert_eq!(Arc::strong_count(&woken), 1);
    }

    #[test]
    fn wake_by_ref_wakes_real_waker_without_holding_references() {
        let (woken, real) = woken();
        let capture = StackCapture::new(&real);
        capture.waker().get().wake_by_ref();
        capture.waker().get().wake_by_ref();
        assert_eq!(woken.0.load(Ordering::Relaxed), 2);
        assert_eq!(Arc::strong_count(&woken), 2);
        let captured = capture.into_captured();
        assert!(
            !captured.stacks.is_empty() || captured.incomplete_stacks > 0,
            "the yield is captured"
        );
    }

    #[test]
    fn leaves_beyond_walk_limit_are_counted() {
        let (_woken, real) = woken();
        let capture = StackCapture::new(&real);
        let count = if cfg!(miri) { 200 } else { 50_000 };
        let leaves: Vec<Waker> = (0..count).map(|_| capture.waker().get().clone()).collect();
        assert!(leaves.iter().all(|leaf| leaf.data() == real.data()));
        let captured = capture.into_captured();
        assert_eq!(captured.walk_count, MAX_WALKS);
        assert!(captured.more_stacks >= count - MAX_WALKS, "{}", captured.more_stacks);
    }

    #[test]
    fn capture_waker_can_be_cloned_by_several_threads() {
        let (woken, real) = woken();
        let capture = StackCapture::new(&real);
        let waker = capture.waker();
        thread::scope(|scope| {
            for _ in 0..3 {
                let waker = waker.get();
                scope.spawn(move || {
                    let cloned = waker.clone();
                    thread::yield_now();
                    cloned.wake();
                });
            }
        });
        assert_eq!(woken.0.load(Ordering::Relaxed), 3);
        assert_eq!(Arc::strong_count(&woken), 2);
    }
}
