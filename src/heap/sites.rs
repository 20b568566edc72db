//! Allocation sites: {stack, size} -> cumulative counts.
//!
//! Sites are counted by stack *and* block size, like Go's; the size is the sample label `bytes`.
//! Sums are integers, so that adding is one atomic instruction and the sum of the same blocks does
//! not depend on their order: objects in 1/256, bytes rounded per block.
//!
//! A site has one reference for the table, one for each live block and one for each thread that
//! uses it at the moment. If the table is full, [`SiteTable::evict`] removes sites without live
//! blocks by the clock algorithm: a site that was interned again since the hand passed it stays for
//! one more round. The counts of evicted sites are added to one sum, so the sum over all sites
//! stays complete. `tests/loom_heap` tests the interleavings.

use super::index::{HashIndex, Internable, Interned};
use super::sampler::mix;
use super::slots::{BlockSlots, Eviction};
use crate::base::sync::AtomicU64;
use crate::base::sync::Ordering::{Acquire, Relaxed, Release};

/// Sites per mapping of 768 KiB.
const SITES_PER_CHUNK: usize = 1 << 14;
const MAX_CHUNKS: usize = 6;
pub(super) const MAX_SITES: u64 = (SITES_PER_CHUNK * MAX_CHUNKS) as u64;

/// One third more than the number of sites.
const INDEX_WORDS: usize = 1 << 17;

/// From this number of sites on, all sizes of a stack share a site: a program that allocates every
/// size at one stack must not use up the table.
const SHARED_SITE_THRESHOLD: u64 = MAX_SITES / 4 * 3;

/// Maximum sites that the clock hand passes per sample: a few microseconds.
const MAX_SCANNED_PER_EVICTION: usize = 256;

/// Words per site: {stack, size, objects, bytes}.
const SITE_WORDS: usize = 4;

/// Size of a site that is shared by blocks of all sizes.
pub(crate) const ANY_SIZE: u64 = 0;

/// Stack of a site whose blocks have no stack.
pub(crate) const NO_STACK: u32 = 0;

/// Site of blocks that found the tables full.
pub(crate) const TABLE_FULL_SITE: SiteId = SiteId { number: 0, generation: 0 };

/// Number and generation of a site. Numbers are reused with another generation.
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
pub(crate) struct AllocatedAmount {
    objects_256ths: u64,
    bytes: u64,
}

impl AllocatedAmount {
    /// Larger than any real amount.
    pub(crate) const MAX: Self = Self { objects_256ths: u64::MAX, bytes: u64::MAX };

    /// Returns the amount of `count` blocks of `size` bytes each. The count of a sample is its
    /// weight and not a whole number.
    pub(crate) fn of_blocks(count: f64, size: u64) -> Self {
        Self {
            objects_256ths: (count * 256.0).round() as u64,
            bytes: (count * size as f64).round() as u64,
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

    /// Returns the minimum of each number.
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

/// Counters shared by many threads.
pub(crate) struct SiteCounts([AtomicU64; 2]);

impl SiteCounts {
    pub(crate) const fn new() -> Self {
        Self([const { AtomicU64::new(0) }; 2])
    }

    pub(crate) fn add(&self, amount: AllocatedAmount) {
        let [objects, bytes] = &self.0;
        objects.fetch_add(amount.objects_256ths, Release);
        bytes.fetch_add(amount.bytes, Relaxed);
    }

    pub(crate) fn get(&self) -> AllocatedAmount {
        let [objects, bytes] = &self.0;
        AllocatedAmount { objects_256ths: objects.load(Acquire), bytes: bytes.load(Relaxed) }
    }
}

/// A row of the table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct AllocationSite {
    pub(crate) id: SiteId,
    /// [`NO_STACK`] or an id of [`super::stacks::StackSlots`].
    pub(crate) stack: u32,
    /// [`ANY_SIZE`] or the size of all blocks of the site.
    pub(crate) size: u64,
    /// Cumulative amount allocated at the site.
    pub(crate) allocated: AllocatedAmount,
}

pub(crate) struct SiteTable {
    index: HashIndex,
    slots: BlockSlots<SITE_WORDS, SITES_PER_CHUNK, MAX_CHUNKS>,
    /// Number of sites that the clock hand has passed.
    clock_hand: AtomicU64,
    table_full: SiteCounts,
    /// Sum of the counts of evicted sites, and their number.
    evicted: SiteCounts,
    evictions: AtomicU64,
}

impl SiteTable {
    pub(crate) const fn new() -> Self {
        Self {
            index: HashIndex::new(INDEX_WORDS),
            slots: BlockSlots::new(),
            clock_hand: AtomicU64::new(0),
            table_full: SiteCounts::new(),
            evicted: SiteCounts::new(),
            evictions: AtomicU64::new(0),
        }
    }

    /// Returns the site of `size`-byte blocks at `stack`, with one more reference and `true` if it
    /// is new. Returns the stack's shared site if the table is filling up, and `None` if the table
    /// is full. A new site takes over the caller's reference to the stack.
    pub(crate) fn intern(&self, stack: u32, size: u64) -> Option<(SiteId, bool)> {
        self.intern_with_limit(stack, size, SHARED_SITE_THRESHOLD)
            .or_else(|| self.intern_with_limit(stack, ANY_SIZE, MAX_SITES))
    }

    /// Adds a block to the cumulative counts of a site that the caller holds.
    pub(crate) fn count(&self, site: SiteId, amount: AllocatedAmount) {
        if site == TABLE_FULL_SITE {
            self.table_full.add(amount);
        } else if let Some([_, _, objects, bytes]) = self.slots.payload(site.number) {
            // Release: a reader that loads this count also reads the row it belongs to.
            objects.fetch_add(amount.objects_256ths, Release);
            bytes.fetch_add(amount.bytes, Relaxed);
        }
    }

    /// Drops a reference. The table's own reference remains.
    pub(crate) fn release(&self, site: SiteId) {
        // The last reference can be dropped here only if another thread has discarded a new row
        // meanwhile.
        if self.slots.release(site.number, 1) {
            self.slots.put_back(site.number);
        }
    }

    /// Evicts a site without live blocks and returns the stack whose reference it had. Returns
    /// `None` if the hand passes no such site.
    pub(crate) fn evict(&self) -> Option<u32> {
        let sites = u64::from(self.slots.end()).saturating_sub(1).max(1);
        let mut recent = None;
        for _ in 0..MAX_SCANNED_PER_EVICTION.min(2 * sites as usize) {
            let number = (self.clock_hand.fetch_add(1, Relaxed) % sites + 1) as u32;
            match self.slots.evict(number) {
                Eviction::Evicted => return Some(self.dispose(number)),
                Eviction::Recent => recent = Some(number),
                Eviction::InUse => {}
            }
        }
        // All were used recently: evict the last one.
        let number = recent?;
        (self.slots.evict(number) == Eviction::Evicted).then(|| self.dispose(number))
    }

    /// Returns the highest number + 1.
    pub(crate) fn end(&self) -> u32 {
        self.slots.end()
    }

    /// Returns the site with this number and holds it until it is released; `None` if no block is
    /// counted at it. If its first block is being counted at this moment, the site may be missing
    /// or lack the bytes of that block.
    pub(crate) fn hold(&self, number: u32) -> Option<AllocationSite> {
        let generation = self.slots.hold(number)?;
        let id = SiteId { number, generation };
        let site = self.slots.payload(number).and_then(|[stack, size, objects, bytes]| {
            let objects_256ths = objects.load(Acquire);
            let allocated = AllocatedAmount { objects_256ths, bytes: bytes.load(Relaxed) };
            let stack = stack.load(Relaxed) as u32;
            let size = size.load(Relaxed);
            (objects_256ths > 0).then_some(AllocationSite { id, stack, size, allocated })
        });
        if site.is_none() {
            self.release(id);
        }
        site
    }

    /// Returns the amount allocated while the tables were full.
    pub(crate) fn table_full_amount(&self) -> AllocatedAmount {
        self.table_full.get()
    }

    /// Returns the amount allocated at sites that were evicted.
    pub(crate) fn evicted_amount(&self) -> AllocatedAmount {
        self.evicted.get()
    }

    /// Returns the number of evicted sites.
    pub(crate) fn evictions(&self) -> &AtomicU64 {
        &self.evictions
    }

    fn intern_with_limit(&self, stack: u32, size: u64, limit: u64) -> Option<(SiteId, bool)> {
        let row = SiteRow { sites: self, stack, size, limit };
        let Interned { number, is_new } = self.index.intern(hash(stack, size), &row)?;
        if !is_new {
            self.slots.mark_recent(number);
        }
        Some((SiteId { number, generation: self.slots.generation(number) }, is_new))
    }

    /// Frees a site without references. Returns its stack.
    fn dispose(&self, number: u32) -> u32 {
        let Some([stack, size, objects, bytes]) = self.slots.payload(number) else {
            return NO_STACK;
        };
        let stack = stack.load(Relaxed) as u32;
        self.index.remove(hash(stack, size.load(Relaxed)), number);
        let amount =
            AllocatedAmount { objects_256ths: objects.load(Acquire), bytes: bytes.load(Relaxed) };
        self.evicted.add(amount);
        self.evictions.fetch_add(1, Relaxed);
        self.slots.put_back(number);
        stack
    }
}

struct SiteRow<'a> {
    sites: &'a SiteTable,
    stack: u32,
    size: u64,
    /// Limit for new numbers.
    limit: u64,
}

impl Internable for SiteRow<'_> {
    fn hold(&self, number: u32) -> bool {
        let slots = &self.sites.slots;
        if slots.hold(number).is_none() {
            return false;
        }
        let is_same = slots.payload(number).is_some_and(|[stack, size, ..]| {
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

    fn create(&self) -> Option<u32> {
        let slots = &self.sites.slots;
        let number = slots.claim_free().or_else(|| slots.claim_fresh(self.limit))?;
        let [stack, size, objects, bytes] = slots.payload(number)?;
        stack.store(u64::from(self.stack), Relaxed);
        size.store(self.size, Relaxed);
        objects.store(0, Relaxed);
        bytes.store(0, Relaxed);
        // One for the table, one for the caller.
        slots.publish(number, 2);
        Some(number)
    }

    fn discard(&self, number: u32) {
        if self.sites.slots.release(number, 2) {
            self.sites.slots.put_back(number);
        }
    }
}

fn hash(stack: u32, size: u64) -> u64 {
    mix(mix(u64::from(stack)) ^ size)
}
