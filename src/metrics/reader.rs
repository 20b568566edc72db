//! All metrics defined by the service, and the reader's state of them.

use std::sync::Arc;
use std::time::Duration;

use super::counters::Counters;
use super::gauges::Gauges;
use super::histograms::{Distribution, HistogramDelta, Histograms};
use crate::base::Moment;
use crate::model::{CounterReading, Vitals};

/// The service's metrics of one agent. Clones refer to the same metrics.
#[derive(Clone, Debug, Default)]
pub struct Metrics {
    /// Metrics that the service sets.
    pub gauges: Gauges,
    /// Metrics that the service increments.
    pub counters: Counters,
    /// Metrics for which the service records individual values.
    pub histograms: Histograms,
}

impl From<Gauges> for Metrics {
    /// Uses these gauges, without counters and histograms.
    fn from(gauges: Gauges) -> Self {
        Self { gauges, ..Self::default() }
    }
}

/// The reader's state of the metrics.
#[derive(Debug, Default)]
pub(crate) struct MetricsReader {
    numbers: Metrics,
    counters: Vec<(Arc<str>, CounterReading)>,
    histograms: HistogramDelta,
    followed: Option<Moment>,
}

impl MetricsReader {
    pub(crate) fn new(numbers: Metrics) -> Self {
        Self { numbers, ..Self::default() }
    }

    /// Updates the counters and histograms with the changes since the last call; called once a
    /// second.
    pub(crate) fn follow(&mut self, now: Moment) {
        let passed: Option<Duration> = self.followed.replace(now).map(|before| now.since(before));
        self.numbers.counters.follow(passed, &mut self.counters);
        self.histograms.follow(&self.numbers.histograms);
    }

    /// Writes the current gauges, and the counters and histograms of the last second, into
    /// `vitals`.
    pub(crate) fn write(&self, vitals: &mut Vitals) {
        self.numbers.gauges.read_into(&mut vitals.gauges);
        vitals.counters.clone_from(&self.counters);
        vitals.histograms.clone_from(&self.histograms.readings);
    }

    pub(crate) fn distributions(&self) -> Vec<Distribution> {
        self.numbers.histograms.distributions()
    }
}
