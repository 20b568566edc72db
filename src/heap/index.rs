//! A lock-free hash index from content to slot numbers.
//!
//! A word holds the upper half of a hash and a number, which is never 0. An item may be in one of
//! twelve lines of eight words. Most items are in their first line, so a lookup reads about one
//! cache line, and writing 0 removes an entry.
//!
//! If two threads insert the same item at once, one finds the entry of the other, unless another
//! entry of those lines is removed at that moment. In that case the item gets two numbers: correct,
//! at the cost of one more entry.

use crate::base::sync::Ordering::{AcqRel, Acquire, Relaxed};
use crate::os::mapped_memory::MappedWords;

/// Words per cache line.
const WORDS_PER_LINE: usize = 8;

/// Number of lines that may hold an item: at 75 % load, fewer than one item in 100,000 finds all of
/// them full.
const CANDIDATE_LINES: usize = 12;

const NUMBER_MASK: u64 = u32::MAX as u64;

pub(crate) struct HashIndex(MappedWords);

impl HashIndex {
    /// Creates an index of `words` positions, a power of two.
    pub(crate) const fn new(words: usize) -> Self {
        Self(MappedWords::new(words))
    }

    /// Returns the number of an item with this hash, held. `None` if no slot can be created or its
    /// lines are full.
    pub(crate) fn intern(&self, hash: u64, item: &impl Internable) -> Option<Interned> {
        let words = self.0.get_or_map()?;
        let tag = hash & !NUMBER_MASK;
        let positions = candidate_positions(words.len(), hash);
        let mut new_number = None;
        loop {
            let mut free = None;
            for at in positions.clone() {
                let word = words.get(at)?;
                let entry = word.load(Acquire);
                if entry == 0 {
                    free = free.or(Some(word));
                    continue;
                }
                let number = (entry & NUMBER_MASK) as u32;
                if entry & !NUMBER_MASK != tag || !item.hold(number) {
                    continue;
                }
                // Another thread may have removed the entry and reused the number for an item that
                // is not inserted yet.
                if word.load(Acquire) != entry {
                    item.release(number);
                    continue;
                }
                if let Some(unused) = new_number {
                    item.discard(unused);
                }
                return Some(Interned { number, is_new: false });
            }
            let number = match new_number {
                Some(number) => number,
                None => item.create()?,
            };
            new_number = Some(number);
            let Some(free) = free else {
                item.discard(number);
                return None;
            };
            // This word was free during the comparison. A thread that inserted the same item
            // meanwhile used this word, so the exchange fails.
            let entry = tag | u64::from(number);
            if free.compare_exchange(0, entry, AcqRel, Acquire).is_ok() {
                return Some(Interned { number, is_new: true });
            }
        }
    }

    /// Removes the entry of a number.
    pub(crate) fn remove(&self, hash: u64, number: u32) {
        let Some(words) = self.0.get() else { return };
        let entry = hash & !NUMBER_MASK | u64::from(number);
        for at in candidate_positions(words.len(), hash) {
            let Some(word) = words.get(at) else { continue };
            if word.compare_exchange(entry, 0, AcqRel, Relaxed).is_ok() {
                return;
            }
        }
    }
}

/// An item to find or insert.
pub(crate) trait Internable {
    /// Adds a reference to the slot with this number and returns `true` if it holds the item.
    fn hold(&self, number: u32) -> bool;

    /// Drops the reference of `hold`.
    fn release(&self, number: u32);

    /// Creates a slot with the item, held. Returns `None` if there is no space.
    fn create(&self) -> Option<u32>;

    /// Drops an unused result of `create`.
    fn discard(&self, number: u32) {
        self.release(number);
    }
}

/// Result of [`HashIndex::intern`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interned {
    pub(crate) number: u32,
    /// `true` if the item was not in the index before.
    pub(crate) is_new: bool,
}

/// Returns the positions that may hold an item with this hash, in search order. All threads insert
/// into the first free one, so concurrent insertions of one item meet there.
fn candidate_positions(words: usize, hash: u64) -> impl Iterator<Item = usize> + Clone {
    let lines = words / WORDS_PER_LINE;
    let first = hash as usize;
    let step = (hash >> 32) as usize | 1;
    (0..CANDIDATE_LINES.min(lines / 2)).flat_map(move |nth| {
        let line = first.wrapping_add(step.wrapping_mul(nth)) % lines;
        line * WORDS_PER_LINE..(line + 1) * WORDS_PER_LINE
    })
}
