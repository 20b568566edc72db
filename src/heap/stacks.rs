//! Every stack once: addresses -> id, append-only, without locks.
//!
//! A stack lies in an arena as its length and the numbers of its frames, two to a word, and its id is its
//! place there. Arena space is claimed by moving one cursor; a stack never crosses a chunk, so that it
//! reads back as one slice. Only a stack that is seen for the first time has its frames numbered.

use super::frames::Frames;
use super::index::Index;
use super::sampler::mix;
use crate::base::sync::AtomicU64;
use crate::base::sync::Ordering::Relaxed;
use crate::os::memory::Chunk;

/// 512 KiB.
pub(super) const CHUNK: usize = 1 << 16;

/// 12 MiB: some 65 000 stacks of 45 frames. A program that has more is shown the rest as unknown.
const CHUNKS: usize = 24;

const PLACES: usize = 1 << 17;

pub(crate) struct Stacks {
    frames: Frames,
    index: Index,
    arena: [Chunk; CHUNKS],
    /// The first word that nobody has claimed. Word 0 is nobody's: an id is never 0.
    next: AtomicU64,
}

impl Stacks {
    pub(crate) const fn new() -> Self {
        Self {
            frames: Frames::new(),
            index: Index::new(PLACES),
            arena: [const { Chunk::new(CHUNK) }; CHUNKS],
            next: AtomicU64::new(1),
        }
    }

    /// The id of these addresses; none when the table is full.
    pub(crate) fn intern(&self, addresses: &[u64]) -> Option<u32> {
        let hash = addresses
            .iter()
            .fold(addresses.len() as u64, |hash, &address| mix(hash.rotate_left(5) ^ address));
        let same = |id| {
            self.get(id).is_some_and(|frames| {
                frames.len() == addresses.len()
                    && frames
                        .zip(addresses)
                        .all(|(frame, &address)| self.frames.get(frame) == Some(address))
            })
        };
        // The index publishes the id with release, after these plain stores.
        self.index.intern(hash, same, || {
            let numbers = |pair: &[u64]| {
                pair.iter().rev().try_fold(0, |word, &address| {
                    Some(word << 32 | u64::from(self.frames.intern(address)?))
                })
            };
            // All are numbered before room is claimed, which cannot be given back.
            addresses.chunks(2).try_for_each(|pair| numbers(pair).map(drop))?;
            let (id, place) = self.claim(1 + addresses.len().div_ceil(2))?;
            let (length, words) = place.split_first()?;
            for (word, pair) in words.iter().zip(addresses.chunks(2)) {
                word.store(numbers(pair)?, Relaxed);
            }
            length.store(addresses.len() as u64, Relaxed);
            Some(id)
        })
    }

    /// The frames of an id of this table, innermost first.
    pub(crate) fn get(&self, id: u32) -> Option<impl ExactSizeIterator<Item = u32> + '_> {
        let chunk = self.arena.get(id as usize / CHUNK)?.get()?;
        let (length, words) = chunk.get(id as usize % CHUNK..)?.split_first()?;
        let length = usize::try_from(length.load(Relaxed)).ok()?;
        let words = words.get(..length.div_ceil(2))?;
        let word = |at: usize| words.get(at / 2).map_or(0, |word| word.load(Relaxed));
        Some((0..length).map(move |at| (word(at) >> (at % 2 * 32)) as u32))
    }

    /// The frames that stacks of this table refer to.
    pub(crate) fn frames(&self) -> &Frames {
        &self.frames
    }

    fn claim(&self, words: usize) -> Option<(u32, &[AtomicU64])> {
        let step = |next: u64| {
            let room = CHUNK - next as usize % CHUNK;
            let start = if words <= room { next } else { next + room as u64 };
            (words <= CHUNK && (start as usize) < CHUNK * CHUNKS)
                .then_some((start, start + words as u64))
        };
        let next = self.next.fetch_update(Relaxed, Relaxed, |next| Some(step(next)?.1)).ok()?;
        let start = step(next)?.0 as usize;
        let chunk = self.arena.get(start / CHUNK)?.get_or_map()?;
        let place = chunk.get(start % CHUNK..start % CHUNK + words)?;
        Some((u32::try_from(start).ok()?, place))
    }
}
