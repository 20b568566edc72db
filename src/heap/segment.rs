//! A segment of the table of live blocks, and the protocol of its records.
//!
//! ```text
//! keys    [k0..k7] [k8..k15] …               eight per cache line; 0 is free
//! records {sequence, site, size, weight} …   one for each key
//! ```
//!
//! **Writers.** A block is inserted after the inner allocator has returned it and before the
//! program receives it. It is removed before the inner allocator gets it back. An address is
//! therefore in the table at most once, and only one thread at a time inserts or removes it;
//! threads compete only for free keys. A key goes 0 -> CLAIMED -> address -> 0.
//!
//! **Readers.** A dump reads concurrently. `sequence` is that of a seqlock: odd while the record is
//! written. A dump that reads the same even sequence and the same key before and after has read one
//! consistent record. This holds even if the block was freed and its address reused in between. It
//! skips records that fail this check: those blocks are being allocated or freed at this moment.
//!
//! A thread that never continues after a step (fork copies only one thread to the child) costs one
//! key. A signal handler may run in the middle and use the table. Nothing waits.
//! `tests/loom_heap` tests the interleavings.

use std::ops::Range;

use super::sampler::mix;
use super::sites::{AllocatedAmount, SiteId};
use crate::base::sync::{AtomicU64, Ordering, fence};

/// Keys per cache line.
pub(crate) const KEYS_PER_LINE: usize = 8;

pub(crate) const RECORD_WORDS: usize = 4;

const FREE: u64 = 0;
const CLAIMED: u64 = 1;

/// Data of a recorded block.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct BlockRecord {
    pub(crate) site: SiteId,
    pub(crate) size: u64,
    pub(crate) weight: f64,
}

impl BlockRecord {
    /// Returns the amount that the block stands for.
    pub(crate) fn amount(&self) -> AllocatedAmount {
        AllocatedAmount::of_blocks(self.weight, self.size)
    }

    /// Returns the block's contribution to the variance of the bytes, in square bytes.
    /// Horvitz-Thompson: `size^2 * (1 - p) / p^2` with `p = 1 / weight`.
    pub(crate) fn variance(&self) -> f64 {
        let size = self.size as f64;
        size * size * self.weight * (self.weight - 1.0)
    }
}

pub(crate) struct TableSegment<'a> {
    keys: &'a [AtomicU64],
    records: &'a [AtomicU64],
}

impl<'a> TableSegment<'a> {
    /// Splits `words` into as many keys and records as fit.
    pub(crate) fn from_words(words: &'a [AtomicU64]) -> Self {
        let (keys, records) = words.split_at(words.len() / (1 + RECORD_WORDS));
        Self { keys, records }
    }

    /// Returns the number of keys.
    pub(crate) fn len(&self) -> usize {
        self.keys.len()
    }

    /// Returns the two lines that may contain `address`.
    pub(crate) fn candidate_lines(&self, address: usize) -> [Range<usize>; 2] {
        let lines = self.keys.len() / KEYS_PER_LINE;
        // The hash differs per segment: addresses that collide in one must not collide in the next.
        let hash = mix((address + lines) as u64) as usize;
        [hash % lines, (hash >> 32) % lines]
            .map(|line| line * KEYS_PER_LINE..(line + 1) * KEYS_PER_LINE)
    }

    /// Returns the positions that may contain `address`, those of the emptier line first. Filling
    /// the emptier of two lines avoids overflow until nearly all are full (Azar et al. 1994).
    pub(crate) fn candidate_positions(
        &self,
        address: usize,
    ) -> impl Iterator<Item = usize> + use<> {
        let is_free = |at: &usize| self.keys[*at].load(Ordering::Relaxed) == FREE;
        let [one, other] = self.candidate_lines(address);
        let [free, other_free] = [&one, &other].map(|line| line.clone().filter(is_free).count());
        if free >= other_free { one.chain(other) } else { other.chain(one) }
    }

    pub(crate) fn record_words(&self, at: usize) -> &'a [AtomicU64; RECORD_WORDS] {
        // `at` is below `keys.len()`, and each key has a record.
        self.records[at * RECORD_WORDS..].first_chunk().unwrap_or(&EMPTY_RECORD)
    }

    /// Inserts a block at `at` if the key is free.
    pub(crate) fn try_insert(&self, at: usize, address: u64, record: BlockRecord) -> bool {
        let key = &self.keys[at];
        if key.load(Ordering::Relaxed) != FREE
            || key.compare_exchange(FREE, CLAIMED, Ordering::Acquire, Ordering::Relaxed).is_err()
        {
            return false;
        }
        let [sequence, site, size, weight] = self.record_words(at);
        let previous = sequence.load(Ordering::Relaxed);
        sequence.store(previous.wrapping_add(1), Ordering::Relaxed);
        fence(Ordering::Release);
        site.store(record.site.to_word(), Ordering::Relaxed);
        size.store(record.size, Ordering::Relaxed);
        weight.store(record.weight.to_bits(), Ordering::Relaxed);
        sequence.store(previous.wrapping_add(2), Ordering::Release);
        key.store(address, Ordering::Release);
        true
    }

    /// Removes a block if it is at `at`.
    pub(crate) fn try_take(&self, at: usize, address: u64) -> Option<BlockRecord> {
        let key = &self.keys[at];
        if key.load(Ordering::Acquire) != address {
            return None;
        }
        let [_, site, size, weight] = self.record_words(at);
        let record = BlockRecord {
            site: SiteId::from_word(site.load(Ordering::Relaxed)),
            size: size.load(Ordering::Relaxed),
            weight: f64::from_bits(weight.load(Ordering::Relaxed)),
        };
        // Fails only if the program frees one block twice at once: the record then belongs to
        // another block.
        key.compare_exchange(address, FREE, Ordering::AcqRel, Ordering::Relaxed).ok()?;
        Some(record)
    }

    /// Returns the record at `at`, or `None` if the key is free or the record changes during the
    /// read.
    pub(crate) fn read(&self, at: usize) -> Option<BlockRecord> {
        let view = self.read_unvalidated(at)?;
        self.is_unchanged(at, &view).then_some(view.record)
    }

    /// Returns the possibly inconsistent record at `at`; valid only if `is_unchanged` returns
    /// `true` afterwards.
    pub(crate) fn read_unvalidated(&self, at: usize) -> Option<RecordView> {
        let address = self.keys[at].load(Ordering::Acquire);
        if address == FREE || address == CLAIMED {
            return None;
        }
        let [sequence, site, size, weight] = self.record_words(at);
        let sequence = sequence.load(Ordering::Acquire);
        let record = BlockRecord {
            site: SiteId::from_word(site.load(Ordering::Relaxed)),
            size: size.load(Ordering::Relaxed),
            weight: f64::from_bits(weight.load(Ordering::Relaxed)),
        };
        Some(RecordView { address, sequence, record })
    }

    pub(crate) fn is_unchanged(&self, at: usize, view: &RecordView) -> bool {
        fence(Ordering::Acquire);
        let [sequence, ..] = self.record_words(at);
        view.sequence.is_multiple_of(2)
            && sequence.load(Ordering::Relaxed) == view.sequence
            && self.keys[at].load(Ordering::Relaxed) == view.address
    }
}

pub(crate) struct RecordView {
    address: u64,
    sequence: u64,
    record: BlockRecord,
}

static EMPTY_RECORD: [AtomicU64; RECORD_WORDS] = [const { AtomicU64::new(0) }; RECORD_WORDS];
