//! Gauges set by the service.
//!
//! Setting one is a single atomic store and is cheap enough for hot paths. Adding is a
//! compare-and-swap loop, because CPUs have no atomic addition of floats. Integers would be
//! cheaper, but thresholds of rules, seconds and fractions are floats.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use crate::metrics::Error;
use crate::metrics::registry::MetricRegistry;

/// Maximum number of gauges. Each is stored in every tick of the history (24 bytes) and is a
/// counter track in a trace, where more than 256 are not readable.
const MAX_GAUGES: usize = 256;

/// Gauges of one agent.
#[derive(Clone, Debug, Default)]
pub struct Gauges(MetricRegistry<Gauge>);

impl Gauges {
    /// Creates an empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the gauge `name`, and creates it with value 0 if it does not exist. Takes a lock:
    /// keep the gauge.
    ///
    /// # Errors
    ///
    /// [`Error::Name`] unless `name` is 1 to 64 lower-case letters, digits, `_` and `.`;
    /// [`Error::TooMany`] if it would be more than 256.
    pub fn gauge(&self, name: &str) -> Result<Gauge, Error> {
        self.0.get(name, "gauge", MAX_GAUGES)
    }

    /// Writes name and value of each gauge into `values`, in order of creation. Values that are not
    /// finite are left out, because no threshold can be compared with them.
    pub(crate) fn read_into(&self, values: &mut Vec<(Arc<str>, f64)>) {
        values.clear();
        let gauges = self.0.lock();
        let present = gauges.iter().map(|(name, gauge)| (name.clone(), gauge.get()));
        values.extend(present.filter(|(_, value)| value.is_finite()));
    }
}

/// A gauge of the service. Clones refer to the same gauge.
#[derive(Clone, Debug, Default)]
pub struct Gauge(Arc<AtomicU64>);

impl Gauge {
    /// Sets the value. A value that is not finite hides the gauge until the next finite one.
    pub fn set(&self, value: f64) {
        self.0.store(value.to_bits(), Ordering::Relaxed);
    }

    /// Adds `amount`.
    pub fn add(&self, amount: f64) {
        let add_to_bits = |bits| Some((f64::from_bits(bits) + amount).to_bits());
        // The closure always returns `Some`, so this cannot fail.
        let _ = self.0.fetch_update(Ordering::Relaxed, Ordering::Relaxed, add_to_bits);
    }

    /// Subtracts `amount`.
    pub fn sub(&self, amount: f64) {
        self.add(-amount);
    }

    /// Returns the current value.
    pub fn get(&self) -> f64 {
        f64::from_bits(self.0.load(Ordering::Relaxed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(gauges: &Gauges) -> Vec<(String, f64)> {
        let mut values = vec![("stale".into(), 1.0)];
        gauges.read_into(&mut values);
        values.into_iter().map(|(name, value)| (name.to_string(), value)).collect()
    }

    #[test]
    fn gauges_with_equal_names_share_a_value() {
        let gauges = Gauges::new();
        let first = gauges.gauge("queue").unwrap();
        let second = gauges.gauge("queue").unwrap();
        first.set(5.0);
        second.add(2.5);
        first.sub(0.5);
        gauges.gauge("other").unwrap();
        assert_eq!(read(&gauges), [("queue".to_owned(), 7.0), ("other".to_owned(), 0.0)]);
    }

    #[test]
    fn concurrent_adds_are_not_lost() {
        let gauges = Gauges::new();
        std::thread::scope(|scope| {
            for _ in 0..4 {
                let gauge = gauges.gauge("n").unwrap();
                scope.spawn(move || (0..10_000).for_each(|_| gauge.add(1.0)));
            }
        });
        assert_eq!(read(&gauges), [("n".to_owned(), 40_000.0)]);
    }

    #[test]
    fn non_finite_gauge_is_omitted_until_finite() {
        let gauges = Gauges::new();
        let gauge = gauges.gauge("n").unwrap();
        for value in [f64::NAN, f64::INFINITY, f64::NEG_INFINITY] {
            gauge.set(value);
            assert_eq!(read(&gauges), []);
        }
        gauge.set(1.0);
        assert_eq!(read(&gauges), [("n".to_owned(), 1.0)]);
    }
}
