//! "Certainly not recorded", for nearly every free.
//!
//! A counting filter: the counter of the 256 bytes a block begins in is counted up before its record goes
//! in, down after it came out. A block that was recorded is freed after its allocation returned, so whoever
//! frees it sees its count; zero therefore means no. `tests/heap_loom.rs` tries the orders.
//!
//! Neighbours share a counter, because a program frees what lies together: a cache line of counters is
//! good for 16 KiB of heap, so the frees of a working set of a megabyte touch 64 lines, which stay in the
//! first-level cache. With a counter for each block it was a line for each kilobyte. What is lost is
//! little: the neighbours of a record are sent on to look, at 512 KiB between samples one block in 2000.
//!
//! At 512 KiB a heap of 1 GiB has 2000 records under 65,536 counters, which sends one free in thirty on to
//! look, however large the pieces.

use crate::base::sync::AtomicU8;
use crate::base::sync::Ordering::Relaxed;

pub(super) const ALL: usize = 1 << 16;

/// Of the address, the bits within a piece of 256 bytes.
const PIECE: usize = 8;

/// How far apart the counters of two blocks are that lie 16 MiB apart, the length after which the counters
/// begin again. Odd, so that places at regular distances, as arenas have them, meet only after a terabyte.
const SPREAD: u64 = 37;

/// A counter that reached this stays: it says "perhaps" for ever, which costs time and not truth.
const STUCK: u8 = u8::MAX;

/// A filter of so many counters.
pub(crate) struct Filter<const COUNTERS: usize = ALL>([AtomicU8; COUNTERS]);

impl<const COUNTERS: usize> Filter<COUNTERS> {
    pub(crate) const fn new() -> Self {
        Self([const { AtomicU8::new(0) }; COUNTERS])
    }

    /// Whether the block at `address` may have been recorded.
    #[inline]
    pub(crate) fn may_hold(&self, address: usize) -> bool {
        self.counter(address).load(Relaxed) != 0
    }

    pub(crate) fn add(&self, address: usize) {
        self.update(address, |count| count.saturating_add(1));
    }

    pub(crate) fn remove(&self, address: usize) {
        self.update(address, |count| count.saturating_sub(1));
    }

    fn update(&self, address: usize, next: impl Fn(u8) -> u8) {
        let step = |count| (count != STUCK).then(|| next(count));
        // Fails only for a stuck counter, which stays as it is.
        let _ = self.counter(address).fetch_update(Relaxed, Relaxed, step);
    }

    #[inline]
    fn counter(&self, address: usize) -> &AtomicU8 {
        // One multiplication, because every free does this: the number of the piece, and SPREAD more for each
        // 16 MiB. The part of that which falls within 16 MiB makes pieces 0.14 bytes shorter than 256.
        let place = (address as u64).wrapping_mul(1 << 16 | SPREAD) >> (16 + PIECE);
        &self.0[place as usize % COUNTERS]
    }
}
