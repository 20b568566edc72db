//! What is watched for, and what to do about it.

use std::time::Duration;

use super::capture::CaptureSet;
use super::metric::Metric;

/// Thresholds over one metric, what to capture when they are crossed, and how often.
///
/// All numbers are in the metric's unit, except `diff`. What they mean is said where they are applied,
/// in `rules`.
#[derive(Clone, Debug, PartialEq)]
pub struct Rule {
    /// Its name, part of the names of its incidents: lower-case letters, digits, `-` and `_`.
    pub name: String,
    /// What it watches.
    pub metric: Metric,
    /// Below this nothing fires.
    pub min: f64,
    /// Fires when the value is this many per cent above its recent average.
    pub diff: Option<f64>,
    /// Fires above this.
    pub abs: Option<f64>,
    /// At or above this nothing fires: too late for a capture.
    pub max: Option<f64>,
    /// How long a condition must hold before the rule fires.
    pub hold: Duration,
    /// At or below this the incident is over if no condition holds; without it, as soon as none does.
    pub clear: Option<f64>,
    /// How long after a capture of this rule before the next.
    pub cooldown: Duration,
    /// What to capture.
    pub capture: CaptureSet,
    /// For how long.
    pub duration: Duration,
}
