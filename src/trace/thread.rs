//! The few instructions between a poll and its record in the rings of its thread.
//!
//! ```text
//! begin   EPOCH (one relaxed load, the whole cost while off)
//!         thread-local: the rings      clock      an open slice, three stores
//! end     EPOCH, rings, clock          a 16-byte record, three stores; clear the open slice
//! ```
//!
//! No lock, no allocation, no system call. The exception is a thread's first record, which takes
//! the registry's lock to get rings.

use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use super::epoch::EPOCH;
use super::registry::{self, RingDenial};
use super::thread_rings::{OpenSliceTag, ThreadRings};
use crate::model::{OpenSlice, RawKind, RawTask, TaskKey};
use crate::os::clock::cycle_clock;

/// Number of records a thread without rings loses before it requests rings again.
const RING_RETRY_INTERVAL: u32 = 4096;

/// The same if the registry's lock was taken.
const BUSY_RETRY_INTERVAL: u32 = 4;

/// Number of records lost by threads without rings.
static DROPPED_WITHOUT_RING: AtomicU64 = AtomicU64::new(0);

thread_local! {
    static RINGS: Cell<Option<&'static ThreadRings>> = const { Cell::new(None) };
    /// Records lost since the last attempt to get rings; 0 allows another attempt.
    static LOST_SINCE_ATTEMPT: Cell<u32> = const { Cell::new(0) };
    static RING_GUARD: RingGuard = const { RingGuard };
}

/// Returns the thread's rings to the registry at thread exit.
struct RingGuard;

impl Drop for RingGuard {
    fn drop(&mut self) {
        if let Some(rings) = RINGS.take() {
            registry::release(rings);
        }
    }
}

/// Starts a slice on this thread at `tick`.
#[inline]
pub(crate) fn begin_slice(kind: RawKind, task: TaskKey, tick: u64) {
    let epoch = EPOCH.load(Ordering::Relaxed);
    if epoch != 0
        && let Some(rings) = current_rings()
    {
        rings.begin(epoch, OpenSliceTag::new(kind, task), tick);
    }
}

/// Ends the innermost slice on this thread. `kind` and `task` describe it; `task` is called only if
/// the slice started before the recording.
#[inline]
pub(crate) fn end_slice(kind: RawKind, task: impl FnOnce() -> TaskKey) {
    let epoch = EPOCH.load(Ordering::Relaxed);
    if epoch != 0
        && let Some(rings) = current_rings()
    {
        rings.end(epoch, || OpenSliceTag::new(kind, task()), cycle_clock::now());
    }
}

/// Ends the innermost slice on this thread, which `kind`, `task` and `start` describe. `start` is
/// not used if the slice started before the recording.
#[inline]
pub(crate) fn end_known_slice(kind: RawKind, task: TaskKey, start: u64) {
    let epoch = EPOCH.load(Ordering::Relaxed);
    if epoch != 0
        && let Some(rings) = current_rings()
    {
        rings.end_known(epoch, OpenSlice { kind, start, task }, cycle_clock::now());
    }
}

/// Ends the innermost slice as [`end_known_slice`] does, and the task that it polled.
#[inline]
pub(crate) fn end_slice_and_task(kind: RawKind, task: TaskKey, start: u64) {
    let epoch = EPOCH.load(Ordering::Relaxed);
    if epoch != 0
        && let Some(rings) = current_rings()
    {
        let now = cycle_clock::now();
        rings.end_known(epoch, OpenSlice { kind, start, task }, now);
        rings.tasks.push(RawTask::new(RawKind::Ended, now, task).0);
    }
}

/// Sets the site of the innermost hooked poll. Returns `false` if no such poll is open or it is
/// named already.
#[inline]
pub(crate) fn set_poll_site(site: u16) -> bool {
    let epoch = EPOCH.load(Ordering::Relaxed);
    epoch != 0 && current_rings().is_some_and(|rings| rings.set_poll_site(epoch, site))
}

/// Records a spawn or an end of a task. Ignores tasks without a number.
#[inline]
pub(crate) fn record_task_event(kind: RawKind, task: TaskKey) {
    if EPOCH.load(Ordering::Relaxed) != 0
        && task.number != 0
        && let Some(rings) = current_rings()
    {
        rings.tasks.push(RawTask::new(kind, cycle_clock::now(), task).0);
    }
}

/// Records the runtime that this thread is a worker of, and its worker index.
#[inline]
pub(crate) fn set_runtime(runtime: u64) {
    if EPOCH.load(Ordering::Relaxed) != 0
        && let Some(rings) = current_rings()
        && rings.runtime.load(Ordering::Relaxed) != runtime
    {
        rings.runtime.store(runtime, Ordering::Relaxed);
        let worker = tokio::runtime::worker_index().map_or(0, |index| index as u64 + 1);
        rings.worker.store(worker, Ordering::Relaxed);
    }
}

/// Returns the number of records lost by threads without rings.
pub(crate) fn dropped_without_ring() -> u64 {
    DROPPED_WITHOUT_RING.load(Ordering::Relaxed)
}

#[inline]
fn current_rings() -> Option<&'static ThreadRings> {
    match RINGS.get() {
        None => acquire_rings(),
        rings => rings,
    }
}

/// Gets rings for a thread that has none.
#[cold]
fn acquire_rings() -> Option<&'static ThreadRings> {
    let lost = LOST_SINCE_ATTEMPT.get();
    // A thread whose local storage has been destroyed cannot return rings.
    if lost == 0 && RING_GUARD.try_with(|_| ()).is_ok() {
        match registry::acquire() {
            Ok(rings) => {
                RINGS.set(Some(rings));
                return Some(rings);
            }
            Err(RingDenial::Busy) => {
                LOST_SINCE_ATTEMPT.set(RING_RETRY_INTERVAL - BUSY_RETRY_INTERVAL)
            }
            Err(RingDenial::NoMemory) => LOST_SINCE_ATTEMPT.set(1),
        }
    } else {
        LOST_SINCE_ATTEMPT.set((lost + 1) % RING_RETRY_INTERVAL);
    }
    DROPPED_WITHOUT_RING.fetch_add(1, Ordering::Relaxed);
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests;
