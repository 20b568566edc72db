//! Heap dumps: the tables are written out piece by piece, in memory that was reserved before.
//!
//! A profile is taken when memory may be nearly exhausted, so a dump builds nothing. It passes
//! samples one by one, straight from the tables, then the frame addresses in ascending order, so
//! that a symbolizer reads each file's symbols sequentially. Data that must exist at once is
//! bounded: sums for [`WINDOW`] sites, [`BATCH`] addresses. Anything else (one sum per site, a
//! sorted copy of the addresses) would grow with the leak.
//!
//! ```text
//! for each WINDOW of sites:  live records -> sums -> samples     one sweep of the live table each
//! for each BATCH of frames:  the next addresses, in order        one sweep of the frames each
//! ```
//!
//! The live records of a site are read before its cumulative counts, so bytes in use never exceed
//! bytes allocated. A site is in one window, so each block is summed once. A block that is
//! allocated or freed during the sweep may be missing.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;

use super::frames::{self, NO_LONGER_KEPT_STACK, NO_ROOM_STACK};
use super::live;
use super::recorder::{BEFORE_EXACT, EVER, LIVE, LOST, SITES, STACKS, effective_rate};
use super::segment::BlockRecord;
use super::sites::{ANY_SIZE, AllocatedAmount, AllocationSite, NO_ROOM};
use super::{Error, ProfilerExclusion, exclude_current_thread, installed, rate, thread};
use crate::base::Bytes;
use crate::model::{Losses, Mapping, Marker, ValueType};
use crate::os::images;
use crate::unwind;
use crate::unwind::MAX_FRAMES;

/// Number of sites summed in one sweep: 384 KiB. A sweep of 100,000 records takes about 1 ms.
const WINDOW: usize = 1 << 14;

/// Maximum number of addresses passed at once.
pub const BATCH: usize = 4096;

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

/// Regular expression for the functions between the program and the tables: the language's
/// allocation entry points, the growth functions of containers, and marple's own functions. A
/// viewer that applies it shows the function of the program that requested the memory as the
/// innermost; the file itself keeps every frame.
///
/// The expression matches whole names. A dropped frame also drops everything it calls, so functions
/// that run the program's closures or iterators are not listed (`or_insert_with`, `from_iter`,
/// `extend`). Listed functions call back into the program only to clone, hash, compare or format a
/// value. In a name of several functions (` (or ...)`) those of the program come first, so the
/// names after a listed function are of the same kind. Go drops the text in brackets and leaves the
/// space.
pub const DROP_FRAMES: &str = concat!(
    r"((__rustc.*::)?__(rust|rg)_(alloc|alloc_zeroed|realloc)",
    r"|<.* as core::alloc::global::GlobalAlloc>::.*",
    r"|<?marple::heap::alloc::Allocator.*",
    r"|<?alloc::(alloc|raw_vec)::.*",
    r"|alloc::boxed::(box_new.*|Box<.*>::(new(_in|_uninit|_uninit_in)?|pin|(try_)?clone_from_ref_in))",
    r"|alloc::boxed::convert::<impl core::convert::From<.*>::from",
    r"|<?alloc::(vec::Vec<.*>|string::String)>?",
    r"::(with_capacity|with_capacity_in|reserve|reserve_exact|push|push_mut|push_str|grow_one",
    r"|append|append_elements|extend_from_slice|extend_from_within|extend_with|insert|insert_mut|insert_str",
    r"|into_boxed_slice|into_boxed_str|resize|shrink_to|shrink_to_fit|split_off)",
    r"|<alloc::(vec::Vec<.*>|string::String) as core::(clone::Clone>::clone|convert::From<.*>::from",
    r"|fmt::Write>::write_(str|char))",
    r"|(alloc::vec|<.* as alloc::vec::spec_from_elem::SpecFromElem>)::from_elem",
    r"|<alloc::vec::Vec<.*> as alloc::vec::spec_extend::SpecExtend<&T,core::slice::iter::Iter<T>>>",
    r"::spec_extend",
    r"|<?(.* as )?alloc::(slice|str)::(<impl .*>|join_generic_copy)(::.*)?",
    r"|<.* as alloc::string::(SpecToString|ToString)>::(spec_)?to_string",
    r"|alloc::fmt::format(::.*)?",
    r"|<?alloc::(rc::Rc|sync::Arc)<.*>::(new|new_in|pin|allocate_for_.*|copy_from_slice|from_box(_in)?)",
    r"|<alloc::(rc::Rc|sync::Arc)<.*> as core::convert::From<.*>::from",
    r"|alloc::collections::btree::(node::.*|map::entry::VacantEntry<.*>::insert(_entry)?",
    r"|map::BTreeMap<.*>::insert|set::BTreeSet<.*>::(insert|replace))",
    r"|alloc::collections::(binary_heap::BinaryHeap|linked_list::LinkedList|vec_deque::VecDeque)<.*>",
    r"::(with_capacity|with_capacity_in|reserve|reserve_exact|grow|insert|insert_mut|push",
    r"|push_(back|front)(_mut|_node)?|resize)",
    r"|(hashbrown|std::collections::hash)::(map::HashMap|set::HashSet)<.*>",
    r"::(with_capacity.*|reserve|insert|entry|replace|shrink_to_fit)",
    r"|hashbrown::(rustc_entry::.*::rustc_entry|raw::RawTable(Inner|<.*>)::.*)",
    r")( .*)?",
);

/// Sum of the live blocks of a site.
#[derive(Clone, Copy, Default)]
struct Sum {
    amount: AllocatedAmount,
    generation: u32,
}

impl Sum {
    /// Initial value that makes the kernel allocate the pages.
    const UNLIKELY: Self = Self { amount: AllocatedAmount::UNLIKELY, generation: u32::MAX };

    fn add(&mut self, record: &BlockRecord) {
        if self.generation != record.site.generation {
            // The site's number was reused during the sweep, so all blocks of the previous site are
            // freed.
            *self = Self { amount: AllocatedAmount::default(), generation: record.site.generation };
        }
        self.amount.add(AllocatedAmount::of(record));
    }
}

fn values(allocated: AllocatedAmount, in_use: AllocatedAmount) -> [i64; 4] {
    [allocated.objects(), allocated.bytes(), in_use.objects(), in_use.bytes()]
}

/// Preallocated buffers for a dump: about 480 KiB, all written once so that the pages are resident.
pub struct DumpBuffers {
    sums: Vec<Sum>,
    frames: Vec<u32>,
    /// One bit per frame: set if a sample with the frame was passed.
    shown: Vec<u64>,
    mappings: Vec<Mapping>,
    read: Option<u64>,
}

impl DumpBuffers {
    /// Allocates the buffers.
    pub fn reserve() -> Self {
        let mut sums = Vec::with_capacity(WINDOW);
        // Zeroes would map the kernel's shared zero page until the first write.
        sums.resize(WINDOW, Sum::UNLIKELY);
        let shown = vec![u64::MAX; (frames::END as usize).div_ceil(64)];
        let frames = Vec::with_capacity(MAX_FRAMES);
        Self { sums, frames, shown, mappings: Vec::new(), read: None }
    }

    fn show_frames(&mut self) {
        for &number in &self.frames {
            if let Some(bits) = self.shown.get_mut(number as usize / 64) {
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
        if !installed() {
            return Err(Error::NotInstalled);
        }
        // For future stacks; the addresses of recorded stacks do not change.
        unwind::refresh()?;
        let generation = images::generation();
        if self.read != Some(generation) {
            // Blocks may outlive the library that allocated them.
            self.mappings = images::seen()?;
            self.read = Some(generation);
        }
        self.shown.fill(0);
        STACKS.frames().begin_dump();
        Ok(HeapDump {
            room: self,
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
    room: &'a mut DumpBuffers,
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
    /// Passes every sample to `see` and stops at the first error. Takes about 0.1 us per sample and
    /// frame.
    pub fn samples<E>(
        &mut self,
        mut see: impl FnMut(&HeapSample<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.in_use = InUse::default();
        self.allocated = AllocatedAmount::default();
        let end = SITES.end();
        // At least one window: blocks without a site are summed with the first.
        for first in (1..end.max(2)).step_by(WINDOW) {
            let numbers = first..end.min(first + WINDOW as u32);
            self.sum(first, numbers.len());
            for number in numbers {
                let Some(site) = SITES.hold(number) else { continue };
                let shown = self.site(first, &site, &mut see);
                SITES.release(site.id);
                shown?;
            }
        }
        let no_room = SITES.without_room();
        let evicted = SITES.evicted();
        // A site evicted after it was passed is in both sums.
        let mut rest = EVER.allocated();
        rest.subtract(self.allocated);
        rest.subtract(no_room);
        let evicted = evicted.min(rest);
        for (frames, allocated, in_use) in [
            (NO_ROOM_STACK, no_room, self.in_use.without_room),
            (NO_LONGER_KEPT_STACK, evicted, AllocatedAmount::default()),
        ] {
            if allocated != AllocatedAmount::default() {
                self.allocated.add(allocated);
                self.room.frames.clear();
                self.room.frames.extend(frames);
                self.room.show_frames();
                let frames = &self.room.frames;
                see(&HeapSample { frames, size: None, values: values(allocated, in_use) })?;
            }
        }
        Ok(())
    }

    fn site<E>(
        &mut self,
        first: u32,
        site: &AllocationSite,
        see: &mut impl FnMut(&HeapSample<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let place = (site.id.number - first) as usize;
        let sum = self.room.sums.get(place).copied().unwrap_or_default();
        // All blocks of an earlier site with this number are freed.
        let is_same = sum.generation == site.id.generation;
        let in_use = if is_same { sum.amount } else { AllocatedAmount::default() };
        self.room.frames.clear();
        self.room.frames.extend(STACKS.get(site.stack).into_iter().flatten());
        self.room.show_frames();
        self.allocated.add(site.allocated);
        see(&HeapSample {
            frames: &self.room.frames,
            size: (site.size != ANY_SIZE).then_some(site.size),
            values: values(site.allocated, in_use),
        })
    }

    /// Sums the live records of `count` sites starting at `first`. The first call also sums all
    /// records.
    fn sum(&mut self, first: u32, count: usize) {
        let sums = &mut self.room.sums;
        sums.clear();
        sums.resize(count.min(WINDOW), Sum::default());
        let totals = &mut self.in_use;
        LIVE.for_each(|record| {
            if first == 1 {
                totals.add(&record);
            }
            let place = record.site.number.checked_sub(first).map(|place| place as usize);
            if let Some(sum) = place.and_then(|place| sums.get_mut(place)) {
                sum.add(&record);
            }
        });
    }

    /// Fills `batch` with the next frames of the passed samples whose address is above `after`, in
    /// ascending order, as (address, number). Addresses are those of [`crate::model::Frame`]. The
    /// batch is empty if no frames remain.
    pub fn frames_after(&self, after: u64, batch: &mut Vec<(u64, u32)>) {
        batch.clear();
        let mut below = u64::MAX;
        for (number, address) in STACKS.frames().iter() {
            let bits = self.room.shown.get(number as usize / 64).copied().unwrap_or(0);
            let is_shown = bits >> (number % 64) & 1 == 1;
            if !is_shown || address <= after || address >= below {
                continue;
            }
            if batch.len() == 2 * BATCH {
                let (_, middle, _) = batch.select_nth_unstable(BATCH);
                below = middle.0;
                batch.retain(|&(address, _)| address < below);
            }
            if address < below {
                batch.push((address, number));
            }
        }
        batch.sort_unstable();
        // Frames with equal addresses must be in one batch, so a batch ends between addresses.
        let last = batch.get(BATCH).map(|&(address, _)| address);
        batch.retain(|&(address, _)| last.is_none_or(|last| address < last));
    }

    /// Returns the loaded files, the main executable first.
    pub fn mappings(&self) -> &[Mapping] {
        &self.room.mappings
    }

    /// Returns the estimated bytes in use. Valid after [`Self::samples`].
    pub fn in_use(&self) -> Bytes {
        Bytes(self.in_use.bytes as u64)
    }

    /// Passes comments for the reader, one line each, to `see`. Valid after [`Self::samples`].
    pub fn comments<E>(
        &self,
        mut see: impl FnMut(fmt::Arguments<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        match rate() {
            Bytes(0) => see(format_args!("heap sampling is off"))?,
            Bytes(1) => see(format_args!(
                "heap: every allocation is recorded since the rate is 1; about {} bytes allocated before \
                 were sampled, and of those still in use only samples are known",
                BEFORE_EXACT.load(Relaxed)
            ))?,
            Bytes(rate) => {
                see(format_args!("heap: one sample in {rate} bytes allocated, on average"))?;
            }
        }
        let coarser = Bytes(effective_rate());
        if coarser != rate() {
            see(format_args!(
                "heap: the table of live blocks has {} of {} entries, so one sample in {} bytes is \
                 taken instead",
                LIVE.len(),
                live::CAP,
                coarser.get()
            ))?;
        }
        let InUse { records, bytes, variance, exact, without_room } = self.in_use;
        let error = variance.sqrt();
        see(format_args!(
            "heap: {bytes:.0} bytes in use, standard error {error:.0} ({:.1} %), \
             from {records} samples",
            share(error, bytes)
        ))?;
        if rate() == Bytes(1) {
            see(format_args!(
                "heap: of the bytes in use {} in {} blocks are exact, the others are estimated from samples \
                 of a coarser rate",
                exact.bytes(),
                exact.objects()
            ))?;
        }
        if without_room.bytes() > 0 {
            see(format_args!(
                "heap: {} bytes of them are at {}: more stacks than the tables hold have live blocks",
                without_room.bytes(),
                Marker::NoRoom.name()
            ))?;
        }
        let (samples, error) = EVER.told();
        let (objects, bytes) = (self.allocated.objects(), self.allocated.bytes());
        let from = if rate() == Bytes(1) { ", all of it of samples at a coarser rate" } else { "" };
        see(format_args!(
            "heap: since the program began {objects} blocks and {bytes} bytes allocated, standard error \
             {error:.0} ({:.1} %){from}, from {samples} samples",
            share(error, bytes as f64)
        ))?;
        let (counted, more) = thread::allocated();
        see(format_args!(
            "heap: counted, not sampled: {counted} bytes allocated since the program began, and up to \
             {more} more that threads have yet to tell of or ended without"
        ))?;
        match (LOST.dropped.load(Relaxed), LOST.dropped_bytes.load(Relaxed)) {
            (0, _) => see(format_args!("heap: no sample was dropped"))?,
            (samples, bytes) => see(format_args!(
                "heap: {samples} samples that stand for {bytes} bytes could not be followed: as much more may \
                 be in use"
            ))?,
        }
        Ok(())
    }

    /// Returns the losses since the program started, as causes and counts.
    pub fn lost(&self) -> impl Iterator<Item = (&'static str, u64)> {
        lost()
    }
}

/// Returns the losses since the program started.
pub fn losses() -> Losses {
    let mut losses = Losses::default();
    lost().for_each(|(cause, count)| losses.add(cause, count));
    losses
}

fn lost() -> impl Iterator<Item = (&'static str, u64)> {
    [
        ("heap samples dropped: no room in the table of live blocks", &LOST.dropped),
        ("heap stacks unknown: loaded files not read yet", &LOST.stack_not_ready),
        ("heap stacks unknown: too many threads unwinding at once", &LOST.stack_busy),
        (
            "heap stacks unknown: on a stack that is not the thread's own (a coroutine, a signal stack)",
            &LOST.stack_foreign,
        ),
        (
            "heap stacks unknown: less than 8 KiB of stack left (32 KiB in a debug build)",
            &LOST.stack_near_end,
        ),
        ("heap stacks unknown: the tables are full of stacks with live blocks", &LOST.tables_full),
        ("heap stacks without live blocks made room for others", SITES.evictions()),
        (
            "heap stacks with frames left out in the middle: deeper than 128 frames",
            &LOST.omitted,
        ),
        ("heap stacks cut at the outer end: deeper than 4096 frames", &LOST.truncated),
        ("heap stacks cut at the outer end: no unwind information", &LOST.broken),
        ("heap stacks walked through code without unwind tables", &LOST.inferred),
    ]
    .into_iter()
    .map(|(cause, count)| (cause, count.load(Relaxed)))
    .filter(|&(_, count)| count > 0)
}

/// Returns `part` as a percentage of `whole`.
fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole * 100.0 } else { 0.0 }
}

/// Sums over all live records.
#[derive(Clone, Copy, Default)]
struct InUse {
    records: u64,
    bytes: f64,
    variance: f64,
    /// Blocks with weight 1, which stand for themselves only.
    exact: AllocatedAmount,
    without_room: AllocatedAmount,
}

impl InUse {
    fn add(&mut self, record: &BlockRecord) {
        let amount = AllocatedAmount::of(record);
        if record.weight <= 1.0 {
            self.exact.add(amount);
        }
        if record.site == NO_ROOM {
            self.without_room.add(amount);
        }
        self.records += 1;
        self.bytes += record.size as f64 * record.weight;
        self.variance += record.variance();
    }
}
