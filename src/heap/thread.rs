//! What the allocator keeps for each thread: its wait, and whether it is excluded.
//!
//! `const` and without destructor, so that an access is one address computation and stays legal while
//! other thread-locals are destroyed, where destructors allocate and free.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::{SystemTime, UNIX_EPOCH};

use super::sampler::{EXACT_FLOOR, Passed, Sampler, mix};

struct Thread {
    sampler: Sampler,
    excluded: Cell<u32>,
    /// What was left of the wait when the exclusion began.
    left: Cell<i64>,
}

thread_local! {
    static THREAD: Thread = const {
        Thread { sampler: Sampler::new(), excluded: Cell::new(0), left: Cell::new(0) }
    };
}

/// 0, or [`EXACT_FLOOR`] at rate 1. Every allocation reads it and a change of rate writes it, so nothing that
/// is written more often shares its cache lines.
static FLOOR: Floor = Floor(AtomicI64::new(0));

#[repr(align(128))]
struct Floor(AtomicI64);

/// Has all threads look up at each allocation, if the rate is 1.
pub(super) fn set_floor(rate: u64) {
    FLOOR.0.store(if rate == 1 { EXACT_FLOOR } else { 0 }, Relaxed);
}

/// Counts `size` bytes; whether they need no further thought. If they do, `decide` or `give_back` follows.
#[inline]
pub(super) fn spend(size: usize) -> bool {
    let floor = FLOOR.0.load(Relaxed);
    THREAD.with(|thread| thread.sampler.spend(size, floor))
}

/// Takes a refused `spend` back.
pub(super) fn give_back(size: usize) {
    THREAD.with(|thread| thread.sampler.give_back(size));
}

/// Every byte threads have asked for and told of, excluded ones left out.
static ALLOCATED: AtomicU64 = AtomicU64::new(0);
/// What they may ask for before they tell the next time. Of threads that have ended, too: nothing of ours runs
/// at a thread's end, so what it did not tell before is never learned, and a bound by the threads that live
/// would be too low.
static UNTOLD: AtomicI64 = AtomicI64::new(0);
static THREADS: AtomicU64 = AtomicU64::new(0);

/// The bytes asked for since the program began, recorded or not, and how many more there may be at the
/// most: for each thread a quarter of what it has told of, but between 1 and 64 KiB. Of a block that is
/// being allocated at this moment neither tells.
pub(super) fn allocated() -> (u64, u64) {
    // First: a thread tells of bytes before it says that it has fewer left to tell of.
    let untold = UNTOLD.load(Acquire);
    (ALLOCATED.load(Relaxed), u64::try_from(untold).unwrap_or(0))
}

fn tell(sampler: &Sampler) {
    let Passed { bytes, granted } = sampler.tell();
    if bytes > 0 {
        ALLOCATED.fetch_add(bytes, Relaxed);
    }
    if granted != 0 {
        UNTOLD.fetch_add(granted, Release);
    }
}

/// After a refused `spend`: the weight of the block, if it is to be recorded.
pub(super) fn decide(size: usize, rate: u64) -> Option<f64> {
    THREAD.with(|thread| {
        let sampler = &thread.sampler;
        if thread.excluded.get() > 0 {
            sampler.let_pass();
            return None;
        }
        if sampler.is_new() {
            sampler.seed(entropy(thread), rate);
            // The block at hand is decided by the first wait, which begins before it.
            if sampler.spend(size, 0) {
                tell(sampler);
                return None;
            }
        }
        let weight = sampler.decide(size, rate);
        tell(sampler);
        weight
    })
}

/// Begins a wait at this rate.
pub(super) fn restart(rate: u64) {
    THREAD.with(|thread| {
        if thread.excluded.get() == 0 && !thread.sampler.is_new() {
            thread.sampler.restart(rate);
            tell(&thread.sampler);
        }
    });
}

/// While it lives, the thread that made it has none of its allocations recorded; its frees still take
/// out what others recorded. Guards nest.
#[must_use = "the exclusion ends when the guard is dropped"]
#[derive(Debug)]
pub struct Exclusion(PhantomData<*const ()>);

/// Excludes the calling thread from heap profiles while the guard lives. For threads that work for the
/// profile, whose blocks would only be in the reader's way: marple's own do it. `std::mem::forget` the
/// guard to exclude the thread for good.
pub fn exclude_current_thread() -> Exclusion {
    THREAD.with(|thread| {
        let excluded = thread.excluded.get();
        if excluded == 0 {
            thread.left.set(thread.sampler.pause());
        }
        thread.excluded.set(excluded.saturating_add(1));
    });
    Exclusion(PhantomData)
}

impl Drop for Exclusion {
    fn drop(&mut self) {
        THREAD.with(|thread| {
            let excluded = thread.excluded.get().saturating_sub(1);
            thread.excluded.set(excluded);
            if excluded == 0 {
                thread.sampler.resume(thread.left.get());
            }
        });
    }
}

/// A seed no other thread has, and no other run.
fn entropy(thread: &Thread) -> u64 {
    let number = THREADS.fetch_add(1, Relaxed);
    let place = (&raw const *thread) as u64;
    // By libc's clock: under valgrind the one that does without libc is an address that is not there.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
    mix(mix(number) ^ place.rotate_left(32) ^ now)
}
