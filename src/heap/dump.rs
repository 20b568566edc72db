//! The tables, shown piece by piece, in memory that was reserved before.
//!
//! A profile is taken when memory may be nearly gone, so nothing is built: samples are shown one after
//! the other, straight from the tables, then the addresses in their order, so that whoever names
//! functions reads each file's symbols from front to back. What has to be held at once is held in parts:
//! sums for [`WINDOW`] sites, [`BATCH`] addresses. Everything else (as many sums as there are sites, a
//! sorted copy of the addresses) grows with what is going wrong.
//!
//! ```text
//! for each WINDOW of sites:  live records -> sums -> samples     one sweep of the live table each
//! for each BATCH of frames:  the next addresses, in order        one sweep of the frames each
//! ```
//!
//! Live records of a site are read before its cumulative counts, so that nothing is in use that was
//! never allocated. A site is in one window, so a block is in the sums once or, if it comes or goes
//! meanwhile, perhaps not.

use std::fmt;
use std::sync::atomic::Ordering::Relaxed;

use super::frames::{self, NO_LONGER_KEPT_STACK, NO_ROOM_STACK};
use super::live;
use super::recorder::{BEFORE_EXACT, EVER, LIVE, LOST, SITES, STACKS, effective_rate};
use super::segment::Record;
use super::sites::{ANY_SIZE, Amount, NO_ROOM, Site};
use super::{Error, Exclusion, exclude_current_thread, installed, rate, thread};
use crate::base::Bytes;
use crate::model::{Losses, Mapping, Marker, ValueType};
use crate::os::images;
use crate::unwind;
use crate::unwind::MAX_FRAMES;

/// Sites whose blocks are summed in one sweep: 384 KiB. A sweep of 100,000 records takes about 1 ms.
const WINDOW: usize = 1 << 14;

/// Addresses shown at once.
pub const BATCH: usize = 4096;

/// Go's four, in Go's order.
pub const SAMPLE_TYPES: [ValueType; 4] = [
    ValueType { name: "alloc_objects", unit: "count" },
    ValueType { name: "alloc_space", unit: "bytes" },
    ValueType { name: "inuse_objects", unit: "count" },
    ValueType { name: "inuse_space", unit: "bytes" },
];

/// The type shown first.
pub const DEFAULT_SAMPLE_TYPE: &str = "inuse_space";

/// What lies between two samples.
pub const PERIOD_TYPE: ValueType = ValueType { name: "space", unit: "bytes" };

/// The functions that stand between the program and the tables: the language's way to its allocator,
/// what containers do when they want room, and what is ours. A reader that keeps to it shows as innermost
/// the function of the program that wanted the memory; the file itself keeps every frame. Matched
/// against whole names. With a frame all it calls is dropped, so what runs the program's closures and
/// iterators is not here (`or_insert_with`, `from_iter`, `extend`); what is here calls back into the program
/// at the most to clone, hash, compare or format a value. Functions of the program come first in a name of several
/// (` (or ...)`), so what follows such a function is one of the same kind; Go drops what is in brackets, and leaves the
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

/// Live blocks of a site.
#[derive(Clone, Copy, Default)]
struct Sum {
    amount: Amount,
    generation: u32,
}

impl Sum {
    /// The value of sums that are reserved.
    const UNLIKELY: Self = Self { amount: Amount::UNLIKELY, generation: u32::MAX };

    fn add(&mut self, record: &Record) {
        if self.generation != record.site.generation {
            // The number came back during the sweep, so the blocks of the site before are freed.
            *self = Self { amount: Amount::default(), generation: record.site.generation };
        }
        self.amount.add(Amount::of(record));
    }
}

fn values(allocated: Amount, in_use: Amount) -> [i64; 4] {
    [allocated.objects(), allocated.bytes(), in_use.objects(), in_use.bytes()]
}

/// The room for a dump. About 480 KiB, all of it written to once, so that it is there.
pub struct Room {
    sums: Vec<Sum>,
    frames: Vec<u32>,
    /// A bit for each frame of a sample that was shown.
    shown: Vec<u64>,
    mappings: Vec<Mapping>,
    read: Option<u64>,
}

impl Room {
    /// Reserves it.
    pub fn reserve() -> Self {
        let mut sums = Vec::with_capacity(WINDOW);
        // Zeroes would be the kernel's own page until they are written to.
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

    /// The profile of this moment, to be shown. The calling thread is excluded while it lives.
    ///
    /// Allocates nothing, unless libraries were loaded or unloaded since the last time: then the list of
    /// them, a few kilobytes.
    ///
    /// # Errors
    ///
    /// [`Error::NotInstalled`] when the program's allocator is not [`crate::Allocator`], [`Error::Images`]
    /// when `/proc` cannot be read.
    pub fn begin(&mut self) -> Result<Dump<'_>, Error> {
        let excluded = exclude_current_thread();
        if !installed() {
            return Err(Error::NotInstalled);
        }
        // For the stacks to come; the addresses of those that were taken are what they are.
        unwind::refresh()?;
        let generation = images::generation();
        if self.read != Some(generation) {
            // Blocks outlive the library that allocated them.
            self.mappings = images::seen()?;
            self.read = Some(generation);
        }
        self.shown.fill(0);
        STACKS.frames().begin_dump();
        Ok(Dump {
            room: self,
            in_use: InUse::default(),
            allocated: Amount::default(),
            _excluded: excluded,
        })
    }
}

/// Values seen at one stack for blocks of one size.
#[derive(Debug)]
pub struct Sample<'a> {
    /// The numbers of its frames, innermost first; empty when the stack is unknown.
    pub frames: &'a [u32],
    /// The size of each block; none where blocks of several sizes are together.
    pub size: Option<u64>,
    /// One value for each of [`SAMPLE_TYPES`].
    pub values: [i64; 4],
}

/// A profile being shown. Other threads are not stopped; two dumps at once do not know of each other.
pub struct Dump<'a> {
    room: &'a mut Room,
    in_use: InUse,
    /// What all sites say together.
    allocated: Amount,
    _excluded: Exclusion,
}

impl Drop for Dump<'_> {
    fn drop(&mut self) {
        STACKS.frames().end_dump();
    }
}

impl Dump<'_> {
    /// Shows every sample; ends at the first error. About 0.1 us a sample and a frame.
    pub fn samples<E>(
        &mut self,
        mut see: impl FnMut(&Sample<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.in_use = InUse::default();
        self.allocated = Amount::default();
        let end = SITES.end();
        // One window at least: blocks without a site are summed with the first.
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
        // Sites that were shown and taken out afterwards are in both sums.
        let mut rest = EVER.allocated();
        rest.subtract(self.allocated);
        rest.subtract(no_room);
        let evicted = evicted.min(rest);
        for (frames, allocated, in_use) in [
            (NO_ROOM_STACK, no_room, self.in_use.without_room),
            (NO_LONGER_KEPT_STACK, evicted, Amount::default()),
        ] {
            if allocated != Amount::default() {
                self.allocated.add(allocated);
                self.room.frames.clear();
                self.room.frames.extend(frames);
                self.room.show_frames();
                let frames = &self.room.frames;
                see(&Sample { frames, size: None, values: values(allocated, in_use) })?;
            }
        }
        Ok(())
    }

    fn site<E>(
        &mut self,
        first: u32,
        site: &Site,
        see: &mut impl FnMut(&Sample<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        let place = (site.id.number - first) as usize;
        let sum = self.room.sums.get(place).copied().unwrap_or_default();
        // Of an earlier site with this number all blocks are freed by now.
        let is_same = sum.generation == site.id.generation;
        let in_use = if is_same { sum.amount } else { Amount::default() };
        self.room.frames.clear();
        self.room.frames.extend(STACKS.get(site.stack).into_iter().flatten());
        self.room.show_frames();
        self.allocated.add(site.allocated);
        see(&Sample {
            frames: &self.room.frames,
            size: (site.size != ANY_SIZE).then_some(site.size),
            values: values(site.allocated, in_use),
        })
    }

    /// Sums the live records of `count` sites from `first` on; the first time around also all of them.
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

    /// Fills `batch` with the next frames of the samples shown that are above the address `after`, by address: addresses as
    /// [`crate::model::Frame`] has them, and numbers. Empty when there are no more.
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
        // What has the address of the last one must come with it, so a batch ends between addresses.
        let last = batch.get(BATCH).map(|&(address, _)| address);
        batch.retain(|&(address, _)| last.is_none_or(|last| address < last));
    }

    /// The loaded files, the main executable first.
    pub fn mappings(&self) -> &[Mapping] {
        &self.room.mappings
    }

    /// The bytes in use, estimated. After [`Self::samples`].
    pub fn in_use(&self) -> Bytes {
        Bytes(self.in_use.bytes as u64)
    }

    /// Shows what the reader must know, a line each. After [`Self::samples`].
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

    /// What was not recorded since the program began: causes and counts.
    pub fn lost(&self) -> impl Iterator<Item = (&'static str, u64)> {
        lost()
    }
}

/// What was not recorded since the program began.
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

/// `part` of `whole`, in per cent.
fn share(part: f64, whole: f64) -> f64 {
    if whole > 0.0 { part / whole * 100.0 } else { 0.0 }
}

/// What all live records say together.
#[derive(Clone, Copy, Default)]
struct InUse {
    records: u64,
    bytes: f64,
    variance: f64,
    /// Blocks that stand for themselves only.
    exact: Amount,
    without_room: Amount,
}

impl InUse {
    fn add(&mut self, record: &Record) {
        let amount = Amount::of(record);
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
