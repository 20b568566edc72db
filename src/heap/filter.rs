//! A counting filter that identifies blocks without a record, for nearly every free.
//!
//! Each 256-byte piece of memory maps to a counter. It is incremented before the record of a block
//! that starts there is inserted, and decremented after the record is removed. A recorded block is
//! freed after its allocation returned, so the freeing thread reads a counter that includes the
//! block; 0 means that it has no record. `tests/loom_heap` tests the interleavings.
//!
//! Neighbouring blocks share a counter, because programs free neighbours together. A cache line of
//! counters covers 16 KiB of heap, so the frees of a working set of 1 MiB touch 64 lines. These
//! stay in the L1 cache. One counter per block would need a line per KiB. The cost is small:
//! neighbours of a record need a table lookup, at 512 KiB between samples one block in 2000.
//!
//! At 512 KiB a heap of 1 GiB has 2000 records under 65,536 counters. One free in thirty needs a
//! lookup, for any size of piece.

use crate::base::sync::AtomicU8;
use crate::base::sync::Ordering::Relaxed;

pub(super) const DEFAULT_COUNTERS: usize = 1 << 16;

/// Low bits of an address that are the offset in a piece of 256 bytes.
const PIECE_BITS: usize = 8;

/// Distance of the counters of two blocks that are 16 MiB apart, the length after which counters
/// repeat. Odd, so that addresses at regular distances, as in arenas, share a counter only after 1
/// TiB.
const SPREAD: u64 = 37;

/// Value at which a counter stays forever. It costs lookups, not correctness.
const SATURATED: u8 = u8::MAX;

/// A filter of `COUNTERS` counters.
pub(crate) struct AddressFilter<const COUNTERS: usize = DEFAULT_COUNTERS>([AtomicU8; COUNTERS]);

impl<const COUNTERS: usize> AddressFilter<COUNTERS> {
    pub(crate) const fn new() -> Self {
        Self([const { AtomicU8::new(0) }; COUNTERS])
    }

    /// Returns `false` if the block at `address` is certainly not recorded.
    #[inline]
    pub(crate) fn may_contain(&self, address: usize) -> bool {
        self.counter(address).load(Relaxed) != 0
    }

    pub(crate) fn add(&self, address: usize) {
        self.update(address, |count| count.saturating_add(1));
    }

    pub(crate) fn remove(&self, address: usize) {
        self.update(address, |count| count.saturating_sub(1));
    }

    fn update(&self, address: usize, next: impl Fn(u8) -> u8) {
        let step = |count| (count != SATURATED).then(|| next(count));
        // Fails only for a saturated counter, which stays unchanged.
        let _ = self.counter(address).fetch_update(Relaxed, Relaxed, step);
    }

    #[inline]
    fn counter(&self, address: usize) -> &AtomicU8 {
        // One multiplication, because every free computes this: piece number + SPREAD * (address /
        // 16 MiB). Within 16 MiB the SPREAD term makes pieces 0.14 bytes shorter than 256.
        let position = (address as u64).wrapping_mul(1 << 16 | SPREAD) >> (16 + PIECE_BITS);
        &self.0[position as usize % COUNTERS]
    }
}
