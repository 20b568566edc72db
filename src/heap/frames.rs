//! Every address of the stacks that are kept, once: address -> number, without locks.
//!
//! Numbers begin at 1 and are dense, so they serve as the ids of a profile's locations just as they
//! are: a dump neither sorts nor hashes what stacks are made of, and a stack takes half the room.
//!
//! A number has a reference for each place in a stack. One that has none left is used again for another address, but not
//! while a dump is under way: the dump has written samples with the number and writes its address later.

use super::index::{Index, Thing};
use super::sampler::mix;
use super::slots::Slots;
use crate::base::sync::Ordering::{Relaxed, SeqCst};
use crate::base::sync::{AtomicU64, fence};
use crate::model::Marker;

/// 384 KiB.
const CHUNK: usize = 1 << 14;

/// 131,072 addresses: ten times what a service of half a million lines was seen to allocate under.
const CHUNKS: usize = 8;
pub(super) const CAP: u64 = (CHUNK * CHUNKS) as u64;

const PLACES: usize = 1 << 18;

/// The numbers of the two frames that belong to no stack of the table.
const NO_ROOM: u32 = CAP as u32;
const NO_LONGER_KEPT: u32 = CAP as u32 + 1;

/// One past the highest number.
pub(super) const END: u32 = CAP as u32 + 2;

/// The stack of what has none for want of room.
pub(super) const NO_ROOM_STACK: [u32; 1] = [NO_ROOM];
/// The stack of what was allocated at stacks that are no longer in the table.
pub(super) const NO_LONGER_KEPT_STACK: [u32; 1] = [NO_LONGER_KEPT];

pub(crate) struct Frames {
    index: Index,
    slots: Slots<1, CHUNK, CHUNKS>,
    /// Dumps ever begun, in the upper half, and those under way.
    dumps: AtomicU64,
}

const DUMP_BEGUN: u64 = 1 << 32 | 1;
const UNDER_WAY: u64 = u32::MAX as u64;

impl Frames {
    pub(crate) const fn new() -> Self {
        Self { index: Index::new(PLACES), slots: Slots::new(), dumps: AtomicU64::new(0) }
    }

    /// The number of `address`, with one more reference; `None` if the table is full.
    pub(crate) fn intern(&self, address: u64) -> Option<u32> {
        self.index.intern(mix(address), &Frame { frames: self, address }).map(|it| it.number)
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

    /// The address of a number of this table.
    pub(crate) fn get(&self, number: u32) -> Option<u64> {
        match number {
            NO_ROOM => Some(Marker::NoRoom.address()),
            NO_LONGER_KEPT => Some(Marker::NoLongerKept.address()),
            _ => Some(self.slots.payload(number)?[0].load(Relaxed)),
        }
    }

    /// All numbers with their addresses. An address that two threads put in at once may have two. One that
    /// is being put in is 0. Those that are not in use have the last address.
    pub(crate) fn iter(&self) -> impl Iterator<Item = (u32, u64)> + '_ {
        let markers = [NO_ROOM, NO_LONGER_KEPT];
        (1..self.slots.end()).chain(markers).filter_map(|number| Some((number, self.get(number)?)))
    }

    /// Keeps addresses at their numbers until `end_dump`.
    pub(crate) fn begin_dump(&self) {
        self.dumps.fetch_add(DUMP_BEGUN, SeqCst);
        fence(SeqCst);
    }

    pub(crate) fn end_dump(&self) {
        self.dumps.fetch_sub(1, SeqCst);
    }

    /// A number that is not in use, for `address`; `None` while a dump is under way.
    fn reuse(&self, address: u64) -> Option<u32> {
        let dumps = self.dumps.load(SeqCst);
        if dumps & UNDER_WAY != 0 {
            return None;
        }
        let number = self.slots.claim_free()?;
        self.set(number, address);
        // A dump that begins before this may have read the number with either address, and has no sample with it.
        fence(SeqCst);
        if self.dumps.load(SeqCst) != dumps {
            self.slots.put_back(number);
            return None;
        }
        Some(number)
    }

    fn set(&self, number: u32, address: u64) {
        if let Some([word]) = self.slots.payload(number) {
            word.store(address, Relaxed);
        }
    }
}

struct Frame<'a> {
    frames: &'a Frames,
    address: u64,
}

impl Thing for Frame<'_> {
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

    fn make(&self) -> Option<u32> {
        let number = self.frames.reuse(self.address).or_else(|| {
            let number = self.frames.slots.claim_fresh(CAP)?;
            self.frames.set(number, self.address);
            Some(number)
        })?;
        self.frames.slots.publish(number, 1);
        Some(number)
    }
}
