//! Heap dumps: the tables are written out piece by piece, in memory that was reserved before.
//!
//! A profile is taken when memory may be nearly exhausted, so a dump builds nothing. It passes
//! samples one by one, straight from the tables, then the frame addresses in ascending order, so
//! that a symbolizer reads each file's symbols sequentially. Data that must exist at once is
//! bounded: sums for [`SITES_PER_SWEEP`] sites, [`MAX_FRAMES_PER_BATCH`] addresses. Anything else
//! (one sum per site, a sorted copy of the addresses) would grow with the leak.
//!
//! ```text
//! for each WINDOW of sites:  live records -> sums -> samples     one sweep of the live table each
//! for each BATCH of frames:  the next addresses, in order        one sweep of the frames each
//! ```
//!
//! The live records of a site are read before its cumulative counts, so bytes in use never exceed
//! bytes allocated. A site is in one window, so each block is summed once. A block that is
//! allocated or freed during the sweep may be missing.

mod comments;

use std::sync::atomic::Ordering::Relaxed;

use super::frames::{self, EVICTED_STACK, TABLE_FULL_STACK};
use super::recorder::{CUMULATIVE, LIVE_BLOCKS, LOSSES, SITES, STACKS};
use super::segment::BlockRecord;
use super::sites::{ANY_SIZE, AllocatedAmount, AllocationSite, TABLE_FULL_SITE};
use super::{Error, ProfilerExclusion, exclude_current_thread, is_installed};
use crate::base::Bytes;
use crate::model::{Losses, Mapping, ValueType};
use crate::os::images;
use crate::unwind::{self, MAX_FRAMES};

/// Number of sites summed in one sweep: 384 KiB. A sweep of 100,000 records takes about 1 ms.
const SITES_PER_SWEEP: usize = 1 << 14;

/// Maximum number of addresses passed at once.
pub const MAX_FRAMES_PER_BATCH: usize = 4096;

/// Sample types: Go's four, in Go's order.
pub const SAMPLE_TYPES: [ValueType; 4] = [
    ValueType { name: "alloc_objects", unit: "count" },
    ValueType { name: "alloc_space", unit: "bytes" },
    ValueType { name: "inuse_objects", unit: "count" },
    ValueType { name: "inuse_space", unit: "bytes" },
];

/// Sample type that viewers show first.
pub const DEFAULT_SAMPLE_TYPE: &str = "inuse_space";

/// Unit of the sampling period.
pub const PERIOD_TYPE: ValueType = ValueType { name: "space", unit: "bytes" };

/// Sum of the live blocks of a site.
#[derive(Clone, Copy, Default)]
struct Sum {
    amount: AllocatedAmount,
    generation: u32,
}

impl Sum {
    /// Initial value that makes the kernel allocate the pages.
    const PREFAULT: Self = Self { amount: AllocatedAmount::MAX, generation: u32::MAX };

    fn add(&mut self, record: &BlockRecord) {
        if self.generation != record.site.generation {
            // The site's number was reused during the sweep, so all blocks of the previous site are
            // freed.
            *self = Self { amount: AllocatedAmount::default(), generation: record.site.generation };
        }
        self.amount.add(record.amount());
    }
}

fn sample_values(allocated: AllocatedAmount, in_use: AllocatedAmount) -> [i64; 4] {
    [allocated.objects(), allocated.bytes(), in_use.objects(), in_use.bytes()]
}

/// Preallocated buffers for a dump: about 480 KiB, all written once so that the pages are resident.
pub struct DumpBuffers {
    sums: Vec<Sum>,
    frames: Vec<u32>,
    /// One bit per frame: set if a sample with the frame was passed.
    referenced_frames: Vec<u64>,
    mappings: Vec<Mapping>,
    mappings_generation: Option<u64>,
}

impl DumpBuffers {
    /// Allocates the buffers.
    pub fn preallocate() -> Self {
        let mut sums = Vec::with_capacity(SITES_PER_SWEEP);
        // Zeroes would map the kernel's shared zero page until the first write.
        sums.resize(SITES_PER_SWEEP, Sum::PREFAULT);
        let referenced_frames = vec![u64::MAX; (frames::END as usize).div_ceil(64)];
        let frames = Vec::with_capacity(MAX_FRAMES);
        Self { sums, frames, referenced_frames, mappings: Vec::new(), mappings_generation: None }
    }

    fn mark_frames_referenced(&mut self) {
        for &number in &self.frames {
            if let Some(bits) = self.referenced_frames.get_mut(number as usize / 64) {
                *bits |= 1 << (number % 64);
            }
        }
    }

    /// Starts a profile of this moment. The calling thread is excluded from sampling while the dump
    /// lives.
    ///
    /// Allocates nothing, unless libraries were loaded or unloaded since the last dump: then the
    /// list of libraries, a few kilobytes.
    ///
    /// # Errors
    ///
    /// [`Error::NotInstalled`] if the program's allocator is not [`crate::Allocator`],
    /// [`Error::Images`] if `/proc` cannot be read.
    pub fn begin(&mut self) -> Result<HeapDump<'_>, Error> {
        let excluded = exclude_current_thread();
        if !is_installed() {
            return Err(Error::NotInstalled);
        }
        // For future stacks; the addresses of recorded stacks do not change.
        unwind::refresh()?;
        let generation = images::generation();
        if self.mappings_generation != Some(generation) {
            // Blocks may outlive the library that allocated them.
            self.mappings = images::loaded_and_unloaded()?;
            self.mappings_generation = Some(generation);
        }
        self.referenced_frames.fill(0);
        STACKS.frames().begin_dump();
        Ok(HeapDump {
            buffers: self,
            in_use: InUse::default(),
            allocated: AllocatedAmount::default(),
            _excluded: excluded,
        })
    }
}

/// Values of the blocks of one size allocated at one stack.
#[derive(Debug)]
pub struct HeapSample<'a> {
    /// Numbers of the frames, innermost first; empty if the stack is unknown.
    pub frames: &'a [u32],
    /// Size of each block, or `None` if blocks of several sizes are combined.
    pub size: Option<u64>,
    /// One value for each of [`SAMPLE_TYPES`].
    pub values: [i64; 4],
}

/// A profile being written. Other threads are not stopped. Two dumps may run at once.
pub struct HeapDump<'a> {
    buffers: &'a mut DumpBuffers,
    in_use: InUse,
    /// Sum of the allocated amounts of all samples.
    allocated: AllocatedAmount,
    _excluded: ProfilerExclusion,
}

impl Drop for HeapDump<'_> {
    fn drop(&mut self) {
        STACKS.frames().end_dump();
    }
}

impl HeapDump<'_> {
    /// Passes every sample to `visit` and stops at the first error. Takes about 0.1 us per sample
    /// and frame.
    pub fn visit_samples<E>(
        &mut self,
        mut visit: impl FnMut(&HeapSample<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.in_use = InUse::default();
        self.allocated = AllocatedAmount::default();
        let end = SITES.end();
        // At least one window: blocks without a site are summed with the first.
        for first in (1..end.max(2)).step_by(SITES_PER_SWEEP) {
            let numbers = first..end.min(first + SITES_PER_SWEEP as u32);
            self.sum_live_records(first, numbers.len());
            for number in numbers {
                let Some(site) = SITES.hold(number) else { continue };
                let result = self.visit_site(first, &site, &mut visit);
                SITES.release(site.id);
                result?;
            }
        }
        let table_full = SITES.table_full_amount();
        let evicted = SITES.evicted_amount();
        // A site evicted after it was passed is in both sums.
        let mut unattributed = CUMULATIVE.allocated();
        unattributed.subtract(self.allocated);
        unattributed.subtract(table_full);
        let evicted = evicted.min(unattributed);
        for (frames, allocated, in_use) in [
            (TABLE_FULL_STACK, table_full, self.in_use.table_full),
            (EVICTED_STACK, evicted, AllocatedAmount::default()),
        ] {
            if allocated != AllocatedAmount::default() {
                self.allocated.add(allocated);
                self.buffers.frames.clear();
                self.buffers.frames.extend(frames);
                self.buffers.mark_frames_referenced();
                let frames = &self.buffers.frames;
                visit(&HeapSample {
                    frames,
                    size: None,
                    values: sample_values(allocated, in_use),
                })?;
            }
        }
        Ok(())
    }

    fn visit_site<E>(
        &mut self,
        first: u32,
        site: &AllocationSite,
        visit: &mut impl FnMut(&HeapSample<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let index = (site.id.number - first) as usize;
        let sum = self.buffers.sums.get(index).copied().unwrap_or_default();
        // All blocks of an earlier site with this number are freed.
        let is_same = sum.generation == site.id.generation;
        let in_use = if is_same { sum.amount } else { AllocatedAmount::default() };
        self.buffers.frames.clear();
        self.buffers.frames.extend(STACKS.get(site.stack).into_iter().flatten());
        self.buffers.mark_frames_referenced();
        self.allocated.add(site.allocated);
        visit(&HeapSample {
            frames: &self.buffers.frames,
            size: (site.size != ANY_SIZE).then_some(site.size),
            values: sample_values(site.allocated, in_use),
        })
    }

    /// Sums the live records of `count` sites starting at `first`. The first call also sums all
    /// records.
    fn sum_live_records(&mut self, first: u32, count: usize) {
        let sums = &mut self.buffers.sums;
        sums.clear();
        sums.resize(count.min(SITES_PER_SWEEP), Sum::default());
        let totals = &mut self.in_use;
        LIVE_BLOCKS.for_each(|record| {
            if first == 1 {
                totals.add(&record);
            }
            let index = record.site.number.checked_sub(first).map(|place| place as usize);
            if let Some(sum) = index.and_then(|place| sums.get_mut(place)) {
                sum.add(&record);
            }
        });
    }

    /// Fills `batch` with the next frames of the passed samples whose address is above
    /// `last_address`, in ascending order, as (address, number). Addresses are those of
    /// [`crate::model::Frame`]. The batch is empty if no frames remain.
    pub fn next_frames(&self, last_address: u64, batch: &mut Vec<(u64, u32)>) {
        batch.clear();
        let mut upper_bound = u64::MAX;
        for (number, address) in STACKS.frames().iter() {
            let bits =
                self.buffers.referenced_frames.get(number as usize / 64).copied().unwrap_or(0);
            let is_shown = bits >> (number % 64) & 1 == 1;
            if !is_shown || address <= last_address || address >= upper_bound {
                continue;
            }
            if batch.len() == 2 * MAX_FRAMES_PER_BATCH {
                let (_, middle, _) = batch.select_nth_unstable(MAX_FRAMES_PER_BATCH);
                upper_bound = middle.0;
                batch.retain(|&(address, _)| address < upper_bound);
            }
            if address < upper_bound {
                batch.push((address, number));
            }
        }
        batch.sort_unstable();
        // Frames with equal addresses must be in one batch, so a batch ends between addresses.
        let last = batch.get(MAX_FRAMES_PER_BATCH).map(|&(address, _)| address);
        batch.retain(|&(address, _)| last.is_none_or(|last| address < last));
    }

    /// Returns the loaded files, the main executable first.
    pub fn mappings(&self) -> &[Mapping] {
        &self.buffers.mappings
    }

    /// Returns the estimated bytes in use. Valid after [`Self::visit_samples`].
    pub fn in_use(&self) -> Bytes {
        Bytes(self.in_use.bytes as u64)
    }

    /// Returns the losses since the program started, as causes and counts.
    pub fn loss_counts(&self) -> impl Iterator<Item = (&'static str, u64)> {
        loss_counts()
    }
}

/// Returns the losses since the program started.
pub fn losses() -> Losses {
    let mut losses = Losses::default();
    loss_counts().for_each(|(cause, count)| losses.add(cause, count));
    losses
}

fn loss_counts() -> impl Iterator<Item = (&'static str, u64)> {
    [
        ("heap samples dropped: the table of live blocks is full", &LOSSES.dropped),
        ("heap stacks unknown: loaded files not read yet", &LOSSES.stack_not_ready),
        ("heap stacks unknown: too many threads unwinding at once", &LOSSES.stack_busy),
        (
            "heap stacks unknown: on a stack that is not the thread's own (a coroutine, a signal stack)",
            &LOSSES.stack_foreign,
        ),
        (
            "heap stacks unknown: less than 8 KiB of stack left (32 KiB in a debug build)",
            &LOSSES.stack_near_end,
        ),
        ("heap stacks unknown: the tables are full of stacks with live blocks", &LOSSES.tables_full),
        ("heap stacks without live blocks evicted: the tables are full", SITES.evictions()),
        (
            "heap stacks with frames omitted in the middle: deeper than 128 frames",
            &LOSSES.omitted,
        ),
        ("heap stacks truncated: deeper than 4096 frames", &LOSSES.truncated),
        ("heap stacks truncated: no unwind information", &LOSSES.no_unwind_info),
        ("heap stacks walked through code without unwind tables", &LOSSES.used_heuristics),
    ]
    .into_iter()
    .map(|(cause, count)| (cause, count.load(Relaxed)))
    .filter(|&(_, count)| count > 0)
}

/// Sums over all live records.
#[derive(Clone, Copy, Default)]
struct InUse {
    records: u64,
    bytes: f64,
    variance: f64,
    /// Blocks with weight 1, which stand for themselves only.
    exact: AllocatedAmount,
    table_full: AllocatedAmount,
}

impl InUse {
    fn add(&mut self, record: &BlockRecord) {
        let amount = record.amount();
        if record.weight <= 1.0 {
            self.exact.add(amount);
        }
        if record.site == TABLE_FULL_SITE {
            self.table_full.add(amount);
        }
        self.records += 1;
        self.bytes += record.size as f64 * record.weight;
        self.variance += record.variance();
    }
}
