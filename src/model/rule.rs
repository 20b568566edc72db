//! Rules: conditions over a metric, and the captures they trigger.

use std::time::Duration;

use super::capture::CaptureSet;
use super::collect::CollectorSelection;
use super::metric::Metric;

/// Conditions over one metric, the captures to take if one holds, and the pace of captures.
///
/// All numbers are in the metric's unit, except `diff`. The exact semantics are documented in
/// `rules`, where they are applied. Write `Rule { abs: Some(80.0), ..Rule::new(Metric::Memory) }`.
#[derive(Clone, Debug, PartialEq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Rule {
    /// Name, part of the names of its incidents: lower-case letters, digits, `-` and `_`.
    pub name: String,
    /// The metric to watch.
    pub metric: Metric,
    /// The rule does not fire below this value.
    pub min: f64,
    /// Fires if the value exceeds its recent average by this many percent.
    pub diff: Option<f64>,
    /// Fires above this value.
    pub abs: Option<f64>,
    /// Fires below this value, for metrics of which there can be too little. Such a rule has none
    /// of `abs`, `diff` and `forecast`, and its `clear` and `critical` are mirrored.
    pub below: Option<f64>,
    /// Fires if the value would reach the limit within this time at its current growth.
    pub forecast: Option<Duration>,
    /// The rule does not fire at or above this value: it is too late for a capture.
    pub max: Option<f64>,
    /// Time for which each condition must hold before the rule fires. It may be false for up to a
    /// fifth of that time in total.
    pub hold: HoldDurations,
    /// The incident ends if no condition holds and the value is at or below this (with `below`: at
    /// or above). `None`: it ends as soon as no condition holds.
    pub clear: Option<f64>,
    /// Time for which the clear condition must hold.
    pub clear_for: Duration,
    /// Above this value (with `below`: below it) the rule ignores the minimum gap between two
    /// incidents. Four hours after its last capture it also ignores `cooldown` and the budget.
    pub critical: Option<f64>,
    /// Time after a capture of this rule before the next capture that is no worse. It doubles with
    /// each such incident within 24 hours. Default: 1 h. See [`Refire`].
    pub cooldown: Duration,
    /// Condition for another capture.
    pub refire: Refire,
    /// Action of the rule when it fires.
    pub mode: Mode,
    /// Kinds of captures to take.
    pub capture: CaptureSet,
    /// Files of custom collectors to take in addition.
    pub collectors: CollectorSelection,
    /// Duration of the captures.
    pub duration: Duration,
}

impl Rule {
    /// Creates a rule over `metric` without conditions and with defaults for all other fields. The
    /// name is the metric's, with dashes in place of characters not allowed in a rule name.
    pub fn new(metric: Metric) -> Self {
        let to_name_char = |c: char| match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9' | '_') => c,
            _ => '-',
        };
        Self {
            name: metric.to_string().chars().map(to_name_char).collect(),
            metric,
            min: 0.0,
            diff: None,
            abs: None,
            below: None,
            forecast: None,
            max: None,
            hold: HoldDurations::default(),
            clear: None,
            clear_for: Duration::ZERO,
            critical: None,
            cooldown: Duration::from_secs(60 * 60),
            refire: Refire::OnWorsening,
            mode: Mode::Capture,
            capture: CaptureSet::all(),
            collectors: CollectorSelection::All,
            duration: Duration::from_secs(10),
        }
    }
}

/// Hold times of a rule's conditions. A condition must hold at this tick and at no fewer than four
/// fifths of the ticks in its hold time.
///
/// ```text
/// ticks of 250 ms: 32 of 40 in 10 s, 7 of 8 in 2 s, 4 of 4 in 1 s
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct HoldDurations {
    /// Hold time of `abs`.
    pub abs: Duration,
    /// Hold time of `diff`.
    pub diff: Duration,
    /// Hold time of `forecast`.
    pub forecast: Duration,
    /// Hold time of `below`.
    pub below: Duration,
}

impl From<Duration> for HoldDurations {
    /// Uses the same hold time for all conditions.
    fn from(hold: Duration) -> Self {
        Self { abs: hold, diff: hold, forecast: hold, below: hold }
    }
}

/// The condition on which a rule captures again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum Refire {
    /// The value has worsened since the last capture: the headroom below the limit has shrunk by a
    /// third. For a metric without a limit: the value has grown by half, or with `below` fallen by
    /// a third. Otherwise the rule does not capture again while the incident is open. Above a limit
    /// that only throttles, the headroom is measured to the one that kills.
    ///
    /// Another incident no worse than all those of the last 24 hours waits for `cooldown`. The wait
    /// doubles with each such incident within 24 hours.
    OnWorsening,
    /// The time `cooldown` has passed since the last capture, in this incident or another (the
    /// semantics of holmes).
    AfterCooldown,
}

impl Refire {
    /// Returns the name used in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::OnWorsening => "on-worsening",
            Self::AfterCooldown => "after-cooldown",
        }
    }
}

/// The action of a rule that fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum Mode {
    /// Takes captures.
    Capture,
    /// Reports that it would have fired, without taking captures.
    DryRun,
}

impl Mode {
    /// Returns the name used in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Capture => "capture",
            Self::DryRun => "dry-run",
        }
    }
}
