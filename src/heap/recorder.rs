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

use super::bytes_by_rate::{BytesByRate, RateShares};
use super::filter::AddressFilter;
use super::live::{LiveBlocks, coarsened_rate};
use super::segment::BlockRecord;
use super::sites::{AllocatedAmount, NO_STACK, SiteCounts, SiteId, SiteTable, TABLE_FULL_SITE};
use super::stacks::StackSlots;
use super::thread::{self, exclude_current_thread};
use crate::heap::live_bytes::LiveBytes;
use crate::os::fork;
use crate::unwind::{MAX_FRAMES, UnwindError, WalkEnd, unwind_here};

/// Go's default.
const DEFAULT_RATE: u64 = 512 << 10;

/// Frames of the profiler between the unwinder and the allocator's entry: [`record_if_sampled`] and
/// the cold function of [`super::Allocator`] that calls it.
const PROFILER_FRAMES: usize = 2;

/// Maximum sites that one sample evicts: enough for the blocks of the deepest stack.
const MAX_EVICTIONS_PER_SAMPLE: usize = 32;

pub(super) static RATE: AtomicU64 = AtomicU64::new(DEFAULT_RATE);
/// `true` if an [`super::Allocator`] was ever called.
pub(super) static INSTALLED: AtomicBool = AtomicBool::new(false);
pub(super) static STACKS: StackSlots = StackSlots::new();
pub(super) static SITES: SiteTable = SiteTable::new();
pub(super) static LIVE_BLOCKS: LiveBlocks = LiveBlocks::new();
pub(super) static LOSSES: LossCounters = LossCounters::new();
pub(super) static LIVE_BYTES: LiveBytes = LiveBytes::new();
pub(super) static CUMULATIVE: CumulativeStats = CumulativeStats::new();
static FILTER: AddressFilter = AddressFilter::new();

static BYTES_BY_RATE: BytesByRate = BytesByRate::new();

/// Sets the rate for all threads.
pub(super) fn set_rate(rate: u64) {
    let previous = RATE.swap(rate, Relaxed);
    if previous != rate {
        let (counted, _) = thread::allocated_bytes();
        BYTES_BY_RATE.record_change(previous, counted);
    }
    thread::set_floor(rate);
}

/// Returns the bytes allocated since the program started, by the rate. Excludes bytes that threads
/// have not reported yet.
pub(super) fn bytes_by_rate() -> RateShares {
    let (counted, _) = thread::allocated_bytes();
    BYTES_BY_RATE.shares(RATE.load(Relaxed), counted)
}

/// Returns the effective sampling rate, which is coarser than [`RATE`] if the table of live blocks
/// is filling up.
pub(super) fn effective_rate() -> u64 {
    coarsened_rate(RATE.load(Relaxed), LIVE_BLOCKS.len())
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
    pub(super) no_unwind_info: AtomicU64,
    pub(super) used_heuristics: AtomicU64,
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
        self.allocated.add(record.amount());
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
    pub(super) fn totals(&self) -> (u64, f64) {
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
            no_unwind_info: AtomicU64::new(0),
            used_heuristics: AtomicU64::new(0),
        }
    }
}

/// Records the block of `size` bytes at `address` if it ends the thread's sampling interval. Called
/// after [`thread::try_consume`] returned `false`, before the program receives the block.
#[inline(never)]
pub(super) fn record_if_sampled(address: usize, size: usize) {
    if !INSTALLED.load(Relaxed) {
        INSTALLED.store(true, Relaxed);
    }
    let Some(weight) = thread::sample_block(size, effective_rate()) else { return };
    // Allocations made by this function must not reenter it.
    let _excluded = exclude_current_thread();
    fork::warn_if_unwatched_from_allocator();
    let mut frames = [0; MAX_FRAMES];
    let walk = unwind_here(PROFILER_FRAMES, &mut frames);
    let frames = match walk {
        Ok(walk) => {
            if walk.omitted > 0 {
                increment(&LOSSES.omitted);
            }
            match walk.end {
                WalkEnd::Complete => {}
                WalkEnd::CopyTooShort | WalkEnd::TooManyFrames => increment(&LOSSES.truncated),
                WalkEnd::NoUnwindInfo | WalkEnd::OtherStack => increment(&LOSSES.no_unwind_info),
            }
            if walk.used_heuristics {
                increment(&LOSSES.used_heuristics);
            }
            frames.get(..walk.depth)
        }
        Err(error) => {
            increment(match error {
                UnwindError::NotReady => &LOSSES.stack_not_ready,
                UnwindError::Busy => &LOSSES.stack_busy,
                UnwindError::ForeignStack => &LOSSES.stack_foreign,
                UnwindError::NearStackEnd => &LOSSES.stack_near_end,
            });
            None
        }
    };
    let size = size as u64;
    let site = intern_site(frames, size).unwrap_or_else(|| {
        increment(&LOSSES.tables_full);
        TABLE_FULL_SITE
    });
    let record = BlockRecord { site, size, weight };
    // Before the site, so that the sum over sites never exceeds this total.
    CUMULATIVE.count(&record);
    // Counted before it is inserted as live: a dump reads live blocks first and must not show more
    // bytes in use than allocated.
    SITES.count(site, record.amount());
    insert_record(address, record);
}

/// Returns the site of `size`-byte blocks at a stack, held. `None` if live blocks fill the tables.
fn intern_site(frames: Option<&[u64]>, size: u64) -> Option<SiteId> {
    let stack = match frames {
        Some(frames) => retry_with_eviction(|| STACKS.intern(frames))?,
        None => NO_STACK,
    };
    let site = retry_with_eviction(|| SITES.intern(stack, size));
    // A new site keeps the reference to its stack.
    if !site.is_some_and(|(_, is_new)| is_new) {
        STACKS.release(stack);
    }
    site.map(|(site, _)| site)
}

/// Repeats `attempt`, evicting a site without live blocks after each failure.
fn retry_with_eviction<T>(attempt: impl Fn() -> Option<T>) -> Option<T> {
    for _ in 0..MAX_EVICTIONS_PER_SAMPLE {
        if let Some(value) = attempt() {
            return Some(value);
        }
        STACKS.release(SITES.evict()?);
    }
    attempt()
}

/// Returns `false` if the block at `address` is certainly not recorded.
#[inline]
pub(super) fn may_be_recorded(address: usize) -> bool {
    FILTER.may_contain(address)
}

/// Removes the record of a block that is about to be freed, if any. The caller must call
/// [`discard_record`] or [`insert_record`] with it.
#[inline(never)]
pub(super) fn take_record(address: usize) -> Option<BlockRecord> {
    let record = LIVE_BLOCKS.remove(address)?;
    FILTER.remove(address);
    LIVE_BYTES.sub(record.amount().bytes());
    Some(record)
}

/// Drops a record whose block is freed.
pub(super) fn discard_record(record: &BlockRecord) {
    SITES.release(record.site);
}

/// Inserts a record. Also reinserts the result of `take_record` if the block was not freed after
/// all.
pub(super) fn insert_record(address: usize, record: BlockRecord) {
    FILTER.add(address);
    if LIVE_BLOCKS.insert(address, record) {
        LIVE_BYTES.add(record.amount().bytes());
    } else {
        FILTER.remove(address);
        increment(&LOSSES.dropped);
        let bytes = u64::try_from(record.amount().bytes()).unwrap_or(0);
        LOSSES.dropped_bytes.fetch_add(bytes, Relaxed);
        discard_record(&record);
    }
}

fn increment(counter: &AtomicU64) {
    counter.fetch_add(1, Relaxed);
}
