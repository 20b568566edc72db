//! Where blocks of one size come from, and how many ever did: {stack, size} -> cumulative counts.
//!
//! Go counts by stack *and* block size, and so do we: that is what the label `bytes` of a sample says.
//! Sums are whole numbers, so that adding is one atomic instruction and sums of the same blocks agree to
//! the last digit in whatever order they were made: objects in 256ths, bytes rounded once a block.
//!
//! A site has a reference of the table, one for each live block and one for the time that a thread uses it. When the
//! table is full, [`Sites::evict`] takes out those at which nothing is live, with a clock hand: a site that was found
//! again since the hand last passed stays for one more round. The counts of what goes are added to one sum, so the sum over all sites is
//! what was ever counted. `tests/heap_loom.rs` tries the orders.

use super::index::{Index, Interned, Thing};
use super::sampler::mix;
use super::segment::Record;
use super::slots::{Eviction, Slots};
use crate::base::sync::AtomicU64;
use crate::base::sync::Ordering::{Acquire, Relaxed, Release};

/// Sites of a mapping of 768 KiB.
const CHUNK: usize = 1 << 14;
const CHUNKS: usize = 6;
pub(super) const CAP: u64 = (CHUNK * CHUNKS) as u64;

/// A third more than there are sites.
const PLACES: usize = 1 << 17;

/// From here on a stack's sizes share a site: a program that allocates every size from one place must
/// not use up the places of the others.
const SHARED_FROM: u64 = CAP / 4 * 3;

/// Sites that the clock hand passes for one sample at the most: some microseconds.
const PASSED_AT_ONCE: usize = 256;

/// {stack, size, objects, bytes}
const WORDS: usize = 4;

/// The size of a site that blocks of all sizes share.
pub(crate) const ANY_SIZE: u64 = 0;

/// The stack of a site whose blocks have none.
pub(crate) const NO_STACK: u32 = 0;

/// The site of blocks for which no table has room.
pub(crate) const NO_ROOM: SiteId = SiteId { number: 0, generation: 0 };

/// A number of a site, which is used again for another one with another generation.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct SiteId {
    pub(crate) number: u32,
    pub(crate) generation: u32,
}

impl SiteId {
    pub(crate) const fn to_word(self) -> u64 {
        (self.generation as u64) << 32 | self.number as u64
    }

    pub(crate) const fn from_word(word: u64) -> Self {
        Self { number: word as u32, generation: (word >> 32) as u32 }
    }
}

/// A number of objects and bytes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Amount {
    objects_256ths: u64,
    bytes: u64,
}

impl Amount {
    /// More than anything is.
    pub(crate) const UNLIKELY: Self = Self { objects_256ths: u64::MAX, bytes: u64::MAX };

    /// What a record stands for.
    pub(crate) fn of(record: &Record) -> Self {
        Self {
            objects_256ths: (record.weight * 256.0).round() as u64,
            bytes: (record.weight * record.size as f64).round() as u64,
        }
    }

    pub(crate) fn add(&mut self, other: Self) {
        self.objects_256ths = self.objects_256ths.saturating_add(other.objects_256ths);
        self.bytes = self.bytes.saturating_add(other.bytes);
    }

    pub(crate) fn subtract(&mut self, other: Self) {
        self.objects_256ths = self.objects_256ths.saturating_sub(other.objects_256ths);
        self.bytes = self.bytes.saturating_sub(other.bytes);
    }

    /// The smaller number of each.
    pub(crate) fn min(self, other: Self) -> Self {
        Self {
            objects_256ths: self.objects_256ths.min(other.objects_256ths),
            bytes: self.bytes.min(other.bytes),
        }
    }

    pub(crate) fn objects(self) -> i64 {
        ((self.objects_256ths + 128) / 256) as i64
    }

    pub(crate) fn bytes(self) -> i64 {
        i64::try_from(self.bytes).unwrap_or(i64::MAX)
    }
}

/// Counts that many threads add to.
pub(crate) struct Counts([AtomicU64; 2]);

impl Counts {
    pub(crate) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 2])
    }

    pub(crate) fn add(&self, amount: Amount) {
        let [objects, bytes] = &self.0;
        objects.fetch_add(amount.objects_256ths, Release);
        bytes.fetch_add(amount.bytes, Relaxed);
    }

    pub(crate) fn get(&self) -> Amount {
        let [objects, bytes] = &self.0;
        Amount { objects_256ths: objects.load(Acquire), bytes: bytes.load(Relaxed) }
    }
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Site {
    pub(crate) id: SiteId,
    /// [`NO_STACK`] or an id of [`super::stacks::Stacks`].
    pub(crate) stack: u32,
    /// [`ANY_SIZE`] or that of all its blocks.
    pub(crate) size: u64,
    /// Everything that was ever allocated there.
    pub(crate) allocated: Amount,
}

pub(crate) struct Sites {
    index: Index,
    rows: Slots<WORDS, CHUNK, CHUNKS>,
    /// What the clock hand has passed.
    hand: AtomicU64,
    no_room: Counts,
    /// Counts of sites that were taken out, and their number.
    evicted: Counts,
    evictions: AtomicU64,
}

impl Sites {
    pub(crate) const fn new() -> Self {
        Self {
            index: Index::new(PLACES),
            rows: Slots::new(),
            hand: AtomicU64::new(0),
            no_room: Counts::new(),
            evicted: Counts::new(),
            evictions: AtomicU64::new(0),
        }
    }

    /// The site of `size`-byte blocks at `stack`, or of all blocks there when the table is filling up, with one more reference;
    /// `None` if the table is full. A new site takes over the caller's reference to the stack.
    pub(crate) fn intern(&self, stack: u32, size: u64) -> Option<(SiteId, bool)> {
        self.intern_exactly(stack, size, SHARED_FROM)
            .or_else(|| self.intern_exactly(stack, ANY_SIZE, CAP))
    }

    /// Counts a block for good at a site that the caller holds.
    pub(crate) fn count(&self, site: SiteId, amount: Amount) {
        if site == NO_ROOM {
            self.no_room.add(amount);
        } else if let Some([_, _, objects, bytes]) = self.rows.payload(site.number) {
            // Release, for readers: a count comes with the row it belongs to.
            objects.fetch_add(amount.objects_256ths, Release);
            bytes.fetch_add(amount.bytes, Relaxed);
        }
    }

    /// Drops a reference. The table's own stays.
    pub(crate) fn release(&self, site: SiteId) {
        // The last one is that of a row that was made in vain.
        if self.rows.release(site.number, 1) {
            self.rows.put_back(site.number);
        }
    }

    /// Takes a site out at which nothing is live, and returns the stack whose reference it had. `None` if there is none
    /// among those that the hand passes.
    pub(crate) fn evict(&self) -> Option<u32> {
        let sites = u64::from(self.rows.end()).saturating_sub(1).max(1);
        let mut recent = None;
        for _ in 0..PASSED_AT_ONCE.min(2 * sites as usize) {
            let number = (self.hand.fetch_add(1, Relaxed) % sites + 1) as u32;
            match self.rows.evict(number) {
                Eviction::Evicted => return Some(self.dispose(number)),
                Eviction::Recent => recent = Some(number),
                Eviction::InUse => {}
            }
        }
        // All were used: the last is no worse than the others.
        let number = recent?;
        (self.rows.evict(number) == Eviction::Evicted).then(|| self.dispose(number))
    }

    /// One past the last number.
    pub(crate) fn end(&self) -> u32 {
        self.rows.end()
    }

    /// The site with this number, which stays until it is released; `None` if no block was counted at it. One whose first
    /// block is being counted may be missing, or lack that block's bytes.
    pub(crate) fn hold(&self, number: u32) -> Option<Site> {
        let generation = self.rows.hold(number)?;
        let id = SiteId { number, generation };
        let site = self.rows.payload(number).and_then(|[stack, size, objects, bytes]| {
            let objects_256ths = objects.load(Acquire);
            let allocated = Amount { objects_256ths, bytes: bytes.load(Relaxed) };
            let (stack, size) = (stack.load(Relaxed) as u32, size.load(Relaxed));
            (objects_256ths > 0).then_some(Site { id, stack, size, allocated })
        });
        if site.is_none() {
            self.release(id);
        }
        site
    }

    /// Everything that was allocated and found no room for its stack.
    pub(crate) fn without_room(&self) -> Amount {
        self.no_room.get()
    }

    /// Everything that was allocated at sites that were taken out.
    pub(crate) fn evicted(&self) -> Amount {
        self.evicted.get()
    }

    /// How many sites were taken out.
    pub(crate) fn evictions(&self) -> &AtomicU64 {
        &self.evictions
    }

    fn intern_exactly(&self, stack: u32, size: u64, cap: u64) -> Option<(SiteId, bool)> {
        let row = Row { sites: self, stack, size, cap };
        let Interned { number, is_new } = self.index.intern(hash(stack, size), &row)?;
        if !is_new {
            self.rows.touch(number);
        }
        Some((SiteId { number, generation: self.rows.generation(number) }, is_new))
    }

    /// Gives a site back that has no reference left. Returns its stack.
    fn dispose(&self, number: u32) -> u32 {
        let Some([stack, size, objects, bytes]) = self.rows.payload(number) else {
            return NO_STACK;
        };
        let stack = stack.load(Relaxed) as u32;
        self.index.remove(hash(stack, size.load(Relaxed)), number);
        let counted = Amount { objects_256ths: objects.load(Acquire), bytes: bytes.load(Relaxed) };
        self.evicted.add(counted);
        self.evictions.fetch_add(1, Relaxed);
        self.rows.put_back(number);
        stack
    }
}

struct Row<'a> {
    sites: &'a Sites,
    stack: u32,
    size: u64,
    /// Numbers from here on are not handed out.
    cap: u64,
}

impl Thing for Row<'_> {
    fn hold(&self, number: u32) -> bool {
        let rows = &self.sites.rows;
        if rows.hold(number).is_none() {
            return false;
        }
        let is_same = rows.payload(number).is_some_and(|[stack, size, ..]| {
            stack.load(Relaxed) == u64::from(self.stack) && size.load(Relaxed) == self.size
        });
        if !is_same {
            self.release(number);
        }
        is_same
    }

    fn release(&self, number: u32) {
        self.sites.release(SiteId { number, generation: 0 });
    }

    fn make(&self) -> Option<u32> {
        let rows = &self.sites.rows;
        let number = rows.claim_free().or_else(|| rows.claim_fresh(self.cap))?;
        let [stack, size, objects, bytes] = rows.payload(number)?;
        stack.store(u64::from(self.stack), Relaxed);
        size.store(self.size, Relaxed);
        objects.store(0, Relaxed);
        bytes.store(0, Relaxed);
        // The table's and the caller's.
        rows.publish(number, 2);
        Some(number)
    }

    fn discard(&self, number: u32) {
        if self.sites.rows.release(number, 2) {
            self.sites.rows.put_back(number);
        }
    }
}

fn hash(stack: u32, size: u64) -> u64 {
    mix(mix(u64::from(stack)) ^ size)
}
