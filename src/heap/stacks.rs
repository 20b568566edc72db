//! The kept stacks, each stored once: a lock-free table, addresses -> id.
//!
//! A stack is a chain of blocks of one cache line each, which hold the numbers of its frames, three
//! per word. Its id is the number of the first block. Blocks of one size cause no fragmentation.
//! Frames are interned only when a new stack is inserted.
//!
//! A stack has one reference for each site at it. Dropping the last one frees the stack and its
//! references to frames.

use super::frames::{self, FrameSlots};
use super::index::{HashIndex, Internable};
use super::sampler::mix;
use super::slots::BlockSlots;
use crate::base::sync::Ordering::Relaxed;

/// Blocks per mapping of 512 KiB.
pub(super) const BLOCKS_PER_CHUNK: usize = 1 << 13;

/// 16 MiB: 87,000 stacks of 45 frames, 65,000 of 60.
const MAX_CHUNKS: usize = 32;
pub(super) const MAX_BLOCKS: u64 = (BLOCKS_PER_CHUNK * MAX_CHUNKS) as u64;

const INDEX_WORDS: usize = 1 << 17;

/// Payload of a block: a word with the next block (low half) and the length of the stack (high
/// half), then frames.
const PAYLOAD_WORDS: usize = 1 + FRAME_WORDS;
const FRAME_WORDS: usize = 5;
/// Frames per block.
pub(super) const FRAMES_PER_BLOCK: usize = FRAMES_PER_WORD * FRAME_WORDS;
const FRAMES_PER_WORD: usize = 3;
/// Bits per frame number.
const FRAME_BITS: usize = 21;
const _: () = assert!(frames::END < 1 << FRAME_BITS);

const NEXT_BLOCK_MASK: u64 = u32::MAX as u64;

pub(crate) struct StackSlots {
    frames: FrameSlots,
    index: HashIndex,
    blocks: BlockSlots<PAYLOAD_WORDS, BLOCKS_PER_CHUNK, MAX_CHUNKS>,
}

impl StackSlots {
    pub(crate) const fn new() -> Self {
        Self {
            frames: FrameSlots::new(),
            index: HashIndex::new(INDEX_WORDS),
            blocks: BlockSlots::new(),
        }
    }

    /// Returns the id of these addresses, with one more reference; `None` if the table is full.
    pub(crate) fn intern(&self, addresses: &[u64]) -> Option<u32> {
        let stack = StackRecord { stacks: self, addresses };
        self.index.intern(hash(addresses.iter().copied()), &stack).map(|interned| interned.number)
    }

    /// Drops a reference. Id 0 means no stack and is ignored.
    pub(crate) fn release(&self, id: u32) {
        if self.blocks.release(id, 1) {
            let frames = self.get(id).into_iter().flatten();
            let addresses = frames.filter_map(|frame| self.frames.get(frame));
            self.index.remove(hash(addresses), id);
            self.dispose(id);
        }
    }

    /// Returns the frames of a held stack, innermost first.
    pub(crate) fn get(&self, id: u32) -> Option<impl ExactSizeIterator<Item = u32> + '_> {
        let [first, ..] = self.blocks.payload(id)?;
        let length = (first.load(Relaxed) >> 32) as usize;
        let mut block = id;
        Some((0..length).map(move |at| {
            if at > 0 && at % FRAMES_PER_BLOCK == 0 {
                block = self.next_block(block);
            }
            let word = self
                .blocks
                .payload(block)
                .and_then(|words| words.get(1 + at % FRAMES_PER_BLOCK / FRAMES_PER_WORD));
            let word = word.map_or(0, |word| word.load(Relaxed));
            (word >> (at % FRAMES_PER_WORD * FRAME_BITS) & ((1 << FRAME_BITS) - 1)) as u32
        }))
    }

    /// Returns the table of frames that the stacks refer to.
    pub(crate) fn frames(&self) -> &FrameSlots {
        &self.frames
    }

    /// Stores the addresses in blocks that are not published yet.
    fn store(&self, addresses: &[u64]) -> Option<u32> {
        let id = self.claim_block()?;
        let mut block = id;
        for (at, &address) in addresses.iter().enumerate() {
            let is_stored = (|| {
                if at > 0 && at % FRAMES_PER_BLOCK == 0 {
                    let next = self.claim_block()?;
                    let [link, ..] = self.blocks.payload(block)?;
                    link.store(link.load(Relaxed) & !NEXT_BLOCK_MASK | u64::from(next), Relaxed);
                    block = next;
                }
                let frame = u64::from(self.frames.intern(address)?);
                let word =
                    self.blocks.payload(block)?.get(1 + at % FRAMES_PER_BLOCK / FRAMES_PER_WORD)?;
                let packed =
                    if at.is_multiple_of(FRAMES_PER_WORD) { 0 } else { word.load(Relaxed) };
                word.store(packed | frame << (at % FRAMES_PER_WORD * FRAME_BITS), Relaxed);
                let [length, ..] = self.blocks.payload(id)?;
                length
                    .store(length.load(Relaxed) & NEXT_BLOCK_MASK | (at as u64 + 1) << 32, Relaxed);
                Some(())
            })();
            if is_stored.is_none() {
                self.dispose(id);
                return None;
            }
        }
        Some(id)
    }

    fn claim_block(&self) -> Option<u32> {
        let id = self.blocks.claim_free().or_else(|| self.blocks.claim_fresh(MAX_BLOCKS))?;
        let [first, ..] = self.blocks.payload(id)?;
        first.store(0, Relaxed);
        Some(id)
    }

    /// Frees the frames and blocks of a stack without references.
    fn dispose(&self, id: u32) {
        self.get(id).into_iter().flatten().for_each(|frame| self.frames.release(frame));
        let mut block = id;
        while block != 0 {
            let next = self.next_block(block);
            self.blocks.put_back(block);
            block = next;
        }
    }

    /// Returns the next block of the chain, or 0.
    fn next_block(&self, block: u32) -> u32 {
        self.blocks
            .payload(block)
            .map_or(0, |[link, ..]| (link.load(Relaxed) & NEXT_BLOCK_MASK) as u32)
    }
}

struct StackRecord<'a> {
    stacks: &'a StackSlots,
    addresses: &'a [u64],
}

impl Internable for StackRecord<'_> {
    fn hold(&self, id: u32) -> bool {
        if self.stacks.blocks.hold(id).is_none() {
            return false;
        }
        let frames = self.stacks.get(id).into_iter().flatten();
        let addresses = frames.map(|frame| self.stacks.frames.get(frame));
        let is_same = addresses.eq(self.addresses.iter().map(|&address| Some(address)));
        if !is_same {
            self.release(id);
        }
        is_same
    }

    fn release(&self, id: u32) {
        self.stacks.release(id);
    }

    fn create(&self) -> Option<u32> {
        let id = self.stacks.store(self.addresses)?;
        self.stacks.blocks.publish(id, 1);
        Some(id)
    }
}

fn hash(addresses: impl Iterator<Item = u64>) -> u64 {
    addresses.fold(0, |hash: u64, address| mix(hash.rotate_left(5) ^ address))
}
