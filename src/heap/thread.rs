//! Per-thread state of the allocator: the sampling interval and the exclusion count.
//!
//! `const` and without a destructor, so that an access is one address computation and stays valid
//! while other thread-locals are destroyed, whose destructors allocate and free.

use std::cell::Cell;
use std::marker::PhantomData;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicI64, AtomicU64};
use std::time::{SystemTime, UNIX_EPOCH};

use super::sampler::{AllocatedDelta, AllocationSampler, EXACT_FLOOR, mix};

struct HeapThread {
    sampler: AllocationSampler,
    exclusions: Cell<u32>,
    /// Rest of the sampler's grant when the exclusion started.
    paused_budget: Cell<i64>,
}

thread_local! {
    static THREAD: HeapThread = const {
        HeapThread { sampler: AllocationSampler::new(), exclusions: Cell::new(0), paused_budget: Cell::new(0) }
    };
}

/// 0, or [`EXACT_FLOOR`] at rate 1. Every allocation reads it and only a change of rate writes it,
/// so it shares its cache lines with nothing that is written more often.
static FLOOR: SamplingFloor = SamplingFloor(AtomicI64::new(0));

#[repr(align(128))]
struct SamplingFloor(AtomicI64);

/// Makes every allocation of all threads take the slow path if the rate is 1.
pub(super) fn set_floor(rate: u64) {
    FLOOR.0.store(if rate == 1 { EXACT_FLOOR } else { 0 }, Relaxed);
}

/// Counts `size` bytes. Returns `true` if the block is not sampled. If `false`, the caller must
/// call `sample_block` or `undo_consume`.
#[inline]
pub(super) fn try_consume(size: usize) -> bool {
    let floor = FLOOR.0.load(Relaxed);
    THREAD.with(|thread| thread.sampler.try_consume(size, floor))
}

/// Reverts a `try_consume` that returned `false`.
pub(super) fn undo_consume(size: usize) {
    THREAD.with(|thread| thread.sampler.undo_consume(size));
}

/// Bytes requested and reported by all threads, except excluded ones.
static ALLOCATED: AtomicU64 = AtomicU64::new(0);
/// Bytes that threads may request before their next report. Includes threads that have ended: no
/// code of marple runs at the end of a thread, so its last bytes stay unreported. A bound that
/// covers only live threads would be too low.
static MAX_UNREPORTED: AtomicI64 = AtomicI64::new(0);
static SEEDED_THREADS: AtomicU64 = AtomicU64::new(0);

/// Returns the bytes requested since the program started, recorded or not, and the maximum of
/// unreported bytes: for each thread a quarter of its reported bytes, within 1 and 64 KiB. Neither
/// includes a block that is being allocated at this moment.
pub(super) fn allocated_bytes() -> (u64, u64) {
    // Read first: a thread adds its bytes before it lowers its unreported maximum.
    let max_unreported = MAX_UNREPORTED.load(Acquire);
    (ALLOCATED.load(Relaxed), u64::try_from(max_unreported).unwrap_or(0))
}

fn publish_delta(sampler: &AllocationSampler) {
    let AllocatedDelta { bytes, max_unreported } = sampler.take_delta();
    if bytes > 0 {
        ALLOCATED.fetch_add(bytes, Relaxed);
    }
    if max_unreported != 0 {
        MAX_UNREPORTED.fetch_add(max_unreported, Release);
    }
}

/// Decides on a block after `try_consume` returned `false`: returns its weight if it must be
/// recorded.
pub(super) fn sample_block(size: usize, rate: u64) -> Option<f64> {
    THREAD.with(|thread| {
        let sampler = &thread.sampler;
        if thread.exclusions.get() > 0 {
            sampler.allow_unsampled();
            return None;
        }
        if sampler.needs_seed() {
            sampler.seed(unique_seed(thread), rate);
            // The first interval starts before this block, so it also decides on this block.
            if sampler.try_consume(size, 0) {
                publish_delta(sampler);
                return None;
            }
        }
        let weight = sampler.sample(size, rate);
        publish_delta(sampler);
        weight
    })
}

/// Draws a new interval at this rate.
pub(super) fn redraw_interval(rate: u64) {
    THREAD.with(|thread| {
        if thread.exclusions.get() == 0 && !thread.sampler.needs_seed() {
            thread.sampler.redraw_interval(rate);
            publish_delta(&thread.sampler);
        }
    });
}

/// A guard that excludes its thread's allocations from heap profiles. Frees by the thread still
/// remove records. Guards nest.
#[must_use = "the exclusion ends when the guard is dropped"]
#[derive(Debug)]
pub struct ProfilerExclusion(PhantomData<*const ()>);

/// Excludes the calling thread from heap profiles while the guard lives. For threads that work for
/// the profiler, such as marple's own, whose blocks would distract the reader. `std::mem::forget`
/// on the guard excludes the thread permanently.
pub fn exclude_current_thread() -> ProfilerExclusion {
    THREAD.with(|thread| {
        let exclusions = thread.exclusions.get();
        if exclusions == 0 {
            thread.paused_budget.set(thread.sampler.pause());
        }
        thread.exclusions.set(exclusions.saturating_add(1));
    });
    ProfilerExclusion(PhantomData)
}

impl Drop for ProfilerExclusion {
    fn drop(&mut self) {
        THREAD.with(|thread| {
            let exclusions = thread.exclusions.get().saturating_sub(1);
            thread.exclusions.set(exclusions);
            if exclusions == 0 {
                thread.sampler.resume(thread.paused_budget.get());
            }
        });
    }
}

/// Returns a seed that is unique among threads and runs.
fn unique_seed(thread: &HeapThread) -> u64 {
    let number = SEEDED_THREADS.fetch_add(1, Relaxed);
    let address = (&raw const *thread) as u64;
    // Uses libc's clock: under valgrind the clock that bypasses libc reads an unmapped address.
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |time| time.as_nanos() as u64);
    mix(mix(number) ^ address.rotate_left(32) ^ now)
}
