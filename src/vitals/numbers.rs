//! Everything the service counts itself, and the reader's view of it.

use std::sync::Arc;
use std::time::Duration;

use super::counters::Counters;
use super::gauges::Gauges;
use super::histograms::{Distribution, Followed, Histograms};
use crate::base::Moment;
use crate::model::{CounterReading, Vitals};

/// The service's own numbers, of one agent. Clones are the same numbers.
#[derive(Clone, Debug, Default)]
pub struct Numbers {
    /// Those it sets.
    pub gauges: Gauges,
    /// Those it adds to.
    pub counters: Counters,
    /// Those it records many values of.
    pub histograms: Histograms,
}

impl From<Gauges> for Numbers {
    /// Gauges and nothing else.
    fn from(gauges: Gauges) -> Self {
        Self { gauges, ..Self::default() }
    }
}

/// The numbers as the reader follows them.
#[derive(Debug, Default)]
pub(super) struct OwnNumbers {
    numbers: Numbers,
    counters: Vec<(Arc<str>, CounterReading)>,
    histograms: Followed,
    followed: Option<Moment>,
}

impl OwnNumbers {
    pub(super) fn new(numbers: Numbers) -> Self {
        Self { numbers, ..Self::default() }
    }

    /// Looks what was counted and recorded since the last time; for every second.
    pub(super) fn follow(&mut self, now: Moment) {
        let passed: Option<Duration> = self.followed.replace(now).map(|before| now.since(before));
        self.numbers.counters.follow(passed, &mut self.counters);
        self.histograms.follow(&self.numbers.histograms);
    }

    /// Puts the gauges as they are and the rest as of the last second into `vitals`.
    pub(super) fn write(&self, vitals: &mut Vitals) {
        self.numbers.gauges.read_into(&mut vitals.gauges);
        vitals.counters.clone_from(&self.counters);
        vitals.histograms.clone_from(&self.histograms.readings);
    }

    pub(super) fn distributions(&self) -> Vec<Distribution> {
        self.numbers.histograms.distributions()
    }
}
