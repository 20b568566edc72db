//! The rings and the open slices of a thread.
//!
//! Slices nest: a wrapped future can poll wrapped futures. The open ones form a stack of
//! [`MAX_DEPTH`]; deeper ones are counted and not recorded. A slice that began while nothing was
//! recorded has no open slice at its end. It is recorded as if it had started with the recording.
//! `EPOCH` identifies the recording, so a thread that was idle through the end of one and the start
//! of the next discards its open slices. The lowest bit of `EPOCH` wakes the stall detector
//! (`epoch`).

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use super::epoch::{POLL_STARTED, RECORDING_START, WAKE_DETECTOR_BIT, disarm_wakeup};
use super::ring::{EventRing, OpenSliceCell};
use crate::base::sync::Mutex;
use crate::model::{OpenSlice, RawKind, RawSlice, TaskKey};

/// Maximum nesting depth of slices.
const MAX_DEPTH: usize = 8;

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
    pub(crate) owner: Mutex<Option<RingOwner>>,
}

/// The current or last owner of a thread's rings.
#[derive(Clone, Debug)]
pub(crate) struct RingOwner {
    /// Unique number of this ownership.
    pub(crate) id: u64,
    pub(crate) tid: u32,
    pub(crate) thread: Arc<str>,
    /// The first records of this thread.
    pub(crate) first_slice: u64,
    pub(crate) first_task: u64,
    /// End of the thread, in ticks; `None` while it runs.
    pub(crate) ended_at: Option<u64>,
}

/// Kind and task of an open slice, packed into one word.
#[derive(Clone, Copy)]
pub(super) struct OpenSliceTag {
    kind: RawKind,
    /// `true` once a wrapper has named the hooked poll.
    named: bool,
    task: TaskKey,
}

impl OpenSliceTag {
    #[inline]
    pub(super) const fn new(kind: RawKind, task: TaskKey) -> Self {
        Self { kind, named: false, task }
    }

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
    pub(super) fn begin(&self, epoch: u64, tag: OpenSliceTag, tick: u64) {
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
    pub(super) fn end(&self, epoch: u64, tag: impl FnOnce() -> OpenSliceTag, now: u64) {
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

    /// Ends the innermost slice, which `slice` describes, without reading its open record.
    #[inline]
    pub(super) fn end_known(&self, epoch: u64, slice: OpenSlice, now: u64) {
        let OpenSlice { kind, start, task } = slice;
        let depth = self.depth.load(Ordering::Relaxed);
        if depth == 0 || !self.belongs_to(epoch) {
            return self.end_preexisting(epoch, OpenSliceTag::new(kind, task), now);
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
    pub(super) fn set_poll_site(&self, epoch: u64, site: u16) -> bool {
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
