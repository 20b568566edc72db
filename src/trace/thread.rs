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
//! Slices nest: a wrapped future can poll wrapped futures. The open ones form a stack of [`DEPTH`];
//! deeper ones are counted and not recorded. A slice that began while nothing was recorded has no
//! open slice at its end. It is recorded as if it had started with the recording. `EPOCH`
//! identifies the recording, so a thread that was idle through the end of one and the start of the
//! next discards its open slices. The lowest bit of `EPOCH` wakes the stall detector (`epoch`).

mod epoch;
mod epoch_word;

use crate::base::sync::Mutex;
use std::cell::Cell;
use std::sync::atomic::{AtomicU64, Ordering};

use super::registry::{self, RingDenial};
use super::ring::{EventRing, Open};
use crate::model::{OpenSlice, RawKind, RawSlice, RawTask, TaskKey};
use crate::os::clock::cycle_clock;
use epoch::RESTS;

pub(crate) use epoch::{BEGAN, EPOCH, SINCE, is_recorded, record, rest, rests, stir};

/// Maximum nesting depth of slices.
const DEPTH: usize = 8;

/// Number of records a thread without rings loses before it requests rings again.
const PATIENCE: u32 = 4096;

/// The same if the registry's lock was taken.
const BUSY_PATIENCE: u32 = 4;

/// Number of records lost by threads without rings.
static ASTRAY: AtomicU64 = AtomicU64::new(0);

/// Memory of a ring.
pub(crate) type Memory = &'static [AtomicU64];

/// The rings and open slices that one thread at a time writes to.
#[derive(Debug)]
#[repr(align(128))]
pub(crate) struct ThreadRings {
    pub(crate) slices: EventRing<Memory>,
    pub(crate) tasks: EventRing<Memory>,
    open: [Open; DEPTH],
    depth: AtomicU64,
    epoch: AtomicU64,
    /// Number of slices that were nested too deep.
    pub(crate) too_deep: AtomicU64,
    /// The runtime's number, counted from 1, and the worker's index plus one; 0 if unknown.
    pub(crate) runtime: AtomicU64,
    pub(crate) worker: AtomicU64,
    pub(crate) tenancy: Mutex<Option<registry::RingOwner>>,
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
    pub(crate) fn new(slices: Memory, tasks: Memory) -> Self {
        Self {
            slices: EventRing::new(slices),
            tasks: EventRing::new(tasks),
            open: std::array::from_fn(|_| Open::new()),
            depth: AtomicU64::new(0),
            epoch: AtomicU64::new(0),
            too_deep: AtomicU64::new(0),
            runtime: AtomicU64::new(0),
            worker: AtomicU64::new(0),
            tenancy: Mutex::new(None),
        }
    }

    /// Returns the open slices, outermost first, as of some time during the call.
    pub(crate) fn open(&self) -> Vec<OpenSlice> {
        let since = SINCE.load(Ordering::Relaxed);
        let open = self.open.iter().map_while(Open::read);
        // Slices that started earlier are left over from a recording that ended before they did.
        let current = open.filter(|&(start, _)| start >= since);
        current
            .map(|(start, what)| {
                let OpenSliceTag { kind, task, .. } = OpenSliceTag::unpack(what);
                OpenSlice { kind, start, task }
            })
            .collect()
    }

    /// Clears all open slices.
    #[cold]
    pub(crate) fn close(&self) {
        for open in &self.open {
            open.end();
        }
        self.depth.store(0, Ordering::Relaxed);
    }

    #[inline]
    fn begin(&self, epoch: u64, what: OpenSliceTag, tick: u64) {
        if self.epoch.load(Ordering::Relaxed) != epoch {
            return self.begin_anew(epoch, what, tick);
        }
        self.open_one(what, tick);
    }

    /// Starts the first slice of a recording, or the first one since the wake-up was armed.
    #[cold]
    fn begin_anew(&self, epoch: u64, what: OpenSliceTag, tick: u64) {
        self.turn_to(epoch);
        self.open_one(what, tick);
        // A park is no stall, so it does not wake the stall detector. The slice must be visible
        // before the detector wakes.
        if epoch & RESTS != 0 && what.kind != RawKind::Park && stir() {
            BEGAN.wake();
        }
    }

    /// Clears the open slices unless they belong to the recording `epoch`.
    fn turn_to(&self, epoch: u64) {
        if !self.is_of(epoch) {
            self.close();
            self.epoch.store(epoch & !RESTS, Ordering::Relaxed);
        }
    }

    /// Returns `true` if the open slices belong to the recording `epoch`.
    #[inline]
    fn is_of(&self, epoch: u64) -> bool {
        let own = self.epoch.load(Ordering::Relaxed);
        own == epoch || own == epoch & !RESTS
    }

    #[inline]
    fn open_one(&self, what: OpenSliceTag, tick: u64) {
        let depth = self.depth.load(Ordering::Relaxed);
        if let Some(open) = self.open.get(depth as usize) {
            open.begin(tick, what.pack());
        }
        self.depth.store(depth + 1, Ordering::Relaxed);
    }

    #[inline]
    fn end(&self, epoch: u64, what: impl FnOnce() -> OpenSliceTag, now: u64) {
        let depth = self.depth.load(Ordering::Relaxed);
        if depth == 0 || !self.is_of(epoch) {
            return self.end_older(epoch, what(), now);
        }
        self.depth.store(depth - 1, Ordering::Relaxed);
        let Some(open) = self.open.get(depth as usize - 1) else {
            self.too_deep.fetch_add(1, Ordering::Relaxed);
            return;
        };
        let (start, what) = open.end();
        let what = OpenSliceTag::unpack(what);
        self.slices.push(RawSlice::new(what.kind, start, now, what.task).0);
    }

    /// Ends the slice of `kind` and `task` that started at `start`, without reading the open slice.
    #[inline]
    fn end_known(&self, epoch: u64, (kind, task): (RawKind, TaskKey), start: u64, now: u64) {
        let depth = self.depth.load(Ordering::Relaxed);
        if depth == 0 || !self.is_of(epoch) {
            return self.end_older(epoch, OpenSliceTag { kind, named: false, task }, now);
        }
        self.depth.store(depth - 1, Ordering::Relaxed);
        match self.open.get(depth as usize - 1) {
            Some(open) => {
                open.forget();
                self.slices.push(RawSlice::new(kind, start, now, task).0);
            }
            None => {
                self.too_deep.fetch_add(1, Ordering::Relaxed);
            }
        }
    }

    /// Ends a slice that started before the recording.
    #[cold]
    fn end_older(&self, epoch: u64, what: OpenSliceTag, now: u64) {
        self.close();
        self.epoch.store(epoch & !RESTS, Ordering::Relaxed);
        let since = SINCE.load(Ordering::Relaxed);
        self.slices.push(RawSlice::new(what.kind, since, now, what.task).0);
    }

    /// Sets the site of the innermost slice to `site` if it is an unnamed hooked poll. Returns
    /// `true` if it was.
    #[inline]
    fn name(&self, epoch: u64, site: u16) -> bool {
        let depth = self.depth.load(Ordering::Relaxed);
        if depth == 0 || !self.is_of(epoch) {
            return false;
        }
        let Some(open) = self.open.get(depth as usize - 1) else { return false };
        let Some((start, what)) = open.read() else { return false };
        let mut what = OpenSliceTag::unpack(what);
        if what.kind != RawKind::HookedPoll || what.named {
            return false;
        }
        what.named = true;
        what.task.site = site;
        open.begin(start, what.pack());
        true
    }
}

thread_local! {
    static HERE: Cell<Option<&'static ThreadRings>> = const { Cell::new(None) };
    /// Records lost since the last attempt to get rings; 0 allows another attempt.
    static DENIED: Cell<u32> = const { Cell::new(0) };
    static LEASE: RingGuard = const { RingGuard };
}

/// Returns the thread's rings to the registry at thread exit.
struct RingGuard;

impl Drop for RingGuard {
    fn drop(&mut self) {
        if let Some(rings) = HERE.take() {
            registry::give_back(rings);
        }
    }
}

/// Starts a slice on this thread at `tick`.
#[inline]
pub(crate) fn begin(kind: RawKind, task: TaskKey, tick: u64) {
    let epoch = EPOCH.load(Ordering::Relaxed);
    if epoch != 0
        && let Some(rings) = here()
    {
        rings.begin(epoch, OpenSliceTag { kind, named: false, task }, tick);
    }
}

/// Ends the innermost slice on this thread. `kind` and `task` describe it; `task` is called only if
/// the slice started before the recording.
#[inline]
pub(crate) fn end(kind: RawKind, task: impl FnOnce() -> TaskKey) {
    let epoch = EPOCH.load(Ordering::Relaxed);
    if epoch != 0
        && let Some(rings) = here()
    {
        rings.end(epoch, || OpenSliceTag { kind, named: false, task: task() }, cycle_clock::now());
    }
}

/// Ends the innermost slice on this thread, which `kind`, `task` and `start` describe. `start` is
/// not used if the slice started before the recording.
#[inline]
pub(crate) fn end_known(kind: RawKind, task: TaskKey, start: u64) {
    let epoch = EPOCH.load(Ordering::Relaxed);
    if epoch != 0
        && let Some(rings) = here()
    {
        rings.end_known(epoch, (kind, task), start, cycle_clock::now());
    }
}

/// Ends the innermost slice as [`end_known`] does, and the task that it polled.
#[inline]
pub(crate) fn end_task(kind: RawKind, task: TaskKey, start: u64) {
    let epoch = EPOCH.load(Ordering::Relaxed);
    if epoch != 0
        && let Some(rings) = here()
    {
        let now = cycle_clock::now();
        rings.end_known(epoch, (kind, task), start, now);
        rings.tasks.push(RawTask::new(RawKind::Ended, now, task).0);
    }
}

/// Sets the site of the innermost hooked poll. Returns `false` if no such poll is open or it is
/// named already.
#[inline]
pub(crate) fn name(site: u16) -> bool {
    let epoch = EPOCH.load(Ordering::Relaxed);
    epoch != 0 && here().is_some_and(|rings| rings.name(epoch, site))
}

/// Records a spawn or an end of a task. Ignores tasks without a number.
#[inline]
pub(crate) fn task(kind: RawKind, task: TaskKey) {
    if EPOCH.load(Ordering::Relaxed) != 0
        && task.number != 0
        && let Some(rings) = here()
    {
        rings.tasks.push(RawTask::new(kind, cycle_clock::now(), task).0);
    }
}

/// Records the runtime that this thread is a worker of, and its worker index.
#[inline]
pub(crate) fn works_for(runtime: u64) {
    if EPOCH.load(Ordering::Relaxed) != 0
        && let Some(rings) = here()
        && rings.runtime.load(Ordering::Relaxed) != runtime
    {
        rings.runtime.store(runtime, Ordering::Relaxed);
        let worker = tokio::runtime::worker_index().map_or(0, |index| index as u64 + 1);
        rings.worker.store(worker, Ordering::Relaxed);
    }
}

/// Returns the number of records lost by threads without rings.
pub(crate) fn astray() -> u64 {
    ASTRAY.load(Ordering::Relaxed)
}

#[inline]
fn here() -> Option<&'static ThreadRings> {
    match HERE.get() {
        None => settle(),
        rings => rings,
    }
}

/// Gets rings for a thread that has none.
#[cold]
fn settle() -> Option<&'static ThreadRings> {
    let denied = DENIED.get();
    // A thread whose local storage has been destroyed cannot return rings.
    if denied == 0 && LEASE.try_with(|_| ()).is_ok() {
        match registry::take() {
            Ok(rings) => {
                HERE.set(Some(rings));
                return Some(rings);
            }
            Err(RingDenial::Busy) => DENIED.set(PATIENCE - BUSY_PATIENCE),
            Err(RingDenial::NoMemory) => DENIED.set(1),
        }
    } else {
        DENIED.set((denied + 1) % PATIENCE);
    }
    ASTRAY.fetch_add(1, Ordering::Relaxed);
    None
}

#[cfg(all(test, target_os = "linux"))]
mod tests;
