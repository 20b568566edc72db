//! The vitals around the moment at which an incident opened, reduced to a fixed number of columns.

use std::time::Duration;

use jiff::Timestamp;

use crate::model::{Manifest, Metric, VitalsRow};

/// Number of columns: with names and numbers they fit into 100 characters.
const COLUMNS: usize = 30;

/// Columns before the trigger: most of them, because the cause is earlier than the trigger.
const COLUMNS_BEFORE: usize = 20;

/// Minimum time of a column: 20 of them are the two minutes that are recorded before an incident.
const MIN_COLUMN: Duration = Duration::from_secs(6);

/// Metrics that are shown for every incident.
const USUAL_METRICS: [Metric; 5] =
    [Metric::WorkingSet, Metric::Heap, Metric::Cpu, Metric::Tasks, Metric::Lag];

/// Maximum number of further metrics, those of the incident's rules.
const MAX_RULE_METRICS: usize = 3;

/// The vitals around the trigger by metric, those of the incident's rules first.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct VitalsWindow {
    /// Start of the first column.
    pub(crate) from: Timestamp,
    /// End of the last column.
    pub(crate) to: Timestamp,
    /// Time of one column.
    pub(crate) column: Duration,
    /// The column that starts at the trigger.
    pub(crate) trigger_column: usize,
    /// Metrics without a value in this time are left out.
    pub(crate) metrics: Vec<MetricCourse>,
}

/// The values of one metric, in its unit.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct MetricCourse {
    pub(crate) metric: Metric,
    /// The highest value of each column, or the lowest if low values are worse. `None` if it has
    /// no value.
    pub(crate) columns: Vec<Option<f64>>,
    pub(crate) lowest: f64,
    pub(crate) highest: f64,
    /// The value nearest to the trigger, at most one column from it.
    pub(crate) at_trigger: Option<f64>,
    /// The threshold that was crossed, if a rule of the incident is over this metric.
    pub(crate) threshold: Option<f64>,
}

impl VitalsWindow {
    /// Reduces the vitals of a manifest. Returns `None` if no metric has a value.
    pub(crate) fn new(manifest: &Manifest) -> Option<Self> {
        let trigger = manifest.reasons.first().map_or(manifest.opened, |reason| reason.at);
        let column = column_duration(&manifest.vitals);
        let before = column.checked_mul(COLUMNS_BEFORE as u32)?;
        let after = column.checked_mul((COLUMNS - COLUMNS_BEFORE) as u32)?;
        let mut window = Self {
            from: trigger.checked_sub(before).ok()?,
            to: trigger.checked_add(after).ok()?,
            column,
            trigger_column: COLUMNS_BEFORE,
            metrics: Vec::new(),
        };
        let courses = shown_metrics(manifest)
            .into_iter()
            .filter_map(|metric| window.course(metric, trigger, manifest));
        window.metrics = courses.collect();
        (!window.metrics.is_empty()).then_some(window)
    }

    fn course(
        &self,
        metric: Metric,
        trigger: Timestamp,
        manifest: &Manifest,
    ) -> Option<MetricCourse> {
        let threshold = manifest
            .reasons
            .iter()
            .find(|reason| reason.metric.as_ref() == Some(&metric))
            .and_then(|reason| reason.threshold)
            .filter(|threshold| threshold.is_finite());
        let mut course = MetricCourse {
            columns: vec![None; COLUMNS],
            lowest: f64::INFINITY,
            highest: f64::NEG_INFINITY,
            at_trigger: None,
            threshold,
            metric,
        };
        let name = course.metric.to_string();
        let mut nearest = self.column;
        for row in &manifest.vitals {
            // A time to the limit can be infinite.
            let value = row.values.get(&name).copied().filter(|value| value.is_finite());
            let (Some(value), Some(column)) = (value, self.column_of(row.at)) else { continue };
            course.add(column, value);
            let distance = row.at.duration_since(trigger).unsigned_abs();
            if distance <= nearest {
                nearest = distance;
                course.at_trigger = Some(value);
            }
        }
        course.columns.iter().any(Option::is_some).then_some(course)
    }

    fn column_of(&self, at: Timestamp) -> Option<usize> {
        let offset = Duration::try_from(at.duration_since(self.from)).ok()?;
        let column = usize::try_from(offset.as_nanos() / self.column.as_nanos()).ok()?;
        (column < COLUMNS).then_some(column)
    }
}

impl MetricCourse {
    fn add(&mut self, column: usize, value: f64) {
        self.lowest = self.lowest.min(value);
        self.highest = self.highest.max(value);
        let is_worse = |than: f64| {
            if self.metric.lower_is_worse() { value < than } else { value > than }
        };
        if let Some(shown) = self.columns.get_mut(column)
            && shown.is_none_or(is_worse)
        {
            *shown = Some(value);
        }
    }
}

/// Returns the time of a column. The rows of a long incident are further apart than six seconds,
/// and a shorter column would leave gaps.
fn column_duration(rows: &[VitalsRow]) -> Duration {
    let (Some(first), Some(last)) = (rows.first(), rows.last()) else { return MIN_COLUMN };
    let steps = u32::try_from(rows.len() - 1).unwrap_or(u32::MAX).max(1);
    let covered = Duration::try_from(last.at.duration_since(first.at)).unwrap_or_default();
    let step = (covered / steps).as_secs_f64().ceil();
    Duration::try_from_secs_f64(step).unwrap_or(MIN_COLUMN).max(MIN_COLUMN)
}

/// Returns the metrics of the incident's rules, then those that are always shown.
fn shown_metrics(manifest: &Manifest) -> Vec<Metric> {
    let mut shown: Vec<Metric> = Vec::new();
    for metric in manifest.reasons.iter().filter_map(|reason| reason.metric.as_ref()) {
        if shown.len() < MAX_RULE_METRICS && !shown.contains(metric) {
            shown.push(metric.clone());
        }
    }
    for metric in USUAL_METRICS {
        if !shown.contains(&metric) {
            shown.push(metric);
        }
    }
    shown
}

#[cfg(test)]
mod tests {
    use jiff::SignedDuration;

    use super::*;
    use crate::base::IncidentId;
    use crate::model::{
        IncidentState, Limits, Losses, Origin, ProcessInfo, Reason, Versions, VitalsRow,
    };

    fn time(seconds: i64) -> Timestamp {
        Timestamp::UNIX_EPOCH + SignedDuration::from_secs(1_000_000 + seconds)
    }

    /// A manifest of an incident at second 0 by a rule over `metric`, with rows of
    /// `(second, value)`.
    fn manifest(metric: &str, rows: impl IntoIterator<Item = (i64, f64)>) -> Manifest {
        let row = |(second, value)| VitalsRow {
            at: time(second),
            values: [(metric.to_owned(), value)].into(),
        };
        Manifest {
            schema: Manifest::SCHEMA,
            id: IncidentId::new(time(0)),
            service: "orders".into(),
            instance: "eu-1".into(),
            state: IncidentState::Closed,
            opened: time(0),
            closed: None,
            reasons: vec![Reason {
                origin: Origin::Rule,
                at: time(0),
                rule: Some("rule".into()),
                metric: Some(metric.parse().unwrap()),
                value: None,
                threshold: Some(80.0),
                text: String::new(),
            }],
            limits: Limits::default(),
            process: ProcessInfo {
                pid: 7,
                exe: String::new(),
                build_id: String::new(),
                agent_started: time(-60),
            },
            versions: Versions {
                marple: "0.1.0".into(),
                kernel: String::new(),
                arch: String::new(),
            },
            captures: Vec::new(),
            artifacts: Vec::new(),
            removed: Vec::new(),
            vitals: rows.into_iter().map(row).collect(),
            findings: Vec::new(),
            losses: Losses::default(),
        }
    }

    #[test]
    fn window_has_extremes_and_value_at_trigger() {
        let values = (-200..200).map(|second| (second, 1000.0 + second as f64));
        let window = VitalsWindow::new(&manifest("memory", values)).unwrap();
        assert_eq!((window.from, window.to), (time(-120), time(60)));
        let course = &window.metrics[0];
        assert_eq!(
            (course.lowest, course.at_trigger, course.highest),
            (880.0, Some(1000.0), 1059.0)
        );
        assert_eq!(course.columns[window.trigger_column], Some(1005.0), "the highest of 6 s");
        assert_eq!((course.columns.len(), course.threshold), (30, Some(80.0)));
        assert_eq!(window.metrics.len(), 1, "metrics without values are left out");
    }

    #[test]
    fn lowest_values_are_shown_if_they_are_worse() {
        let values = [(0, f64::INFINITY), (1, 300.0), (2, 200.0)];
        let window = VitalsWindow::new(&manifest("memory.time_to_limit", values)).unwrap();
        let course = &window.metrics[0];
        assert_eq!(course.columns[window.trigger_column], Some(200.0));
        assert_eq!((course.lowest, course.highest, course.at_trigger), (200.0, 300.0, Some(300.0)));
    }

    #[test]
    fn columns_of_long_incidents_are_as_long_as_their_steps() {
        let values = (0..600).map(|row| (row * 64 - 128, row as f64));
        let window = VitalsWindow::new(&manifest("cpu", values)).unwrap();
        assert_eq!(window.column, Duration::from_secs(64));
        let gaps = window.metrics[0].columns[window.trigger_column..].iter();
        assert_eq!(gaps.filter(|column| column.is_none()).count(), 0);
    }

    #[test]
    fn missing_and_single_rows_are_allowed() {
        assert_eq!(VitalsWindow::new(&manifest("cpu", [])), None);
        assert_eq!(VitalsWindow::new(&manifest("cpu", [(0, f64::NAN)])), None);
        assert_eq!(VitalsWindow::new(&manifest("cpu", [(-500, 1.0)])), None, "outside");
        let window = VitalsWindow::new(&manifest("cpu", [(30, 1.0)])).unwrap();
        assert_eq!(window.metrics[0].at_trigger, None, "30 s later");
    }
}
