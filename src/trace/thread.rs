//! The rings of a thread, and the few instructions between a poll and its record.
//!
//! ```text
//! begin   EPOCH (one relaxed load, the whole cost while off)
//!         thread-local: the rings      clock      an open slice, three stores
//! end     EPOCH, rings, clock          a 16-byte record, three stores; clear the open slice
//! ```
//!
//! No lock, no allocation, no system call. The exception is a thread's first record, which takes
//! the registry's lock to get rings.
//!
//! Slices nest: a wrapped future can poll wrapped futures. The open ones form a stack of
//! [`MAX_DEPTH`]; deeper ones are counted and not recorded. A slice that began while nothing was
//! recorded has no open slice at its end. It is recorded as if it had started with the recording.
//! `EPOCH` identifies the recording, so a thread that was idle through the end of one and the start
//! of the next discards its open slices. The lowest bit of `EPOCH` wakes the stall detector
//! (`epoch`).

mod epoch;
mod epoch_word;

use crate::base::sync::Mutex;
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use super::registry::{self, RingDenial};
use super::ring::{EventRing, OpenSliceCell};
use crate::model::{OpenSlice, RawKind, RawSlice, RawTask, TaskKey};
use crate::os::clock::cycle_clock;
use epoch::WAKE_DETECTOR_BIT;

pub(crate) use epoch::{
    EPOCH, POLL_STARTED, RECORDING_START, arm_wakeup, disarm_wakeup, is_recording, is_wakeup_armed,
    set_recording,
};

/// Maximum nesting depth of slices.
const MAX_DEPTH: usize = 8;

/// Number of records a thread without rings loses before it requests rings again.
const RING_RETRY_INTERVAL: u32 = 4096;

/// The same if the registry's lock was taken.
const BUSY_RETRY_INTERVAL: u32 = 4;

/// Number of records lost by threads without rings.
static DROPPED_WITHOUT_RING: AtomicU64 = AtomicU64::new(0);

/// Memory of a ring.
pub(crate) type RingMemory = &'static [AtomicU64];

/// The rings and open slices that one thread at a time writes to.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct ThreadRings {
    pub(crate) slices: EventRing<RingMemory>,
    pub(crate) tasks: EventRing<RingMemory>,
    open: [OpenSliceCell; MAX_DEPTH],
    depth: AtomicU64,
    epoch: AtomicU64,
    /// Number of slices that were nested too deep.
    pub(crate) too_deep: AtomicU64,
    /// The runtime's number, counted from 1, and the worker's index plus one; 0 if unknown.
    pub(crate) runtime: AtomicU64,
    pub(crate) worker: AtomicU64,
    pub(crate) owner: Mutex<Option<registry::RingOwner>>,
}

/// Kind and task of an open slice, packed into one word.
#[derive(Clone, Copy)]
struct OpenSliceTag {
    kind: RawKind,
    /// `true` once a wrapper has named the hooked poll.
    named: bool,
    task: TaskKey,
}

impl OpenSliceTag {
    const fn pack(self) -> u64 {
        (self.task.number << 16)
            | ((self.task.site as u64) << 4)
            | ((self.named as u64) << 3)
            | self.kind as u64
    }

    const fn unpack(word: u64) -> Self {
        let kind = match word & 7 {
            1 => RawKind::Park,
            2 => RawKind::HookedPoll,
            _ => RawKind::WrappedPoll,
        };
        let site = (word >> 4) as u16 & 0xfff;
        Self { kind, named: word & 8 != 0, task: TaskKey { site, number: word >> 16 } }
    }
}

impl ThreadRings {
    pub(crate) fn new(slices: RingMemory, tasks: RingMemory) -> Self {
        Self {
            slices: EventRing::new(slices),
            tasks: EventRing::new(tasks),
            open: std::array::from_fn(|_| OpenSliceCell::new()),
            depth: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            too_deep: AtomicU64::new(0),
            runtime: AtomicU64::new(0),
            worker: AtomicU64::new(0),
            owner: Mutex::new(None),
        }
    }

    /// Returns the open slices, outermost first, as of some time during the call.
    pub(crate) fn open_slices(&self) -> Vec<OpenSlice> {
        let recording_start = RECORDING_START.load(Ordering::Relaxed);
        let open = self.open.iter().map_while(OpenSliceCell::read);
        // Slices that started earlier are left over from a recording that ended before they did.
        let current = open.filter(|&(start, _)| start >= recording_start);
        current
            .map(|(start, tag)| {
                let OpenSliceTag { kind, task, .. } = OpenSliceTag::unpack(tag);
                OpenSlice { kind, start, task }
            })
            .collect()
    }

    /// Clears all open slices.
    #[cold]
    pub(crate) fn clear_open_slices(&self) {
        for open in &self.open {
            open.end();
        }
        self.depth.store(0, Ordering::Relaxed);
    }

    #[inline]
    fn begin(&self, epoch: u64, tag: OpenSliceTag, tick: u64) {
        if self.epoch.load(Ordering::Relaxed) != epoch {
            return self.begin_first(epoch, tag, tick);
        }
        self.push_open(tag, tick);
    }

    /// Starts the first slice of a recording, or the first one since the wake-up was armed.
    #[cold]
    fn begin_first(&self, epoch: u64, tag: OpenSliceTag, tick: u64) {
        self.enter_recording(epoch);
        self.push_open(tag, tick);
        // A park is no stall, so it does not wake the stall detector. The slice must be visible
        // before the detector wakes.
        if epoch & WAKE_DETECTOR_BIT != 0 && tag.kind != RawKind::Park && disarm_wakeup() {
            POLL_STARTED.wake();
        }
    }

    /// Clears the open slices unless they belong to the recording `epoch`.
    fn enter_recording(&self, epoch: u64) {
        if !self.belongs_to(epoch) {
            self.clear_open_slices();
            self.epoch.store(epoch & !WAKE_DETECTOR_BIT, Ordering::Relaxed);
        }
    }

    /// Returns `true` if the open slices belong to the recording `epoch`.
    #[inline]
    fn belongs_to(&self, epoch: u64) -> bool {
        let own_epoch = self.epoch.load(Ordering::Relaxed);
        own_epoch == epoch || own_epoch == epoch & !WAKE_DETECTOR_BIT
    }

    #[inline]
    fn push_open(&self, tag: OpenSliceTag, tick: u64) {
        let depth = self.depth.load(Ordering::Relaxed);
        if let Some(open) = self.open.get(depth as usize) {
            open.begin(tick, tag.pack());
        }
        self.depth.store(depth + 1, Ordering::Relaxed);
    }

    #[inline]
    fn end(&self, epoch: u64, tag: impl FnOnce() -> OpenSliceTag, now: u64) {
        let depth = self.depth.load(Ordering::Relaxed);
        if depth == 0 || !self.belongs_to(epoch) {
            return self.end_preexisting(epoch, tag(), now);
        }
        self.depth.store(depth - 1, Ordering::Relaxed);
        let Some(open) = self.open.get(depth as usize - 1) else {
            self.too_deep.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let (start, tag) = open.end();
        let tag = OpenSliceTag::unpack(tag);
        self.slices.push(RawSlice::new(tag.kind, start, now, tag.task).0);
    }

    /// Ends the slice of `kind` and `task` that started at `start`, without reading the open slice.
    #[inline]
    fn end_known(&self, epoch: u64, (kind, task): (RawKind, TaskKey), start: u64, now: u64) {
        let depth = self.depth.load(Ordering::Relaxed);
        if depth == 0 || !self.belongs_to(epoch) {
            return self.end_preexisting(epoch, OpenSliceTag { kind, named: false, task }, now);
        }
        self.depth.store(depth - 1, Ordering::Relaxed);
        match self.open.get(depth as usize - 1) {
            Some(open) => {
                open.clear();
                self.slices.push(RawSlice::new(kind, start, now, task).0);
            }
            None => {
                self.too_deep.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Ends a slice that started before the recording.
    #[cold]
    fn end_preexisting(&self, epoch: u64, tag: OpenSliceTag, now: u64) {
        self.clear_open_slices();
        self.epoch.store(epoch & !WAKE_DETECTOR_BIT, Ordering::Relaxed);
        let recording_start = RECORDING_START.load(Ordering::Relaxed);
        self.slices.push(RawSlice::new(tag.kind, recording_start, now, tag.task).0);
    }

    /// Sets the site of the innermost slice to `site` if it is an unnamed hooked poll. Returns
    /// `true` if it was.
    #[inline]
    fn set_poll_site(&self, epoch: u64, site: u16) -> bool {
        let depth = self.depth.load(Ordering::Relaxed);
        if depth == 0 || !self.belongs_to(epoch) {
            return false;
        }
        let Some(open) = self.open.get(depth as usize - 1) else { return false };
        let Some((start, tag)) = open.read() else { return false };
        let mut tag = OpenSliceTag::unpack(tag);
        if tag.kind != RawKind::HookedPoll || tag.named {
            return false;
        }
        tag.named = true;
        tag.task.site = site;
        open.begin(start, tag.pack());
        true
    }
}

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
        rings.begin(epoch, OpenSliceTag { kind, named: false, task }, tick);
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
        rings.end(epoch, || OpenSliceTag { kind, named: false, task: task() }, cycle_clock::now());
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
        rings.end_known(epoch, (kind, task), start, cycle_clock::now());
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
        rings.end_known(epoch, (kind, task), start, now);
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
