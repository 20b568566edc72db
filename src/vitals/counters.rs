//! Numbers the service adds to: requests served, orders refused.
//!
//! Adding is one atomic addition. What a rule sees is the rate, so the reader remembers what each stood
//! at a second ago; a second, because at four ticks a second a rate over one tick would be a few events
//! and jump.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use super::Error;
use super::named::Named;
use crate::model::CounterReading;

/// How many counters there may be; as many as gauges.
const MAX_COUNTERS: usize = 256;

/// The counters of one agent.
#[derive(Clone, Debug, Default)]
pub struct Counters(Named<Counter>);

impl Counters {
    /// No counters.
    pub fn new() -> Self {
        Self::default()
    }

    /// The counter called `name`, made at 0 if there is none. Takes a lock: keep the counter.
    ///
    /// # Errors
    ///
    /// [`Error::Name`] unless `name` is 1 to 64 lower-case letters, digits, `_` and `.`;
    /// [`Error::TooMany`] for a new one when there are 256.
    pub fn counter(&self, name: &str) -> Result<Counter, Error> {
        self.0.get(name, "counter", MAX_COUNTERS)
    }

    /// Brings `readings`, those of the last call, up to date, `passed` after it. Allocates for what is
    /// there for the first time only.
    pub(super) fn follow(
        &self,
        passed: Option<Duration>,
        readings: &mut Vec<(Arc<str>, CounterReading)>,
    ) {
        let counters = self.0.lock();
        for ((_, counter), (_, reading)) in counters.iter().zip(readings.iter_mut()) {
            let total = counter.get();
            let added = total.wrapping_sub(reading.total) as f64;
            let seconds = passed.map(|passed| passed.as_secs_f64()).filter(|&it| it > 0.0);
            *reading = CounterReading { total, rate: seconds.map(|seconds| added / seconds) };
        }
        let known = readings.len();
        readings.extend(counters.iter().skip(known).map(|(name, counter)| {
            (name.clone(), CounterReading { total: counter.get(), rate: None })
        }));
    }
}

/// One number of the service's own that only grows. Clones are the same counter.
#[derive(Clone, Debug, Default)]
pub struct Counter(Arc<AtomicU64>);

impl Counter {
    /// Makes it more by `amount`. After 2^64 it begins anew, as counters do.
    pub fn add(&self, amount: u64) {
        self.0.fetch_add(amount, Ordering::Relaxed);
    }

    /// What it stands at.
    pub fn get(&self) -> u64 {
        self.0.load(Ordering::Relaxed)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_added_is_told_in_a_second() {
        let counters = Counters::new();
        let orders = counters.counter("orders").unwrap();
        orders.add(5);
        let mut readings = Vec::new();
        let mut follow = |millis: Option<u64>| {
            counters.follow(millis.map(Duration::from_millis), &mut readings);
            readings.iter().map(|(_, it)| (it.total, it.rate)).collect::<Vec<_>>()
        };
        assert_eq!(follow(None), [(5, None)], "nobody knows for how long");
        orders.add(3);
        assert_eq!(follow(Some(1500)), [(8, Some(2.0))]);
        assert_eq!(follow(Some(1000)), [(8, Some(0.0))]);
        counters.counter("refused").unwrap().add(1);
        orders.add(1);
        assert_eq!(follow(Some(500)), [(9, Some(2.0)), (1, None)]);
        orders.add(u64::MAX);
        assert_eq!(follow(Some(0)), [(8, None), (1, None)]);
        orders.add(4);
        assert_eq!(follow(Some(1000)), [(12, Some(4.0)), (1, Some(0.0))]);
    }
}
