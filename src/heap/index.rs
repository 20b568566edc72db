//! A hash index from content to slot numbers, without locks.
//!
//! A word holds the upper half of a hash and a number, which is never 0. A thing belongs in one of twelve lines of
//! eight words, most in the first, so a lookup reads about one cache line and an entry can be removed by writing 0.
//!
//! Of two threads that put the same thing in at once one finds the entry of the other, unless another entry of those
//! lines goes at that moment. Then the thing has two numbers: correct, and one entry of storage more.

use crate::base::sync::Ordering::{AcqRel, Acquire, Relaxed};
use crate::os::memory::Chunk;

/// Words to a cache line.
const LINE: usize = 8;

/// Lines that a thing may be in: at three quarters full fewer than one in 100,000 finds all of them full.
const LINES: usize = 12;

const NUMBER: u64 = u32::MAX as u64;

pub(crate) struct Index(Chunk);

impl Index {
    /// An index of `words` places, a power of two.
    pub(crate) const fn new(words: usize) -> Self {
        Self(Chunk::new(words))
    }

    /// The number of a thing with this hash, held; `None` if none can be made or its lines are full.
    pub(crate) fn intern(&self, hash: u64, thing: &impl Thing) -> Option<Interned> {
        let words = self.0.get_or_map()?;
        let tag = hash & !NUMBER;
        let places = places(words.len(), hash);
        let mut made = None;
        loop {
            let mut free = None;
            for at in places.clone() {
                let word = words.get(at)?;
                let entry = word.load(Acquire);
                if entry == 0 {
                    free = free.or(Some(word));
                    continue;
                }
                let number = (entry & NUMBER) as u32;
                if entry & !NUMBER != tag || !thing.hold(number) {
                    continue;
                }
                // The number may have been taken out and be another thread's, which has not put it in.
                if word.load(Acquire) != entry {
                    thing.release(number);
                    continue;
                }
                if let Some(made) = made {
                    thing.discard(made);
                }
                return Some(Interned { number, is_new: false });
            }
            let number = match made {
                Some(number) => number,
                None => thing.make()?,
            };
            made = Some(number);
            let Some(free) = free else {
                thing.discard(number);
                return None;
            };
            // The word that was free when the others were compared: if another thread has put the same thing in, it is there.
            let entry = tag | u64::from(number);
            if free.compare_exchange(0, entry, AcqRel, Acquire).is_ok() {
                return Some(Interned { number, is_new: true });
            }
        }
    }

    /// Removes the entry of a number.
    pub(crate) fn remove(&self, hash: u64, number: u32) {
        let Some(words) = self.0.get() else { return };
        let entry = hash & !NUMBER | u64::from(number);
        for at in places(words.len(), hash) {
            let Some(word) = words.get(at) else { continue };
            if word.compare_exchange(entry, 0, AcqRel, Relaxed).is_ok() {
                return;
            }
        }
    }
}

/// A thing to be found or put in.
pub(crate) trait Thing {
    /// Adds a reference to the slot with this number and returns `true`, if it holds the thing.
    fn hold(&self, number: u32) -> bool;

    /// Drops the reference of `hold`.
    fn release(&self, number: u32);

    /// Makes a slot with the thing, held. `None` if there is no room.
    fn make(&self) -> Option<u32>;

    /// Drops what `make` has made in vain.
    fn discard(&self, number: u32) {
        self.release(number);
    }
}

/// Result of [`Index::intern`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Interned {
    pub(crate) number: u32,
    /// The thing was not in the index before.
    pub(crate) is_new: bool,
}

/// The words where a thing with this hash may be, in the order in which they are tried. All threads put a thing in the
/// first that is free, so those that put the same in at once meet there.
fn places(words: usize, hash: u64) -> impl Iterator<Item = usize> + Clone {
    let lines = words / LINE;
    let (first, step) = (hash as usize, (hash >> 32) as usize | 1);
    (0..LINES.min(lines / 2)).flat_map(move |nth| {
        let line = first.wrapping_add(step.wrapping_mul(nth)) % lines;
        line * LINE..(line + 1) * LINE
    })
}
