//! The tables of the process, and what is done with a block that a wait ended in.
//!
//! ```text
//!                stacks: addresses -> id          while there is a site
//!                sites:  {stack, size} -> counts  while there is a live block or room
//!  alloc ──────> live:   address -> {site, size, weight} ──> free
//!           add  filter  remove
//! ```
//!
//! Statics, made by the compiler: they are there before the first allocation and after the last.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};

use super::filter::Filter;
use super::level::Level;
use super::live::{Live, coarsened};
use super::segment::Record;
use super::sites::{Amount, Counts, NO_ROOM, NO_STACK, SiteId, Sites};
use super::stacks::Stacks;
use super::thread::{self, exclude_current_thread};
use crate::os::fork;
use crate::unwind::{End, MAX_FRAMES, Unknown, unwind_here};

/// What Go's default is, and every reader's expectation.
const DEFAULT_RATE: u64 = 512 << 10;

/// The frames of the profiler between the unwinder and the allocator's entry: [`record`] and the cold
/// half of [`super::Allocator`] that calls it.
const OWN_FRAMES: usize = 2;

/// Sites that one sample takes out at the most: enough for the blocks of the deepest stack.
const EVICTIONS_AT_ONCE: usize = 32;

pub(super) static RATE: AtomicU64 = AtomicU64::new(DEFAULT_RATE);
/// Whether an [`super::Allocator`] has ever been asked for memory.
pub(super) static INSTALLED: AtomicBool = AtomicBool::new(false);
pub(super) static STACKS: Stacks = Stacks::new();
pub(super) static SITES: Sites = Sites::new();
pub(super) static LIVE: Live = Live::new();
pub(super) static LOST: Lost = Lost::new();
pub(super) static LEVEL: Level = Level::new();
pub(super) static EVER: Ever = Ever::new();
static FILTER: Filter = Filter::new();

/// The bytes allocated before [`RATE`] became 1.
pub(super) static BEFORE_EXACT: AtomicU64 = AtomicU64::new(0);

/// Changes the rate for all threads.
pub(super) fn set_rate(rate: u64) {
    if RATE.swap(rate, Relaxed) != rate && rate == 1 {
        let (counted, _) = thread::allocated();
        BEFORE_EXACT.store(counted, Relaxed);
    }
    thread::set_floor(rate);
}

/// The rate that blocks are sampled at, which is coarser than [`RATE`] if the table of live blocks is filling up.
pub(super) fn effective_rate() -> u64 {
    coarsened(RATE.load(Relaxed), LIVE.len())
}

/// What could not be recorded, by cause.
pub(super) struct Lost {
    pub(super) dropped: AtomicU64,
    /// What the dropped samples stand for.
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

/// What all samples there ever were say of the error of their sums.
pub(super) struct Ever {
    samples: AtomicU64,
    /// Of the bytes, a floating point number.
    variance: AtomicU64,
    allocated: Counts,
}

impl Ever {
    const fn new() -> Self {
        Self { samples: AtomicU64::new(0), variance: AtomicU64::new(0), allocated: Counts::new() }
    }

    fn count(&self, record: &Record) {
        self.allocated.add(Amount::of(record));
        self.samples.fetch_add(1, Relaxed);
        let variance = record.variance();
        if variance > 0.0 {
            let add = |bits| Some((f64::from_bits(bits) + variance).to_bits());
            // Never fails: `add` always has a number.
            let _ = self.variance.fetch_update(Relaxed, Relaxed, add);
        }
    }

    /// The sum over all sites there ever were, and what is being counted at this moment.
    pub(super) fn allocated(&self) -> Amount {
        self.allocated.get()
    }

    /// How many samples, and the standard error of the bytes they stand for.
    pub(super) fn told(&self) -> (u64, f64) {
        (self.samples.load(Relaxed), f64::from_bits(self.variance.load(Relaxed)).sqrt())
    }
}

impl Lost {
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

/// After a refused [`thread::spend`]: records the block of `size` bytes at `address` if its bytes end
/// the thread's wait. The block is not yet known to the program.
#[inline(never)]
pub(super) fn record(address: usize, size: usize) {
    if !INSTALLED.load(Relaxed) {
        INSTALLED.store(true, Relaxed);
    }
    let Some(weight) = thread::decide(size, effective_rate()) else { return };
    // Whatever is allocated here on the way must not come back here.
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
                End::Whole => {}
                End::Truncated | End::TooDeep => count(&LOST.truncated),
                End::Broken | End::Elsewhere => count(&LOST.broken),
            }
            if walk.is_inferred {
                count(&LOST.inferred);
            }
            frames.get(..walk.depth)
        }
        Err(unknown) => {
            count(match unknown {
                Unknown::NotReady => &LOST.stack_not_ready,
                Unknown::Busy => &LOST.stack_busy,
                Unknown::OtherStack => &LOST.stack_foreign,
                Unknown::NearEnd => &LOST.stack_near_end,
            });
            None
        }
    };
    let size = size as u64;
    let site = intern(frames, size).unwrap_or_else(|| {
        count(&LOST.tables_full);
        NO_ROOM
    });
    let record = Record { site, size, weight };
    // Before the site, so that the sum over sites is never more.
    EVER.count(&record);
    // Counted before it is alive, so that a dump that reads live blocks first never shows more in use
    // than was ever allocated.
    SITES.count(site, Amount::of(&record));
    insert(address, record);
}

/// The site of `size`-byte blocks at a stack, held. `None` if the tables are full of what has live blocks.
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

/// Tries again while there are sites without live blocks that can be taken out.
fn make_room<T>(attempt: impl Fn() -> Option<T>) -> Option<T> {
    for _ in 0..EVICTIONS_AT_ONCE {
        if let Some(done) = attempt() {
            return Some(done);
        }
        STACKS.release(SITES.evict()?);
    }
    attempt()
}

/// Whether the block at `address` may have been recorded; false is certain.
#[inline]
pub(super) fn may_be_recorded(address: usize) -> bool {
    FILTER.may_hold(address)
}

/// Takes the record of a block out that is about to be freed, if there is one. [`forget`] or [`insert`] follows.
#[inline(never)]
pub(super) fn take(address: usize) -> Option<Record> {
    let record = LIVE.take(address)?;
    FILTER.remove(address);
    LEVEL.sink(Amount::of(&record).bytes());
    Some(record)
}

/// Ends a record whose block is gone.
pub(super) fn forget(record: &Record) {
    SITES.release(record.site);
}

/// Puts a record in; a `take`n one goes back in by this when its block was not freed after all.
pub(super) fn insert(address: usize, record: Record) {
    FILTER.add(address);
    if LIVE.insert(address, record) {
        LEVEL.rise(Amount::of(&record).bytes());
    } else {
        FILTER.remove(address);
        count(&LOST.dropped);
        let bytes = u64::try_from(Amount::of(&record).bytes()).unwrap_or(0);
        LOST.dropped_bytes.fetch_add(bytes, Relaxed);
        forget(&record);
    }
}

fn count(lost: &AtomicU64) {
    lost.fetch_add(1, Relaxed);
}
