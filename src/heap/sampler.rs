//! Which allocations are recorded, and what each stands for.
//!
//! A thread waits for an exponentially distributed number of bytes with mean `rate`, and records the
//! allocation in which the wait ends. That is a Poisson process over the bytes asked for: a block of
//! `s` bytes is recorded with probability `p = 1 - exp(-s/rate)`, whatever its neighbours are, and
//! standing for `1/p` of its kind makes every sum unbiased (Horvitz-Thompson). The weight is fixed with
//! the rate its wait was drawn at, so changing the rate biases nothing.
//!
//! ```text
//!  a wait: |------------------- wait --------------------|== left ==|   left: what `spend` counts down
//!           not handed out yet, at most GRANT at a time    ^ here
//! ```
//!
//! What was handed out and not yet counted down is all that is not known of a thread's bytes elsewhere. A
//! thread that ends tells no more, and there may be many that do little, so a thread is handed a quarter of
//! what it has told of, at least [`FIRST_GRANT`].
//!
//! The exponential distribution has no memory: a wait may be thrown away and drawn again at any moment
//! that was chosen without looking at it. `decide` therefore decides the block at hand by the old wait
//! and only then follows a new rate; that [`GRANT`] is small is what makes it follow soon. At rate 1 each block is
//! recorded whatever its wait says, so a thread follows with its next block.
//!
//! Waits are whole numbers, rounded down: a block of `s` whole bytes ends a wait `x` exactly if it ends
//! `floor(x)`, so rounding changes no probability.

use std::cell::Cell;

/// The most bytes a thread may allocate without looking up: how late it sees a new rate.
pub(crate) const GRANT: u64 = 64 << 10;

/// What a thread may at first. Until it has told of 256 KiB and may [`GRANT`], it has looked up some 20 times.
pub(crate) const FIRST_GRANT: u64 = 1 << 10;

/// The `floor` of [`Sampler::spend`] at rate 1: every allocation is recorded, also that of a thread with bytes left that
/// were handed out at another rate.
pub(crate) const EXACT_FLOOR: i64 = i64::MAX;

/// Longer than any process allocates; what is left of it when a rate is set is thrown away.
const FOREVER: u64 = u64::MAX >> 1;

/// One thread's wait. No destructor, so that it may be used while thread-locals are destroyed.
pub(crate) struct Sampler {
    left: Cell<i64>,
    /// What `left` was when it was last set.
    granted: Cell<i64>,
    /// All bytes ever, but for those counted down from `granted`.
    passed: Cell<u64>,
    /// What `passed` and `granted` were when they were last told of.
    told: Cell<Passed>,
    wait: Cell<u64>,
    /// What `wait` was drawn at; none before the first.
    rate: Cell<Option<u64>>,
    random: Cell<u64>,
}

/// What went by: every byte asked for, recorded or not, and none of a pause.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Passed {
    pub(crate) bytes: u64,
    /// How many more may have by now, and may before the next telling.
    pub(crate) granted: i64,
}

impl Sampler {
    /// A sampler that has drawn nothing: its first `spend` is refused, and `decide` needs a `seed`.
    pub(crate) const fn new() -> Self {
        Self {
            left: Cell::new(0),
            granted: Cell::new(0),
            passed: Cell::new(0),
            told: Cell::new(Passed { bytes: 0, granted: 0 }),
            wait: Cell::new(0),
            rate: Cell::new(None),
            random: Cell::new(0),
        }
    }

    /// Whether it has yet to be seeded.
    pub(crate) fn is_new(&self) -> bool {
        self.rate.get().is_none()
    }

    /// Seeds the random numbers and draws the first wait.
    pub(crate) fn seed(&self, seed: u64, rate: u64) {
        self.random.set(seed);
        // The `spend` before it was refused for want of a wait.
        self.left.set(self.granted.get());
        self.restart(rate);
    }

    /// Throws the wait away and draws another.
    pub(crate) fn restart(&self, rate: u64) {
        self.rate.set(Some(rate));
        let wait = self.draw(rate);
        self.hand_out(wait);
    }

    /// Counts `size` bytes and says whether they were within what was handed out, that is, certainly
    /// not recorded. If not, `decide` or `give_back` must follow. A `floor` above 0 refuses what was handed out
    /// before, see [`EXACT_FLOOR`].
    #[inline]
    pub(crate) fn spend(&self, size: usize, floor: i64) -> bool {
        let left = self.left.get().wrapping_sub(size as i64);
        self.left.set(left);
        left >= floor
    }

    /// Takes back a `spend`: the block was never allocated.
    pub(crate) fn give_back(&self, size: usize) {
        self.left.set(self.left.get().wrapping_add(size as i64));
    }

    /// After a refused `spend(size)`: the weight of the block if it is to be recorded. `rate` is what
    /// is drawn at from here on.
    pub(crate) fn decide(&self, size: usize, rate: u64) -> Option<f64> {
        self.give_back(size);
        self.passed.set(self.passed.get().wrapping_add(size as u64));
        if rate == 1 {
            // Each block from here on is recorded, so the wait decides nothing.
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

    /// What is different from when it was last asked, to be added to the sum of all threads. To be asked
    /// after each `seed`, `restart` and `decide`, before anything more is spent.
    pub(crate) fn tell(&self) -> Passed {
        let all = Passed { bytes: self.passed.get(), granted: self.granted.get() };
        let told = self.told.replace(all);
        Passed {
            bytes: all.bytes.wrapping_sub(told.bytes),
            granted: all.granted.wrapping_sub(told.granted),
        }
    }

    /// Sets what is left aside and hands out nothing; `resume` puts it back.
    pub(crate) fn pause(&self) -> i64 {
        self.left.replace(0)
    }

    /// Ends a pause.
    pub(crate) fn resume(&self, left: i64) {
        self.left.set(left);
    }

    /// During a pause: lets `GRANT` bytes pass that belong to no wait.
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
            // (0, 1] in steps of 2^-53, so that the logarithm is finite; the cast saturates.
            _ => (-uniform(self.next()).ln() * rate as f64) as u64,
        }
    }

    /// SplitMix64 (Steele, Lea, Flood 2014): any seed will do.
    fn next(&self) -> u64 {
        let state = self.random.get().wrapping_add(0x9e37_79b9_7f4a_7c15);
        self.random.set(state);
        mix(state)
    }
}

/// A number in (0, 1].
fn uniform(bits: u64) -> f64 {
    ((bits >> 11) + 1) as f64 / (1u64 << 53) as f64
}

/// SplitMix64's scrambler.
pub(crate) const fn mix(bits: u64) -> u64 {
    let bits = (bits ^ (bits >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
    let bits = (bits ^ (bits >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
    bits ^ (bits >> 31)
}

/// What a recorded block of `size` bytes stands for: `1/(1 - exp(-size/rate))` blocks like it.
fn weight(size: usize, rate: u64) -> f64 {
    if rate <= 1 { 1.0 } else { -1.0 / (-(size as f64) / rate as f64).exp_m1() }
}

#[cfg(test)]
#[path = "sampler_tests.rs"]
mod tests;
