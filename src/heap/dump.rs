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

use super::recorder::{EVER, LIVE, LOST, SITES, STACKS};
use super::segment::Record;
use super::sites::{ANY_SIZE, Amount};
use super::{Error, Exclusion, exclude_current_thread, installed, rate, thread};
use crate::base::Bytes;
use crate::model::{Losses, Mapping, ValueType};
use crate::os::unwind::MAX_FRAMES;
use crate::os::{images, unwind};

/// Sites whose blocks are summed in one sweep: 256 KiB. A sweep of 100,000 records takes about 1 ms.
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

/// The room for a dump. About 330 KiB, all of it written to once, so that it is there.
pub struct Room {
    sums: Vec<Amount>,
    frames: Vec<u32>,
    mappings: Vec<Mapping>,
    read: Option<u64>,
}

impl Room {
    /// Reserves it.
    pub fn reserve() -> Self {
        let mut sums = Vec::with_capacity(WINDOW);
        // Zeroes would be the kernel's own page until they are written to.
        sums.resize(WINDOW, Amount::UNLIKELY);
        Self { sums, frames: Vec::with_capacity(MAX_FRAMES), mappings: Vec::new(), read: None }
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

impl Dump<'_> {
    /// Shows every sample; ends at the first error. About 0.1 us a sample and a frame.
    pub fn samples<E>(
        &mut self,
        mut see: impl FnMut(&Sample<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        self.in_use = InUse::default();
        self.allocated = Amount::default();
        let end = SITES.end();
        for first in (1..end).step_by(WINDOW) {
            let ids = first..end.min(first + WINDOW as u32);
            self.sum(first, ids.len());
            for (id, site) in SITES.iter(ids) {
                let in_use = self.room.sums.get((id - first) as usize).copied().unwrap_or_default();
                self.room.frames.clear();
                self.room.frames.extend(STACKS.get(site.stack).into_iter().flatten());
                let allocated = site.allocated;
                self.allocated.add(allocated);
                see(&Sample {
                    frames: &self.room.frames,
                    size: (site.size != ANY_SIZE).then_some(site.size),
                    values: [
                        allocated.objects(),
                        allocated.bytes(),
                        in_use.objects(),
                        in_use.bytes(),
                    ],
                })?;
            }
        }
        Ok(())
    }

    /// Sums the live records of `count` sites from `first` on; the first time around also all of them.
    fn sum(&mut self, first: u32, count: usize) {
        let sums = &mut self.room.sums;
        sums.clear();
        sums.resize(count.min(WINDOW), Amount::default());
        let totals = &mut self.in_use;
        LIVE.for_each(|record| {
            if first == 1 {
                totals.add(&record);
            }
            let place = record.site.checked_sub(first).map(|place| place as usize);
            if let Some(sum) = place.and_then(|place| sums.get_mut(place)) {
                sum.add(Amount::of(&record));
            }
        });
    }

    /// Fills `batch` with the next frames above the address `after`, by address: addresses as
    /// [`crate::model::Frame`] has them, and numbers. Empty when there are no more.
    pub fn frames_after(&self, after: u64, batch: &mut Vec<(u64, u32)>) {
        batch.clear();
        let mut below = u64::MAX;
        for (number, address) in STACKS.frames().iter() {
            if address <= after || address >= below {
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

    /// Shows what the reader must know, a line each. After [`Self::samples`].
    pub fn comments<E>(
        &self,
        mut see: impl FnMut(fmt::Arguments<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        match rate() {
            Bytes(0) => see(format_args!("heap sampling is off"))?,
            Bytes(1) => see(format_args!("heap: every allocation is recorded"))?,
            Bytes(rate) => {
                see(format_args!("heap: one sample in {rate} bytes allocated, on average"))?;
            }
        }
        let InUse { records, bytes, variance } = self.in_use;
        let error = variance.sqrt();
        see(format_args!(
            "heap: {bytes:.0} bytes in use, standard error {error:.0} ({:.1} %), \
             from {records} samples",
            share(error, bytes)
        ))?;
        let (samples, error) = EVER.told();
        let (objects, bytes) = (self.allocated.objects(), self.allocated.bytes());
        see(format_args!(
            "heap: since the program began {objects} blocks and {bytes} bytes allocated, standard error \
             {error:.0} ({:.1} %), from {samples} samples",
            share(error, bytes as f64)
        ))?;
        let (counted, more) = thread::allocated();
        see(format_args!(
            "heap: counted, not sampled: {counted} bytes allocated since the program began, and up to \
             {more} more that threads have yet to tell of or ended without"
        ))?;
        // Where some were, the losses say how many.
        if LOST.dropped.load(Relaxed) == 0 {
            see(format_args!("heap: no sample was dropped"))?;
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
        ("heap samples dropped: the tables are full", &LOST.dropped),
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
        ("heap stacks unknown: the stack table is full", &LOST.stack_table_full),
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
}

impl InUse {
    fn add(&mut self, record: &Record) {
        self.records += 1;
        self.bytes += record.size as f64 * record.weight;
        self.variance += record.variance();
    }
}
