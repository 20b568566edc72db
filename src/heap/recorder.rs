//! The heap tables of the process, and the recording of sampled blocks.
//!
//! ```text
//!                stacks: addresses -> id          while a site refers to the stack
//!                sites:  {stack, size} -> counts  while a block is live or the table has space
//!  alloc ──────> live:   address -> {site, size, weight} ──> free
//!           add  filter  remove
//! ```
//!
//! All tables are statics with constant initializers: they exist before the first allocation and
//! after the last.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};

use super::filter::AddressFilter;
use super::live::{LiveBlocks, coarsened};
use super::segment::BlockRecord;
use super::sites::{AllocatedAmount, NO_ROOM, NO_STACK, SiteCounts, SiteId, SiteTable};
use super::stacks::StackSlots;
use super::thread::{self, exclude_current_thread};
use crate::heap::live_bytes::LiveBytes;
use crate::os::fork;
use crate::unwind::{MAX_FRAMES, UnwindError, WalkEnd, unwind_here};

/// Go's default.
const DEFAULT_RATE: u64 = 512 << 10;

/// Frames of the profiler between the unwinder and the allocator's entry: [`record`] and the cold
/// function of [`super::Allocator`] that calls it.
const OWN_FRAMES: usize = 2;

/// Maximum sites that one sample evicts: enough for the blocks of the deepest stack.
const EVICTIONS_AT_ONCE: usize = 32;

pub(super) static RATE: AtomicU64 = AtomicU64::new(DEFAULT_RATE);
/// `true` if an [`super::Allocator`] was ever called.
pub(super) static INSTALLED: AtomicBool = AtomicBool::new(false);
pub(super) static STACKS: StackSlots = StackSlots::new();
pub(super) static SITES: SiteTable = SiteTable::new();
pub(super) static LIVE: LiveBlocks = LiveBlocks::new();
pub(super) static LOST: LossCounters = LossCounters::new();
pub(super) static LEVEL: LiveBytes = LiveBytes::new();
pub(super) static EVER: CumulativeStats = CumulativeStats::new();
static FILTER: AddressFilter = AddressFilter::new();

/// Bytes allocated before [`RATE`] became 1.
pub(super) static BEFORE_EXACT: AtomicU64 = AtomicU64::new(0);

/// Sets the rate for all threads.
pub(super) fn set_rate(rate: u64) {
    if RATE.swap(rate, Relaxed) != rate && rate == 1 {
        let (counted, _) = thread::allocated();
        BEFORE_EXACT.store(counted, Relaxed);
    }
    thread::set_floor(rate);
}

/// Returns the effective sampling rate, which is coarser than [`RATE`] if the table of live blocks
/// is filling up.
pub(super) fn effective_rate() -> u64 {
    coarsened(RATE.load(Relaxed), LIVE.len())
}

/// Losses by cause.
pub(super) struct LossCounters {
    pub(super) dropped: AtomicU64,
    /// Bytes that the dropped samples stand for.
    pub(super) dropped_bytes: AtomicU64,
    pub(super) stack_not_ready: AtomicU64,
    pub(super) stack_busy: AtomicU64,
    pub(super) stack_foreign: AtomicU64,
    pub(super) stack_near_end: AtomicU64,
    pub(super) tables_full: AtomicU64,
    pub(super) omitted: AtomicU64,
    pub(super) truncated: AtomicU64,
    pub(super) broken: AtomicU64,
    pub(super) inferred: AtomicU64,
}

/// Cumulative statistics of all samples since the start.
pub(super) struct CumulativeStats {
    samples: AtomicU64,
    /// Variance of the bytes, as the bits of an `f64`.
    variance: AtomicU64,
    allocated: SiteCounts,
}

impl CumulativeStats {
    const fn new() -> Self {
        Self {
            samples: AtomicU64::new(0),
            variance: AtomicU64::new(0),
            allocated: SiteCounts::new(),
        }
    }

    fn count(&self, record: &BlockRecord) {
        self.allocated.add(AllocatedAmount::of(record));
        self.samples.fetch_add(1, Relaxed);
        let variance = record.variance();
        if variance > 0.0 {
            let add = |bits| Some((f64::from_bits(bits) + variance).to_bits());
            // Never fails: `add` always returns `Some`.
            let _ = self.variance.fetch_update(Relaxed, Relaxed, add);
        }
    }

    /// Returns the sum over all sites, evicted ones included, and blocks being counted at this
    /// moment.
    pub(super) fn allocated(&self) -> AllocatedAmount {
        self.allocated.get()
    }

    /// Returns the number of samples and the standard error of the bytes they stand for.
    pub(super) fn told(&self) -> (u64, f64) {
        (self.samples.load(Relaxed), f64::from_bits(self.variance.load(Relaxed)).sqrt())
    }
}

impl LossCounters {
    const fn new() -> Self {
        Self {
            dropped: AtomicU64::new(0),
            dropped_bytes: AtomicU64::new(0),
            stack_not_ready: AtomicU64::new(0),
            stack_busy: AtomicU64::new(0),
            stack_foreign: AtomicU64::new(0),
            stack_near_end: AtomicU64::new(0),
            tables_full: AtomicU64::new(0),
            omitted: AtomicU64::new(0),
            truncated: AtomicU64::new(0),
            broken: AtomicU64::new(0),
            inferred: AtomicU64::new(0),
        }
    }
}

/// Records the block of `size` bytes at `address` if it ends the thread's sampling interval. Called
/// after [`thread::spend`] returned `false`, before the program receives the block.
#[inline(never)]
pub(super) fn record(address: usize, size: usize) {
    if !INSTALLED.load(Relaxed) {
        INSTALLED.store(true, Relaxed);
    }
    let Some(weight) = thread::decide(size, effective_rate()) else { return };
    // Allocations made by this function must not reenter it.
    let _excluded = exclude_current_thread();
    fork::notice_from_allocator();
    let mut frames = [0; MAX_FRAMES];
    let walk = unwind_here(OWN_FRAMES, &mut frames);
    let frames = match walk {
        Ok(walk) => {
            if walk.omitted > 0 {
                count(&LOST.omitted);
            }
            match walk.end {
                WalkEnd::Whole => {}
                WalkEnd::Truncated | WalkEnd::TooDeep => count(&LOST.truncated),
                WalkEnd::Broken | WalkEnd::Elsewhere => count(&LOST.broken),
            }
            if walk.is_inferred {
                count(&LOST.inferred);
            }
            frames.get(..walk.depth)
        }
        Err(unknown) => {
            count(match unknown {
                UnwindError::NotReady => &LOST.stack_not_ready,
                UnwindError::Busy => &LOST.stack_busy,
                UnwindError::OtherStack => &LOST.stack_foreign,
                UnwindError::NearEnd => &LOST.stack_near_end,
            });
            None
        }
    };
    let size = size as u64;
    let site = intern(frames, size).unwrap_or_else(|| {
        count(&LOST.tables_full);
        NO_ROOM
    });
    let record = BlockRecord { site, size, weight };
    // Before the site, so that the sum over sites never exceeds this total.
    EVER.count(&record);
    // Counted before it is inserted as live: a dump reads live blocks first and must not show more
    // bytes in use than allocated.
    SITES.count(site, AllocatedAmount::of(&record));
    insert(address, record);
}

/// Returns the site of `size`-byte blocks at a stack, held. `None` if live blocks fill the tables.
fn intern(frames: Option<&[u64]>, size: u64) -> Option<SiteId> {
    let stack = match frames {
        Some(frames) => make_room(|| STACKS.intern(frames))?,
        None => NO_STACK,
    };
    let site = make_room(|| SITES.intern(stack, size));
    // A new site keeps the reference to its stack.
    if !site.is_some_and(|(_, is_new)| is_new) {
        STACKS.release(stack);
    }
    site.map(|(site, _)| site)
}

/// Repeats `attempt`, evicting a site without live blocks after each failure.
fn make_room<T>(attempt: impl Fn() -> Option<T>) -> Option<T> {
    for _ in 0..EVICTIONS_AT_ONCE {
        if let Some(done) = attempt() {
            return Some(done);
        }
        STACKS.release(SITES.evict()?);
    }
    attempt()
}

/// Returns `false` if the block at `address` is certainly not recorded.
#[inline]
pub(super) fn may_be_recorded(address: usize) -> bool {
    FILTER.may_hold(address)
}

/// Removes the record of a block that is about to be freed, if any. The caller must call [`forget`]
/// or [`insert`] with it.
#[inline(never)]
pub(super) fn take(address: usize) -> Option<BlockRecord> {
    let record = LIVE.take(address)?;
    FILTER.remove(address);
    LEVEL.sink(AllocatedAmount::of(&record).bytes());
    Some(record)
}

/// Drops a record whose block is freed.
pub(super) fn forget(record: &BlockRecord) {
    SITES.release(record.site);
}

/// Inserts a record. Also reinserts the result of `take` if the block was not freed after all.
pub(super) fn insert(address: usize, record: BlockRecord) {
    FILTER.add(address);
    if LIVE.insert(address, record) {
        LEVEL.rise(AllocatedAmount::of(&record).bytes());
    } else {
        FILTER.remove(address);
        count(&LOST.dropped);
        let bytes = u64::try_from(AllocatedAmount::of(&record).bytes()).unwrap_or(0);
        LOST.dropped_bytes.fetch_add(bytes, Relaxed);
        forget(&record);
    }
}

fn count(lost: &AtomicU64) {
    lost.fetch_add(1, Relaxed);
}
