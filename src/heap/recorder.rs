//! The tables of the process, and what is done with a block that a wait ended in.
//!
//! ```text
//!                stacks: addresses -> id          append-only
//!                sites:  {stack, size} -> counts  append-only
//!  alloc ──────> live:   address -> {site, size, weight} ──> free
//!           add  filter  remove
//! ```
//!
//! Statics, made by the compiler: they are there before the first allocation and after the last.

use std::sync::atomic::Ordering::Relaxed;
use std::sync::atomic::{AtomicBool, AtomicU64};

use super::filter::Filter;
use super::level::Level;
use super::live::Live;
use super::segment::Record;
use super::sites::{Amount, NO_STACK, Sites};
use super::stacks::Stacks;
use super::thread::{self, exclude_current_thread};
use crate::os::fork;
use crate::os::unwind::{End, MAX_FRAMES, Unknown, unwind_here};

/// What Go's default is, and every reader's expectation.
const DEFAULT_RATE: u64 = 512 << 10;

/// The frames of the profiler between the unwinder and the allocator's entry: [`record`] and the cold
/// half of [`super::Allocator`] that calls it.
const OWN_FRAMES: usize = 2;

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

/// What could not be recorded, by cause.
pub(super) struct Lost {
    pub(super) dropped: AtomicU64,
    pub(super) stack_not_ready: AtomicU64,
    pub(super) stack_busy: AtomicU64,
    pub(super) stack_foreign: AtomicU64,
    pub(super) stack_near_end: AtomicU64,
    pub(super) stack_table_full: AtomicU64,
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
}

impl Ever {
    const fn new() -> Self {
        Self { samples: AtomicU64::new(0), variance: AtomicU64::new(0) }
    }

    fn count(&self, record: &Record) {
        self.samples.fetch_add(1, Relaxed);
        let variance = record.variance();
        if variance > 0.0 {
            let add = |bits| Some((f64::from_bits(bits) + variance).to_bits());
            // Never fails: `add` always has a number.
            let _ = self.variance.fetch_update(Relaxed, Relaxed, add);
        }
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
            stack_not_ready: AtomicU64::new(0),
            stack_busy: AtomicU64::new(0),
            stack_foreign: AtomicU64::new(0),
            stack_near_end: AtomicU64::new(0),
            stack_table_full: AtomicU64::new(0),
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
    let Some(weight) = thread::decide(size, RATE.load(Relaxed)) else { return };
    // Whatever is allocated here on the way must not come back here.
    let _excluded = exclude_current_thread();
    fork::notice_from_allocator();
    let mut frames = [0; MAX_FRAMES];
    let walk = unwind_here(OWN_FRAMES, &mut frames);
    let stack = match walk {
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
            STACKS.intern(frames.get(..walk.depth).unwrap_or_default()).unwrap_or_else(|| {
                count(&LOST.stack_table_full);
                NO_STACK
            })
        }
        Err(unknown) => {
            count(match unknown {
                Unknown::NotReady => &LOST.stack_not_ready,
                Unknown::Busy => &LOST.stack_busy,
                Unknown::OtherStack => &LOST.stack_foreign,
                Unknown::NearEnd => &LOST.stack_near_end,
            });
            NO_STACK
        }
    };
    let size = size as u64;
    let site = SITES.intern(stack, size).or_else(|| SITES.intern(NO_STACK, size));
    let Some(site) = site else { return count(&LOST.dropped) };
    let record = Record { site, size, weight };
    // Counted before it is alive, so that a dump that reads live blocks first never shows more in use
    // than was ever allocated.
    SITES.count(site, Amount::of(&record));
    EVER.count(&record);
    insert(address, record);
}

/// Whether the block at `address` may have been recorded; false is certain.
#[inline]
pub(super) fn may_be_recorded(address: usize) -> bool {
    FILTER.may_hold(address)
}

/// Takes the record of a block out that is about to be freed, if there is one.
#[inline(never)]
pub(super) fn take(address: usize) -> Option<Record> {
    let record = LIVE.take(address)?;
    FILTER.remove(address);
    LEVEL.sink(Amount::of(&record).bytes());
    Some(record)
}

/// Puts a record in; a `take`n one goes back in by this when its block was not freed after all.
pub(super) fn insert(address: usize, record: Record) {
    FILTER.add(address);
    if LIVE.insert(address, record) {
        LEVEL.rise(Amount::of(&record).bytes());
    } else {
        FILTER.remove(address);
        count(&LOST.dropped);
    }
}

fn count(lost: &AtomicU64) {
    lost.fetch_add(1, Relaxed);
}
