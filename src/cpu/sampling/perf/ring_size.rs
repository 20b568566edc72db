//! Sizes of the rings of perf events, by the sampling frequency and the number of threads.
//!
//! A sample takes [`INITIAL_STACK_BYTES`] + 80 bytes of its ring regardless of the stack's depth,
//! because the kernel copies a fixed length. Between two drains a busy thread produces `frequency *
//! interval` samples. A ring holds at least twice that, in case a drain is late: 8 samples at 99 Hz
//! and below, 20 at 1000 Hz, so 64 and 256 KiB.
//!
//! All rings together stay within [`RING_BUDGET_BYTES`] (four times that above 100 Hz). Many
//! threads share few cores, so each produces few samples: the ring shrinks with the number of
//! threads down to two samples. The kernel counts overflows, and a thread whose ring overflowed
//! gets twice the ring, up to the size for a single thread: of 256 threads, two may do all the
//! work. The unused rest of the budget goes to the threads with the most CPU time so far.

use crate::base::Hertz;
use crate::cpu::sampling::sampler::drain_interval;

/// Stack bytes copied at first. Two records of `INITIAL_STACK_BYTES + 80` bytes fit into 16 KiB.
pub(super) const INITIAL_STACK_BYTES: u32 = 7 << 10;

/// Memory of all rings at 100 Hz and below.
const RING_BUDGET_BYTES: usize = 4 << 20;

const MIN_RING_BYTES: usize = 16 << 10;

/// Returns the ring size for one of `threads` threads.
pub(super) fn ring_bytes(frequency: Hertz, stack_bytes: u32, threads: usize) -> usize {
    let samples_per_drain = frequency.get() as f64 * drain_interval(frequency).as_secs_f64();
    let samples = (samples_per_drain * 2.0).ceil() as usize;
    let record = stack_bytes as usize + 80;
    let equal_share = ring_budget(frequency) / threads.max(1);
    let equal_share = if equal_share.is_power_of_two() {
        equal_share
    } else {
        equal_share.next_power_of_two() / 2
    };
    let smallest = (2 * record).next_power_of_two().max(MIN_RING_BYTES);
    (samples * record).next_power_of_two().min(equal_share.max(1)).max(smallest)
}

fn ring_budget(frequency: Hertz) -> usize {
    if frequency > Hertz(100) { 4 * RING_BUDGET_BYTES } else { RING_BUDGET_BYTES }
}

/// Returns the ring sizes for `added` threads in addition to `existing` threads, whose rings take
/// `used_ring_bytes`. A thread gets the ring of a single thread as long as the rest of the budget
/// covers the equal share of every later thread.
pub(super) fn allocate_rings(
    frequency: Hertz,
    existing: usize,
    used_ring_bytes: usize,
    added: usize,
) -> impl Iterator<Item = usize> {
    let equal_share = ring_bytes(frequency, INITIAL_STACK_BYTES, existing + added);
    let max_ring_bytes = ring_bytes(frequency, INITIAL_STACK_BYTES, 1);
    let mut remaining = ring_budget(frequency).saturating_sub(used_ring_bytes);
    (0..added).rev().map(move |later_threads| {
        let ring = if remaining >= max_ring_bytes + later_threads * equal_share {
            max_ring_bytes
        } else {
            equal_share
        };
        remaining = remaining.saturating_sub(ring);
        ring
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::cpu::sampling::perf::MAX_STACK_BYTES;

    #[test]
    fn rings_fit_two_drains_and_stay_within_budget() {
        for (frequency, threads, kib) in [
            (19, 1, 64),
            (99, 8, 64),
            (99, 64, 64),
            (99, 65, 32),
            (99, 256, 16),
            (99, 5000, 16),
            (1000, 1, 256),
            (1000, 64, 256),
            (1000, 256, 64),
        ] {
            let bytes = ring_bytes(Hertz(frequency), INITIAL_STACK_BYTES, threads);
            assert_eq!(bytes >> 10, kib, "{threads} threads at {frequency} Hz");
        }
        assert_eq!(ring_bytes(Hertz(99), MAX_STACK_BYTES, 256) >> 10, 128, "two of the deepest");
    }

    #[test]
    fn remaining_ring_budget_goes_to_first_threads() {
        for (there, taken, more, large, kib) in [
            (0, 0, 1, 1, 64),
            (0, 0, 64, 64, 4096),
            (0, 0, 65, 63, 4096),
            (0, 0, 200, 18, 4064),
            (0, 0, 256, 0, 4096),
            (0, 0, 300, 0, 4800),
            (200, 4064 << 10, 1, 0, 16),
            (3, 192 << 10, 2, 2, 128),
        ] {
            let rings: Vec<usize> = allocate_rings(Hertz(99), there, taken, more).collect();
            let few = rings.iter().take_while(|&&ring| ring == 64 << 10).count();
            let all: usize = rings.iter().sum();
            assert_eq!((rings.len(), few, all >> 10), (more, large, kib), "{more} beside {there}");
        }
    }
}
