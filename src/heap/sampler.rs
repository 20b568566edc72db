//! Selection of the allocations to record, and their weights.
//!
//! A thread draws an interval from the exponential distribution with mean `rate` bytes and records
//! the allocation in which the interval ends. That is a Poisson process over the requested bytes:
//!
//! ```text
//! p(s)   = 1 - exp(-s / rate)    probability that a block of s bytes is recorded
//! weight = 1 / p(s)              number of blocks it stands for
//! ```
//!
//! `p` does not depend on other blocks, and the weights make every sum unbiased (Horvitz-Thompson).
//! A weight uses the rate at which its interval was drawn, so a changed rate causes no bias.
//!
//! ```text
//!  interval: |----------- bytes_until_sample -----------|== budget ==|
//!             not granted yet; a grant per refill         ^ current byte; `try_consume` lowers
//!                                                           `budget`
//! ```
//!
//! The granted and not yet spent bytes are the only part of a thread's bytes that is unknown
//! elsewhere. A thread that has ended reports no more, and many threads may allocate little. A
//! grant is therefore a quarter of the bytes that the thread has reported, at least
//! [`MIN_REFILL_BYTES`].
//!
//! The exponential distribution is memoryless: an interval may be discarded and redrawn at any time
//! that was chosen independently of it. `sample` decides on the current block by the old interval
//! and only then applies a new rate; the small [`REFILL_BYTES`] limits the delay. At rate 1 each
//! block is recorded regardless of the interval, so a thread applies that rate with its next block.
//!
//! Intervals are integers, rounded down. A block of a whole number of bytes ends the interval `x`
//! if and only if it ends `floor(x)`, so rounding changes no probability.

use std::cell::Cell;

/// Maximum bytes a thread may allocate before it reads the rate: the delay of a new rate.
pub(crate) const REFILL_BYTES: u64 = 64 << 10;

/// Initial grant. A thread gets the full [`REFILL_BYTES`] after 256 KiB and about 20 refills.
pub(crate) const MIN_REFILL_BYTES: u64 = 1 << 10;

/// `floor` of [`AllocationSampler::try_consume`] at rate 1: every allocation is recorded, even if
/// the thread has bytes left that were granted at another rate.
pub(crate) const EXACT_FLOOR: i64 = i64::MAX;

/// Longer than any process allocates. Discarded when a rate is set.
const INFINITE_INTERVAL: u64 = u64::MAX >> 1;

/// Sampling state of one thread. It has no destructor, so it is usable while thread-locals are
/// destroyed.
pub(crate) struct AllocationSampler {
    budget: Cell<i64>,
    /// Value of `budget` when it was last set.
    refill_size: Cell<i64>,
    /// All bytes so far, except those counted down from `refill_size`.
    counted_bytes: Cell<u64>,
    /// Values of `counted_bytes` and `refill_size` at the last report.
    last_reported: Cell<AllocatedDelta>,
    bytes_until_sample: Cell<u64>,
    /// Rate at which the interval was drawn; `None` before the first draw.
    interval_rate: Cell<Option<u64>>,
    rng_state: Cell<u64>,
}

/// Allocated bytes, recorded or not; bytes allocated during a pause are excluded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AllocatedDelta {
    pub(crate) bytes: u64,
    /// Maximum of the additional bytes until the next report.
    pub(crate) max_unreported: i64,
}

impl AllocationSampler {
    /// Creates a sampler without an interval: its first `try_consume` returns `false`, and `sample`
    /// requires a `seed`.
    pub(crate) const fn new() -> Self {
        Self {
            budget: Cell::new(0),
            refill_size: Cell::new(0),
            counted_bytes: Cell::new(0),
            last_reported: Cell::new(AllocatedDelta { bytes: 0, max_unreported: 0 }),
            bytes_until_sample: Cell::new(0),
            interval_rate: Cell::new(None),
            rng_state: Cell::new(0),
        }
    }

    /// Returns `true` if the sampler is not seeded yet.
    pub(crate) fn needs_seed(&self) -> bool {
        self.interval_rate.get().is_none()
    }

    /// Seeds the random numbers and draws the first interval.
    pub(crate) fn seed(&self, seed: u64, rate: u64) {
        self.rng_state.set(seed);
        // The preceding `try_consume` returned `false` because there was no interval.
        self.budget.set(self.refill_size.get());
        self.redraw_interval(rate);
    }

    /// Discards the interval and draws another.
    pub(crate) fn redraw_interval(&self, rate: u64) {
        self.interval_rate.set(Some(rate));
        let interval = self.draw_interval(rate);
        self.refill(interval);
    }

    /// Counts `size` bytes. Returns `true` if they were within the grant, that is, certainly not
    /// recorded. If `false`, the caller must call `sample` or `undo_consume`. A `floor` above 0
    /// refuses the rest of the grant, see [`EXACT_FLOOR`].
    #[inline]
    pub(crate) fn try_consume(&self, size: usize, floor: i64) -> bool {
        let budget = self.budget.get().wrapping_sub(size as i64);
        self.budget.set(budget);
        budget >= floor
    }

    /// Reverts a `try_consume` whose block was not allocated.
    pub(crate) fn undo_consume(&self, size: usize) {
        self.budget.set(self.budget.get().wrapping_add(size as i64));
    }

    /// Decides on a block after `try_consume(size)` returned `false`: returns its weight if it must
    /// be recorded. Later intervals are drawn at `rate`.
    pub(crate) fn sample(&self, size: usize, rate: u64) -> Option<f64> {
        self.undo_consume(size);
        self.counted_bytes.set(self.counted_bytes.get().wrapping_add(size as u64));
        if rate == 1 {
            // Each block from here on is recorded, so the interval is irrelevant.
            self.redraw_interval(rate);
            return Some(1.0);
        }
        let interval_rate = self.interval_rate.get().unwrap_or(rate);
        let remaining = self
            .bytes_until_sample
            .get()
            .saturating_add(u64::try_from(self.budget.get()).unwrap_or(0));
        match remaining.checked_sub(size as u64) {
            Some(remaining) if interval_rate == rate => {
                self.refill(remaining);
                None
            }
            Some(_) => {
                self.redraw_interval(rate);
                None
            }
            None => {
                self.redraw_interval(rate);
                Some(weight(size, interval_rate))
            }
        }
    }

    /// Returns the change since the last call, to be added to the sum over all threads. Must be
    /// called after each `seed`, `redraw_interval` and `sample`, before the next `try_consume`.
    pub(crate) fn take_delta(&self) -> AllocatedDelta {
        let current = AllocatedDelta {
            bytes: self.counted_bytes.get(),
            max_unreported: self.refill_size.get(),
        };
        let previous = self.last_reported.replace(current);
        AllocatedDelta {
            bytes: current.bytes.wrapping_sub(previous.bytes),
            max_unreported: current.max_unreported.wrapping_sub(previous.max_unreported),
        }
    }

    /// Returns the rest of the grant and sets it to 0; `resume` restores it.
    pub(crate) fn pause(&self) -> i64 {
        self.budget.replace(0)
    }

    /// Ends a pause.
    pub(crate) fn resume(&self, budget: i64) {
        self.budget.set(budget);
    }

    /// Allows `REFILL_BYTES` bytes outside of any interval during a pause.
    pub(crate) fn allow_unsampled(&self) {
        self.budget.set(REFILL_BYTES as i64);
    }

    fn refill(&self, bytes_until_sample: u64) {
        let consumed = self.refill_size.get().wrapping_sub(self.budget.get());
        let counted_bytes = self.counted_bytes.get().wrapping_add(consumed as u64);
        self.counted_bytes.set(counted_bytes);
        let refill_size =
            bytes_until_sample.min((counted_bytes / 4).clamp(MIN_REFILL_BYTES, REFILL_BYTES));
        self.bytes_until_sample.set(bytes_until_sample - refill_size);
        self.budget.set(refill_size as i64);
        self.refill_size.set(refill_size as i64);
    }

    fn draw_interval(&self, rate: u64) -> u64 {
        match rate {
            0 => INFINITE_INTERVAL,
            1 => 0,
            // In (0, 1], in steps of 2^-53, so that the logarithm is finite; the cast saturates.
            _ => (-uniform(self.next_random()).ln() * rate as f64) as u64,
        }
    }

    /// SplitMix64 (Steele, Lea, Flood 2014): any seed is valid.
    fn next_random(&self) -> u64 {
        let state = self.rng_state.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.rng_state.set(state);
        mix(state)
    }
}

/// Returns a number in (0, 1].
fn uniform(bits: u64) -> f64 {
    ((bits >> 11) + 1) as f64 / (1u64 << 53) as f64
}

/// SplitMix64's mixing function.
pub(crate) const fn mix(bits: u64) -> u64 {
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// Returns the weight of a recorded block: `1 / (1 - exp(-size / rate))`.
fn weight(size: usize, rate: u64) -> f64 {
    if rate <= 1 { 1.0 } else { -1.0 / (-(size as f64) / rate as f64).exp_m1() }
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
