//! Counters incremented by the service, such as requests served or orders refused.
//!
//! An increment is one atomic addition. Rules use the rate, so the reader keeps each counter's
//! value of a second ago. At four ticks a second, a rate over a single tick would be based on a few
//! events and fluctuate.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use crate::metrics::Error;
use crate::metrics::registry::MetricRegistry;
use crate::model::CounterReading;

/// Maximum number of counters, the same as for gauges.
const MAX_COUNTERS: usize = 256;

/// Counters of one agent.
#[derive(Clone, Debug, Default)]
pub struct Counters(MetricRegistry<Counter>);

impl Counters {
    /// Creates an empty list.
    pub fn new() -> Self {
        Self::default()
    }

    /// Returns the counter `name`, and creates it at 0 if it does not exist. Takes a lock: keep the
    /// counter.
    ///
    /// # Errors
    ///
    /// [`Error::Name`] unless `name` is 1 to 64 lower-case letters, digits, `_` and `.`;
    /// [`Error::TooMany`] if it would be more than 256.
    pub fn counter(&self, name: &str) -> Result<Counter, Error> {
        self.0.get(name, "counter", MAX_COUNTERS)
    }

    /// Updates `readings` from the last call, which was `passed` ago. Allocates only for new
    /// counters.
    pub(crate) fn update(
        &self,
        elapsed: Option<Duration>,
        readings: &mut Vec<(Arc<str>, CounterReading)>,
    ) {
        let counters = self.0.lock();
        for ((_, counter), (_, reading)) in counters.iter().zip(readings.iter_mut()) {
            let total = counter.get();
            let increments = total.wrapping_sub(reading.total) as f64;
            let seconds = elapsed.map(|passed| passed.as_secs_f64()).filter(|&it| it > 0.0);
            *reading = CounterReading { total, rate: seconds.map(|seconds| increments / seconds) };
        }
        let known = readings.len();
        readings.extend(counters.iter().skip(known).map(|(name, counter)| {
            (name.clone(), CounterReading { total: counter.get(), rate: None })
        }));
    }
}

/// A monotonic counter of the service. Clones refer to the same counter.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Adds `amount`. Wraps around at 2^64.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// Returns the current value.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn counter_rate_is_increments_per_second() {
        let counters = Counters::new();
        let orders = counters.counter("orders").unwrap();
        orders.add(5);
        let mut readings = Vec::new();
        let mut update = |millis: Option<u64>| {
            counters.update(millis.map(Duration::from_millis), &mut readings);
            readings.iter().map(|(_, it)| (it.total, it.rate)).collect::<Vec<_>>()
        };
        assert_eq!(update(None), [(5, None)], "nobody knows for how long");
        orders.add(3);
        assert_eq!(update(Some(1500)), [(8, Some(2.0))]);
        assert_eq!(update(Some(1000)), [(8, Some(0.0))]);
        counters.counter("refused").unwrap().add(1);
        orders.add(1);
        assert_eq!(update(Some(500)), [(9, Some(2.0)), (1, None)]);
        orders.add(u64::MAX);
        assert_eq!(update(Some(0)), [(8, None), (1, None)]);
        orders.add(4);
        assert_eq!(update(Some(1000)), [(12, Some(4.0)), (1, Some(0.0))]);
    }
}
