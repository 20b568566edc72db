//! An allocator that counts the blocks in a range of sizes that only these tests use. The heap
//! profile must match its counts to the byte.

#![allow(dead_code, reason = "each test binary uses a part of it")]
// `GlobalAlloc` needs it.
#![allow(unsafe_code)]

use std::alloc::{GlobalAlloc, Layout, System};
use std::ops::Range;
use std::sync::atomic::{AtomicI64, AtomicUsize, Ordering::SeqCst};

use jiff::Timestamp;
use marple::heap;
use marple::model::{LabelValue, Profile};

/// Block sizes that only the tests allocate.
pub(crate) const COUNTED_SIZES: Range<usize> = 100_000..200_000;

pub(crate) struct Counting;

pub(crate) static LIVE: AtomicI64 = AtomicI64::new(0);
pub(crate) static ALLOCATED: AtomicI64 = AtomicI64::new(0);
pub(crate) static BLOCKS: AtomicI64 = AtomicI64::new(0);
/// Number of `realloc` calls for watched sizes still to be refused.
pub(crate) static REALLOC_FAILURES: AtomicUsize = AtomicUsize::new(0);

fn count(block: *mut u8, size: usize, sign: i64) {
    if !block.is_null() && COUNTED_SIZES.contains(&size) {
        LIVE.fetch_add(sign * size as i64, SeqCst);
        BLOCKS.fetch_add(sign, SeqCst);
        if sign > 0 {
            ALLOCATED.fetch_add(size as i64, SeqCst);
        }
    }
}

// SAFETY: forwards to the system allocator and only counts.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        // SAFETY: forwarded under the caller's contract.
        let block = unsafe { System.alloc(layout) };
        count(block, layout.size(), 1);
        block
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        count(block, layout.size(), -1);
        // SAFETY: forwarded under the caller's contract.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, new_size: usize) -> *mut u8 {
        let refuse = |left: usize| left.checked_sub(1);
        if COUNTED_SIZES.contains(&new_size)
            && REALLOC_FAILURES.fetch_update(SeqCst, SeqCst, refuse).is_ok()
        {
            return std::ptr::null_mut();
        }
        // SAFETY: forwarded under the caller's contract.
        let moved = unsafe { System.realloc(block, layout, new_size) };
        if !moved.is_null() {
            count(moved, layout.size(), -1);
            count(moved, new_size, 1);
        }
        moved
    }
}

/// Returns one of the four values of a profile, summed over samples of watched sizes.
pub(crate) fn sum_of_counted_sizes(profile: &Profile, value: usize) -> i64 {
    let is_watched =
        |value| matches!(value, LabelValue::Number(n, _) if COUNTED_SIZES.contains(&(n as usize)));
    profile
        .samples
        .iter()
        .filter(|sample| sample.labels.iter().any(|label| is_watched(label.value)))
        .map(|sample| sample.values[value])
        .sum()
}

/// Takes a heap profile. Its own allocations appear in no profile and are subtracted from the
/// count.
pub(crate) fn snapshot() -> Profile {
    let allocated = ALLOCATED.load(SeqCst);
    let profile = heap::snapshot(Timestamp::now()).unwrap();
    ALLOCATED.store(allocated, SeqCst);
    profile
}

#[track_caller]
pub(crate) fn assert_exact() {
    let account = (BLOCKS.load(SeqCst), LIVE.load(SeqCst), ALLOCATED.load(SeqCst));
    let profile = snapshot();
    let (blocks, live, ever) = account;
    println!(
        "the account: {blocks} blocks, {live} bytes in use, {ever} ever; the profile must agree"
    );
    assert_eq!(
        (
            sum_of_counted_sizes(&profile, 2),
            sum_of_counted_sizes(&profile, 3),
            sum_of_counted_sizes(&profile, 1)
        ),
        account
    );
    let dropped = profile.losses.iter().find(|loss| loss.cause.contains("dropped"));
    assert_eq!(dropped, None);
}

pub(crate) fn block(n: usize) -> Vec<u8> {
    Vec::with_capacity(COUNTED_SIZES.start + n * 7919 % COUNTED_SIZES.len())
}
