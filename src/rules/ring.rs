//! The recent values of one metric.

/// How many values an average is over, and how many must be seen before the first decision: holmes' 10.
pub const WINDOW: usize = 10;

/// The last [`WINDOW`] values.
#[derive(Clone, Debug, Default)]
pub(super) struct Ring {
    values: [f64; WINDOW],
    next: usize,
    seen: usize,
}

impl Ring {
    /// Adds a value, in place of the oldest if there are [`WINDOW`].
    pub(super) fn push(&mut self, value: f64) {
        if let Some(slot) = self.values.get_mut(self.next) {
            *slot = value;
        }
        self.next = (self.next + 1) % WINDOW;
        self.seen = (self.seen + 1).min(WINDOW);
    }

    /// How many values there are.
    pub(super) fn seen(&self) -> usize {
        self.seen
    }

    pub(super) fn is_full(&self) -> bool {
        self.seen == WINDOW
    }

    /// The sum of the values.
    pub(super) fn sum(&self) -> f64 {
        self.values.iter().take(self.seen).sum()
    }

    /// Their average; 0 when there is none.
    pub(super) fn average(&self) -> f64 {
        self.sum() / self.seen.max(1) as f64
    }

    /// Whether `value` is above the average. Sums differences, so that it is exactly not when all values
    /// are `value`, which a rounded average would not give.
    pub(super) fn is_below(&self, value: f64) -> bool {
        self.values.iter().take(self.seen).map(|old| value - old).sum::<f64>() > 0.0
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_value_goes_when_the_ring_is_full() {
        let mut ring = Ring::default();
        assert_eq!((ring.seen(), ring.average()), (0, 0.0));
        for n in 1..WINDOW {
            ring.push(n as f64);
        }
        assert_eq!((ring.seen(), ring.is_full(), ring.average()), (9, false, 5.0));
        ring.push(10.0);
        assert_eq!((ring.seen(), ring.is_full(), ring.average()), (10, true, 5.5));
        ring.push(21.0);
        assert_eq!((ring.seen(), ring.is_full(), ring.average()), (10, true, 7.5));
    }

    #[test]
    fn a_steady_value_is_never_above_its_average() {
        for value in [0.1, 0.0, -0.1, 1e300, 1.0 / 3.0] {
            let mut ring = Ring::default();
            (0..WINDOW).for_each(|_| ring.push(value));
            assert!(!ring.is_below(value), "{value}");
        }
    }
}
