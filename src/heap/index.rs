//! An append-only hash index: hash -> id, without locks.
//!
//! A word holds the upper half of a hash and an id, which is never 0. Words are written once, so a probe
//! that meets an empty word knows that what it looks for was not in before, and of two threads that put
//! the same thing in at once one fills the word and the other finds it there. An id made in vain is used
//! for the next empty word or lost: a race costs one entry of storage, never a double.

use crate::base::sync::Ordering::{AcqRel, Acquire};
use crate::os::memory::Chunk;

/// How far a search goes. At three quarters full a run this long is rarer than one in a million.
const PROBES: usize = 128;

const ID: u64 = u32::MAX as u64;

pub(crate) struct Index(Chunk);

impl Index {
    /// An index of `words` places, a power of two.
    pub(crate) const fn new(words: usize) -> Self {
        Self(Chunk::new(words))
    }

    /// The id of the thing with this hash that is the `same`, or else the id of the one `make` makes;
    /// none when `make` has none to give or the index is full here.
    pub(crate) fn intern(
        &self,
        hash: u64,
        same: impl Fn(u32) -> bool,
        make: impl FnOnce() -> Option<u32>,
    ) -> Option<u32> {
        let places = self.0.get_or_map()?;
        let tag = hash & !ID;
        let (mut make, mut made) = (Some(make), None);
        for step in 0..PROBES {
            let place = places.get((hash as usize).wrapping_add(step) % places.len())?;
            let mut entry = place.load(Acquire);
            if entry == 0 {
                if let Some(make) = make.take() {
                    made = make();
                }
                let id = made?;
                match place.compare_exchange(0, tag | u64::from(id), AcqRel, Acquire) {
                    Ok(_) => return Some(id),
                    Err(winner) => entry = winner,
                }
            }
            let id = (entry & ID) as u32;
            if entry & !ID == tag && same(id) {
                return Some(id);
            }
        }
        None
    }
}
