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
//!  interval: |------------------ wait ------------------|== left ==|
//!             not granted yet; at most GRANT per refill   ^ current byte; `spend` lowers `left`
//! ```
//!
//! The granted and not yet spent bytes are the only part of a thread's bytes that is unknown
//! elsewhere. A thread that has ended reports no more, and many threads may allocate little. A
//! grant is therefore a quarter of the bytes that the thread has reported, at least
//! [`FIRST_GRANT`].
//!
//! The exponential distribution is memoryless: an interval may be discarded and redrawn at any time
//! that was chosen independently of it. `decide` decides the current block by the old interval and
//! only then applies a new rate; the small [`GRANT`] limits the delay. At rate 1 each block is
//! recorded regardless of the interval, so a thread applies that rate with its next block.
//!
//! Intervals are integers, rounded down. A block of a whole number of bytes ends the interval `x`
//! if and only if it ends `floor(x)`, so rounding changes no probability.

use std::cell::Cell;

/// Maximum bytes a thread may allocate before it reads the rate: the delay of a new rate.
pub(crate) const GRANT: u64 = 64 << 10;

/// Initial grant. A thread gets the full [`GRANT`] after 256 KiB and about 20 refills.
pub(crate) const FIRST_GRANT: u64 = 1 << 10;

/// `floor` of [`AllocationSampler::spend`] at rate 1: every allocation is recorded, even if the
/// thread has bytes left that were granted at another rate.
pub(crate) const EXACT_FLOOR: i64 = i64::MAX;

/// Longer than any process allocates. Discarded when a rate is set.
const FOREVER: u64 = u64::MAX >> 1;

/// Sampling state of one thread. It has no destructor, so it is usable while thread-locals are
/// destroyed.
pub(crate) struct AllocationSampler {
    left: Cell<i64>,
    /// Value of `left` when it was last set.
    granted: Cell<i64>,
    /// All bytes so far, except those counted down from `granted`.
    passed: Cell<u64>,
    /// Values of `passed` and `granted` at the last report.
    told: Cell<AllocatedDelta>,
    wait: Cell<u64>,
    /// Rate at which `wait` was drawn; `None` before the first draw.
    rate: Cell<Option<u64>>,
    random: Cell<u64>,
}

/// Allocated bytes, recorded or not; bytes allocated during a pause are excluded.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct AllocatedDelta {
    pub(crate) bytes: u64,
    /// Maximum of the additional bytes until the next report.
    pub(crate) granted: i64,
}

impl AllocationSampler {
    /// Creates a sampler without an interval: its first `spend` returns `false`, and `decide`
    /// requires a `seed`.
    pub(crate) const fn new() -> Self {
        Self {
            left: Cell::new(0),
            granted: Cell::new(0),
            passed: Cell::new(0),
            told: Cell::new(AllocatedDelta { bytes: 0, granted: 0 }),
            wait: Cell::new(0),
            rate: Cell::new(None),
            random: Cell::new(0),
        }
    }

    /// Returns `true` if the sampler is not seeded yet.
    pub(crate) fn is_new(&self) -> bool {
        self.rate.get().is_none()
    }

    /// Seeds the random numbers and draws the first interval.
    pub(crate) fn seed(&self, seed: u64, rate: u64) {
        self.random.set(seed);
        // The preceding `spend` returned `false` because there was no interval.
        self.left.set(self.granted.get());
        self.restart(rate);
    }

    /// Discards the interval and draws another.
    pub(crate) fn restart(&self, rate: u64) {
        self.rate.set(Some(rate));
        let wait = self.draw(rate);
        self.hand_out(wait);
    }

    /// Counts `size` bytes. Returns `true` if they were within the grant, that is, certainly not
    /// recorded. If `false`, the caller must call `decide` or `give_back`. A `floor` above 0
    /// refuses the rest of the grant, see [`EXACT_FLOOR`].
    #[inline]
    pub(crate) fn spend(&self, size: usize, floor: i64) -> bool {
        let left = self.left.get().wrapping_sub(size as i64);
        self.left.set(left);
        left >= floor
    }

    /// Reverts a `spend` whose block was not allocated.
    pub(crate) fn give_back(&self, size: usize) {
        self.left.set(self.left.get().wrapping_add(size as i64));
    }

    /// Decides on a block after `spend(size)` returned `false`: returns its weight if it must be
    /// recorded. Later intervals are drawn at `rate`.
    pub(crate) fn decide(&self, size: usize, rate: u64) -> Option<f64> {
        self.give_back(size);
        self.passed.set(self.passed.get().wrapping_add(size as u64));
        if rate == 1 {
            // Each block from here on is recorded, so the interval is irrelevant.
            self.restart(rate);
            return Some(1.0);
        }
        let drawn_at = self.rate.get().unwrap_or(rate);
        let ahead = self.wait.get().saturating_add(u64::try_from(self.left.get()).unwrap_or(0));
        match ahead.checked_sub(size as u64) {
            Some(rest) if drawn_at == rate => {
                self.hand_out(rest);
                None
            }
            Some(_) => {
                self.restart(rate);
                None
            }
            None => {
                self.restart(rate);
                Some(weight(size, drawn_at))
            }
        }
    }

    /// Returns the change since the last call, to be added to the sum over all threads. Must be
    /// called after each `seed`, `restart` and `decide`, before the next `spend`.
    pub(crate) fn tell(&self) -> AllocatedDelta {
        let all = AllocatedDelta { bytes: self.passed.get(), granted: self.granted.get() };
        let told = self.told.replace(all);
        AllocatedDelta {
            bytes: all.bytes.wrapping_sub(told.bytes),
            granted: all.granted.wrapping_sub(told.granted),
        }
    }

    /// Returns the rest of the grant and sets it to 0; `resume` restores it.
    pub(crate) fn pause(&self) -> i64 {
        self.left.replace(0)
    }

    /// Ends a pause.
    pub(crate) fn resume(&self, left: i64) {
        self.left.set(left);
    }

    /// Allows `GRANT` bytes outside of any interval during a pause.
    pub(crate) fn let_pass(&self) {
        self.left.set(GRANT as i64);
    }

    fn hand_out(&self, wait: u64) {
        let spent = self.granted.get().wrapping_sub(self.left.get());
        let passed = self.passed.get().wrapping_add(spent as u64);
        self.passed.set(passed);
        let granted = wait.min((passed / 4).clamp(FIRST_GRANT, GRANT));
        self.wait.set(wait - granted);
        self.left.set(granted as i64);
        self.granted.set(granted as i64);
    }

    fn draw(&self, rate: u64) -> u64 {
        match rate {
            0 => FOREVER,
            1 => 0,
            // In (0, 1], in steps of 2^-53, so that the logarithm is finite; the cast saturates.
            _ => (-uniform(self.next()).ln() * rate as f64) as u64,
        }
    }

    /// SplitMix64 (Steele, Lea, Flood 2014): any seed is valid.
    fn next(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
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
