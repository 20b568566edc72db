//! "Certainly not recorded", for nearly every free.
//!
//! A counting filter: the counter of the 256 bytes a block begins in is counted up before its record goes
//! in, down after it came out. A block that was recorded is freed after its allocation returned, so whoever
//! frees it sees its count; zero therefore means no.
//!
//! Neighbours share a counter, because a program frees what lies together: a cache line of counters is
//! good for 16 KiB of heap, so the frees of a working set of a megabyte touch 64 lines, which stay in the
//! first-level cache. With a counter for each block it was a line for each kilobyte. What is lost is
//! little: the neighbours of a record are sent on to look, at 512 KiB between samples one block in 2000.
//!
//! At 512 KiB a heap of 1 GiB has 2000 records under 65,536 counters, which sends one free in thirty on to
//! look, however large the pieces.

use std::sync::atomic::{AtomicU8, Ordering::Relaxed};

const COUNTERS: usize = 1 << 16;

/// Of the address, the bits within a piece of 256 bytes.
const PIECE: usize = 8;

/// How far apart the counters of two blocks are that lie 16 MiB apart, the length after which the counters
/// begin again. Odd, so that places at regular distances, as arenas have them, meet only after a terabyte.
const SPREAD: u64 = 37;

/// A counter that reached this stays: it says "perhaps" for ever, which costs time and not truth.
const STUCK: u8 = u8::MAX;

pub(crate) struct Filter([AtomicU8; COUNTERS]);

impl Filter {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_is_held_from_its_add_to_its_remove() {
        let filter = Filter::new();
        assert!(!filter.may_hold(0x7f00_1230));
        filter.add(0x7f00_1230);
        filter.add(0x7f00_1230);
        filter.remove(0x7f00_1230);
        assert!(filter.may_hold(0x7f00_1230));
        filter.remove(0x7f00_1230);
        assert!(!filter.may_hold(0x7f00_1230));
    }

    #[test]
    fn neighbours_share_a_counter_and_far_ones_hardly_ever() {
        let filter = Filter::new();
        filter.add(0x7f00_1230);
        let near = (0x7f00_0000..0x7f00_2000).step_by(16);
        let held: Vec<_> = near.filter(|&address| filter.may_hold(address)).collect();
        let (first, last) = (held[0], held[held.len() - 1]);
        assert!((first..=last).contains(&0x7f00_1230), "{held:x?}");
        assert_eq!(held.len(), (last - first) / 16 + 1, "one run: {held:x?}");
        assert!([15, 16].contains(&held.len()), "a piece holds as many blocks of 16: {held:x?}");
        for step in [4096, 1 << 20, 16 << 20, 20 << 20, 64 << 20, 1 << 30] {
            let held = (1..1000).filter(|n| filter.may_hold(0x7f00_1230 + n * step)).count();
            assert!(held <= 2, "{held} of 1000 blocks {step} bytes apart");
        }
    }

    #[test]
    fn a_counter_that_ran_full_never_says_no() {
        let filter = Filter::new();
        (0..300).for_each(|_| filter.add(64));
        (0..300).for_each(|_| filter.remove(64));
        assert!(filter.may_hold(64));
    }
}
