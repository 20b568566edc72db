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
    metrics: Metrics,
    counters: Vec<(Arc<str>, CounterReading)>,
    histograms: HistogramDelta,
    last_update: Option<Moment>,
}

impl MetricsReader {
    pub(crate) fn new(metrics: Metrics) -> Self {
        Self { metrics, ..Self::default() }
    }

    /// Updates the counters and histograms with the changes since the last call; called once a
    /// second.
    pub(crate) fn update(&mut self, now: Moment) {
        let elapsed: Option<Duration> =
            self.last_update.replace(now).map(|before| now.since(before));
        self.metrics.counters.update(elapsed, &mut self.counters);
        self.histograms.update(&self.metrics.histograms);
    }

    /// Writes the current gauges, and the counters and histograms of the last second, into
    /// `vitals`.
    pub(crate) fn write(&self, vitals: &mut Vitals) {
        self.metrics.gauges.read_into(&mut vitals.gauges);
        vitals.counters.clone_from(&self.counters);
        vitals.histograms.clone_from(&self.histograms.readings);
    }

    pub(crate) fn distributions(&self) -> Vec<Distribution> {
        self.metrics.histograms.distributions()
    }
}
