//! At rate 1 the profile is exact, whatever threads do to each other's blocks.
//!
//! The inner allocator keeps its own account of the blocks in a range of sizes that only these tests
//! use, and the profile must agree with it to the byte.

// A counting allocator cannot be written without it.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::cell::RefCell;
use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::SeqCst};
use std::sync::{Mutex, mpsc};

use jiff::Timestamp;
use marple::base::Bytes;
use marple::heap;
use marple::model::{LabelValue, Profile};

/// What the tests allocate and nobody else does.
const WATCHED: Range<usize> = 100_000..200_000;

struct Counting;

static LIVE: AtomicI64 = AtomicI64::new(0);
static ALLOCATED: AtomicI64 = AtomicI64::new(0);
static BLOCKS: AtomicI64 = AtomicI64::new(0);
/// How many calls of `realloc` for watched sizes are refused.
static REFUSE: AtomicUsize = AtomicUsize::new(0);

fn count(block: *mut u8, size: usize, sign: i64) {
    if !block.is_null() && WATCHED.contains(&size) {
        LIVE.fetch_add(sign * size as i64, SeqCst);
        BLOCKS.fetch_add(sign, SeqCst);
        if sign > 0 {
            ALLOCATED.fetch_add(size as i64, SeqCst);
        }
    }
}

// SAFETY: the system's allocator, with a count beside it.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: passed on.
        let block = unsafe { System.alloc(layout) };
        count(block, layout.size(), 1);
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(block, layout.size(), -1);
        // SAFETY: passed on.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let refuse = |left: usize| left.checked_sub(1);
        if WATCHED.contains(&new_size) && REFUSE.fetch_update(SeqCst, SeqCst, refuse).is_ok() {
            return std::ptr::null_mut();
        }
        // SAFETY: passed on.
        let moved = unsafe { System.realloc(block, layout, new_size) };
        if !moved.is_null() {
            count(moved, layout.size(), -1);
            count(moved, new_size, 1);
        }
        moved
    }
}

#[global_allocator]
static ALLOCATOR: marple::Allocator<Counting> = marple::Allocator::new(Counting);

/// The process has one account; the tests take turns.
static TURN: Mutex<()> = Mutex::new(());

/// One of the four values, summed over samples of watched sizes.
fn watched(profile: &Profile, value: usize) -> i64 {
    let is_watched =
        |value| matches!(value, LabelValue::Number(n, _) if WATCHED.contains(&(n as usize)));
    profile
        .samples
        .iter()
        .filter(|sample| sample.labels.iter().any(|label| is_watched(label.value)))
        .map(|sample| sample.values[value])
        .sum()
}

/// A profile. What making it allocates is in no profile, and taken out of the account too.
fn snapshot() -> Profile {
    let allocated = ALLOCATED.load(SeqCst);
    let profile = heap::snapshot(Timestamp::now()).unwrap();
    ALLOCATED.store(allocated, SeqCst);
    profile
}

#[track_caller]
fn assert_exact() {
    let account = (BLOCKS.load(SeqCst), LIVE.load(SeqCst), ALLOCATED.load(SeqCst));
    let profile = snapshot();
    assert_eq!((watched(&profile, 2), watched(&profile, 3), watched(&profile, 1)), account);
    let dropped = profile.losses.iter().find(|loss| loss.cause.contains("dropped"));
    assert_eq!(dropped, None);
}

fn block(n: usize) -> Vec<u8> {
    Vec::with_capacity(WATCHED.start + n * 7919 % WATCHED.len())
}

#[test]
fn ten_blocks_of_240_kib_are_exact() {
    let _turn = TURN.lock().unwrap();
    heap::set_rate(Bytes(1));
    let size = 240 << 10;
    let at_240_kib = |profile: &Profile| -> Vec<i64> {
        let is_size = |value| matches!(value, LabelValue::Number(n, _) if n == size as i64);
        let of_size = profile
            .samples
            .iter()
            .filter(|sample| sample.labels.iter().any(|label| is_size(label.value)));
        of_size.fold(vec![0; 4], |sums, sample| {
            sums.iter().zip(&sample.values).map(|(a, b)| a + b).collect()
        })
    };
    let blocks: Vec<Vec<u8>> = (0..10).map(|_| Vec::with_capacity(size)).collect();
    let bytes = 10 * size as i64;
    let held = snapshot();
    drop(blocks);
    let freed = snapshot();
    assert_eq!(at_240_kib(&held), [10, bytes, 10, bytes]);
    assert_eq!(at_240_kib(&freed), [10, bytes, 0, 0]);
}

#[test]
fn threads_free_and_grow_each_others_blocks() {
    let _turn = TURN.lock().unwrap();
    heap::set_rate(Bytes(1));
    std::thread::scope(|scope| {
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..4).map(|_| mpsc::channel::<Vec<u8>>()).unzip();
        for (me, receiver) in receivers.into_iter().enumerate() {
            let to = senders[(me + 1) % 4].clone();
            scope.spawn(move || {
                let mut received = 0;
                for n in 0..2000 {
                    let _ = to.send(block(n * 4 + me));
                    while let Ok(mut theirs) = receiver.try_recv() {
                        received += 1;
                        match received % 4 {
                            0 => theirs.reserve_exact(WATCHED.start + n * 31 % 90_000),
                            1 => theirs.shrink_to(WATCHED.start / 2),
                            2 if received % 64 == 2 => std::mem::forget(theirs),
                            _ => {}
                        }
                    }
                }
            });
        }
        drop(senders);
    });
    assert_exact();
    assert!(BLOCKS.load(SeqCst) > 0, "some were kept");
}

#[test]
fn threads_that_allocate_and_free_while_they_end() {
    struct AtExit(Vec<Vec<u8>>);

    impl Drop for AtExit {
        fn drop(&mut self) {
            let mut kept = block(self.0.len());
            kept.push(1);
            std::mem::forget(kept);
            self.0.push(block(3));
        }
    }

    thread_local! {
        static EARLY: RefCell<AtExit> = const { RefCell::new(AtExit(Vec::new())) };
        static LATE: RefCell<AtExit> = const { RefCell::new(AtExit(Vec::new())) };
    }

    let _turn = TURN.lock().unwrap();
    heap::set_rate(Bytes(1));
    for round in 0..50 {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                std::thread::spawn(move || {
                    EARLY.with_borrow_mut(|at_exit| at_exit.0.push(block(round + thread)));
                    LATE.with_borrow_mut(|at_exit| at_exit.0.push(block(round * thread)));
                })
            })
            .collect();
        // A scope would not wait for the destructors.
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
    assert_exact();
}

#[test]
fn a_refused_realloc_leaves_the_block_in_the_profile() {
    let _turn = TURN.lock().unwrap();
    heap::set_rate(Bytes(1));
    let mut held = block(0);
    REFUSE.store(1, SeqCst);
    assert!(held.try_reserve_exact(WATCHED.end - 1).is_err());
    assert_eq!(REFUSE.load(SeqCst), 0);
    assert_exact();
    drop(held);
    assert_exact();
}

#[test]
fn what_an_excluded_thread_allocates_is_left_out_and_what_it_frees_is_taken_out() {
    let _turn = TURN.lock().unwrap();
    heap::set_rate(Bytes(1));
    let before = watched(&snapshot(), 3);
    let recorded = block(5);
    let excluded = heap::exclude_current_thread();
    let unseen = block(6);
    drop(recorded);
    let nested = heap::exclude_current_thread();
    drop(nested);
    let unseen_too = block(7);
    drop(excluded);
    let seen = block(8);
    let after = watched(&snapshot(), 3);
    assert_eq!(after - before, seen.capacity() as i64);
    // The profile never saw these; neither may the account.
    ALLOCATED.fetch_sub((unseen.capacity() + unseen_too.capacity()) as i64, SeqCst);
    drop((unseen, unseen_too));
    drop(seen);
    assert_exact();
}
