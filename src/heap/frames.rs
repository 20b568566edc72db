//! The addresses of all kept stacks, each stored once: a lock-free table, address -> number.
//!
//! Numbers start at 1 and are dense, so they serve directly as location ids of a profile: a dump
//! needs no sorting or hashing of frames, and a stack takes half the space.
//!
//! A number has one reference for each position in a stack. A number without references is reused
//! for another address, except during a dump: a dump writes samples with the number first and its
//! address later.

use super::index::{HashIndex, Internable};
use super::sampler::mix;
use super::slots::BlockSlots;
use crate::base::sync::Ordering::{Relaxed, SeqCst};
use crate::base::sync::{AtomicU64, fence};
use crate::model::Marker;

/// Frames per mapping of 384 KiB.
const FRAMES_PER_CHUNK: usize = 1 << 14;

/// 131,072 addresses: ten times the number measured in a service of half a million lines.
const MAX_CHUNKS: usize = 8;
pub(super) const MAX_ADDRESSES: u64 = (FRAMES_PER_CHUNK * MAX_CHUNKS) as u64;

const INDEX_WORDS: usize = 1 << 18;

/// Numbers of the two frames that belong to no stack of the table.
const TABLE_FULL: u32 = MAX_ADDRESSES as u32;
const EVICTED: u32 = MAX_ADDRESSES as u32 + 1;

/// Highest number + 1.
pub(super) const END: u32 = MAX_ADDRESSES as u32 + 2;

/// Stack of blocks that found the tables full.
pub(super) const TABLE_FULL_STACK: [u32; 1] = [TABLE_FULL];
/// Stack of the counts of evicted stacks.
pub(super) const EVICTED_STACK: [u32; 1] = [EVICTED];

pub(crate) struct FrameSlots {
    index: HashIndex,
    slots: BlockSlots<1, FRAMES_PER_CHUNK, MAX_CHUNKS>,
    /// Number of dumps started, in the upper half; number of running dumps, in the lower half.
    dumps: AtomicU64,
}

const DUMP_START_STEP: u64 = 1 << 32 | 1;
const RUNNING_DUMPS_MASK: u64 = u32::MAX as u64;

impl FrameSlots {
    pub(crate) const fn new() -> Self {
        Self {
            index: HashIndex::new(INDEX_WORDS),
            slots: BlockSlots::new(),
            dumps: AtomicU64::new(0),
        }
    }

    /// Returns the number of `address`, with one more reference; `None` if the table is full.
    pub(crate) fn intern(&self, address: u64) -> Option<u32> {
        self.index
            .intern(mix(address), &FrameRecord { frames: self, address })
            .map(|interned| interned.number)
    }

    /// Drops a reference.
    pub(crate) fn release(&self, number: u32) {
        if self.slots.release(number, 1) {
            if let Some(address) = self.get(number) {
                self.index.remove(mix(address), number);
            }
            self.slots.put_back(number);
        }
    }

    /// Returns the address of a number.
    pub(crate) fn get(&self, number: u32) -> Option<u64> {
        match number {
            TABLE_FULL => Some(Marker::TablesFull.address()),
            EVICTED => Some(Marker::Evicted.address()),
            _ => Some(self.slots.payload(number)?[0].load(Relaxed)),
        }
    }

    /// Returns all numbers with their addresses. An address that two threads insert at once may
    /// have two numbers. A number being inserted has the address 0. A number that is not in use
    /// keeps its last address.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        let markers = [TABLE_FULL, EVICTED];
        (1..self.slots.end()).chain(markers).filter_map(|number| Some((number, self.get(number)?)))
    }

    /// Keeps numbers from being reused until `end_dump`.
    pub(crate) fn begin_dump(&self) {
        self.dumps.fetch_add(DUMP_START_STEP, SeqCst);
        fence(SeqCst);
    }

    pub(crate) fn end_dump(&self) {
        self.dumps.fetch_sub(1, SeqCst);
    }

    /// Reuses a free number for `address`. Returns `None` during a dump.
    fn reuse(&self, address: u64) -> Option<u32> {
        let dumps = self.dumps.load(SeqCst);
        if dumps & RUNNING_DUMPS_MASK != 0 {
            return None;
        }
        let number = self.slots.claim_free()?;
        self.set_address(number, address);
        // A dump that started before this point may have read either address, but has no sample
        // with this number.
        fence(SeqCst);
        if self.dumps.load(SeqCst) != dumps {
            self.slots.put_back(number);
            return None;
        }
        Some(number)
    }

    fn set_address(&self, number: u32, address: u64) {
        if let Some([word]) = self.slots.payload(number) {
            word.store(address, Relaxed);
        }
    }
}

struct FrameRecord<'a> {
    frames: &'a FrameSlots,
    address: u64,
}

impl Internable for FrameRecord<'_> {
    fn hold(&self, number: u32) -> bool {
        let slots = &self.frames.slots;
        let is_same = slots.hold(number).map(|_| self.frames.get(number) == Some(self.address));
        if is_same == Some(false) {
            self.release(number);
        }
        is_same == Some(true)
    }

    fn release(&self, number: u32) {
        self.frames.release(number);
    }

    fn create(&self) -> Option<u32> {
        let number = self.frames.reuse(self.address).or_else(|| {
            let number = self.frames.slots.claim_fresh(MAX_ADDRESSES)?;
            self.frames.set_address(number, self.address);
            Some(number)
        })?;
        self.frames.slots.publish(number, 1);
        Some(number)
    }
}
