//! The vitals stored in manifests: those of the two minutes before an incident and those during it.

use std::collections::VecDeque;
use std::sync::Arc;
use std::time::Duration;

use crate::base::{Moment, TimeAnchor};
use crate::model::{CounterPart, HistogramPart, Metric, Vitals, VitalsRow};

/// Time between two rows.
const ROW_INTERVAL: Duration = Duration::from_secs(1);

/// Returns `true` if at least 95 % of `step` has passed since `last`: a tick may be slightly early.
fn is_due(now: Moment, last: Moment, step: Duration) -> bool {
    now.since(last) >= step * 19 / 20
}

/// Maximum number of rows kept from before an incident: two minutes.
const MAX_ROWS_BEFORE: usize = 120;
/// Maximum number of rows of a recording, some 150 KiB. At this limit every second row is removed
/// and the step doubles, so that a week's incident takes no more memory than a minute's.
const MAX_ROWS: usize = 600;

/// The vitals of the last two minutes.
#[derive(Default)]
pub(super) struct History(VecDeque<Vitals>);

impl History {
    /// Appends `vitals` if a step has passed since the last row.
    pub(super) fn record(&mut self, vitals: &Vitals) {
        if self.0.back().is_some_and(|last| !is_due(vitals.at, last.at, ROW_INTERVAL)) {
            return;
        }
        if self.0.len() == MAX_ROWS_BEFORE {
            self.0.pop_front();
        }
        self.0.push_back(vitals.clone());
    }

    /// Starts a recording with the kept rows and `now`.
    pub(super) fn start_recording(&self, now: &Vitals) -> VitalsRecording {
        let mut rows: Vec<Vitals> = self.0.iter().cloned().collect();
        rows.push(now.clone());
        VitalsRecording { rows, step: ROW_INTERVAL, last: now.at }
    }
}

/// The vitals of one incident.
pub(super) struct VitalsRecording {
    rows: Vec<Vitals>,
    step: Duration,
    last: Moment,
}

impl VitalsRecording {
    /// Appends `vitals` if a step has passed since the last row.
    pub(super) fn record(&mut self, vitals: &Vitals) {
        if !is_due(vitals.at, self.last, self.step) {
            return;
        }
        if self.rows.len() >= MAX_ROWS {
            let mut keep = false;
            self.rows.retain(|_| {
                keep = !keep;
                keep
            });
            self.step *= 2;
        }
        self.last = vitals.at;
        self.rows.push(vitals.clone());
    }

    /// Returns the rows in the form used by manifests.
    pub(super) fn rows(&self, anchor: TimeAnchor) -> Vec<VitalsRow> {
        self.rows.iter().map(|vitals| vitals_row(vitals, anchor)).collect()
    }
}

/// Converts one tick to the form used by manifests.
pub(super) fn vitals_row(vitals: &Vitals, anchor: TimeAnchor) -> VitalsRow {
    let fixed = Metric::built_in();
    let values = fixed
        .chain(custom_metrics(vitals))
        .filter_map(|metric| Some((metric.to_string(), metric.value(vitals)?)))
        .collect();
    VitalsRow { at: anchor.wall_at(vitals.at), values }
}

/// Returns the custom metrics present in `vitals`.
fn custom_metrics(vitals: &Vitals) -> impl Iterator<Item = Metric> {
    let gauges = vitals.gauges.iter().map(|(name, _)| Metric::Gauge(name.clone()));
    let counters = vitals
        .counters
        .iter()
        .flat_map(|(name, _)| CounterPart::ALL.map(|part| Metric::Counter(Arc::clone(name), part)));
    let histograms = vitals.histograms.iter().flat_map(|(name, _)| {
        HistogramPart::ALL.map(|part| Metric::Histogram(Arc::clone(name), part))
    });
    gauges.chain(counters).chain(histograms)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn vitals_at(millis: u64) -> Vitals {
        Vitals {
            at: Moment::from_nanos(millis * 1_000_000),
            threads: Some(millis),
            ..Vitals::default()
        }
    }

    #[test]
    fn history_keeps_one_row_per_second_for_two_minutes() {
        let mut history = History::default();
        for tick in 0..4 * 200 {
            history.record(&vitals_at(tick * 250));
        }
        let kept: Vec<u64> = history.0.iter().filter_map(|vitals| vitals.threads).collect();
        assert_eq!(kept, (80..200).map(|second| second * 1000).collect::<Vec<_>>());
    }

    #[test]
    fn long_recording_stays_within_row_limit_and_covers_incident() {
        let mut recording = History::default().start_recording(&vitals_at(0));
        for second in 1..100_000 {
            recording.record(&vitals_at(second * 1000));
            assert!(recording.rows.len() <= MAX_ROWS);
        }
        let times: Vec<u64> = recording.rows.iter().filter_map(|vitals| vitals.threads).collect();
        assert_eq!(times[0], 0);
        assert!(*times.last().unwrap() > 99_000_000);
        assert!(times.windows(2).all(|pair| pair[0] < pair[1]));
    }
}
