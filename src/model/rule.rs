//! What is watched for, and what to do about it.

use std::time::Duration;

use super::capture::CaptureSet;
use super::collect::Collect;
use super::metric::Metric;

/// Conditions over one metric, what to capture when one holds, and how often.
///
/// All numbers are in the metric's unit, except `diff`. What they mean is said where they are applied,
/// in `rules`. Write `Rule { abs: Some(80.0), ..Rule::on(Metric::Memory) }`.
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
    /// Fires below this: for what there may be too little of. Such a rule has none of the other three, and
    /// its `clear` and `critical` are mirrored.
    pub below: Option<f64>,
    /// Fires when the limit would be reached within this, were the value to go on as it does.
    pub forecast: Option<Duration>,
    /// At or above this nothing fires: too late for a capture.
    pub max: Option<f64>,
    /// How long each condition must hold before the rule fires. It may be false for a fifth of that time in all.
    pub hold: Holds,
    /// At or below this (with `below`, at or above) the incident is over if no condition holds; without it,
    /// as soon as none does.
    pub clear: Option<f64>,
    /// For how long that must be so.
    pub clear_hold: Duration,
    /// Above this (with `below`, below it) the rule does not wait for the gap between two incidents, and four
    /// hours after its last capture for nothing.
    pub critical: Option<f64>,
    /// How long after a capture of this rule before the next that is no worse; it doubles with each such
    /// incident in a day. 1 h by default. See [`Again`].
    pub cooldown: Duration,
    /// When it captures again.
    pub again: Again,
    /// Whether it captures at all.
    pub mode: Mode,
    /// What to capture.
    pub capture: CaptureSet,
    /// Which files of the service's own to take besides.
    pub collect: Collect,
    /// For how long.
    pub duration: Duration,
}

impl Rule {
    /// A rule over `metric` without a condition and with the default of everything else; its name is the
    /// metric's, with dashes for what a name may not have.
    pub fn on(metric: Metric) -> Self {
        let letter = |c: char| match c.to_ascii_lowercase() {
            c @ ('a'..='z' | '0'..='9' | '_') => c,
            _ => '-',
        };
        Self {
            name: metric.to_string().chars().map(letter).collect(),
            metric,
            min: 0.0,
            diff: None,
            abs: None,
            below: None,
            forecast: None,
            max: None,
            hold: Holds::default(),
            clear: None,
            clear_hold: Duration::ZERO,
            critical: None,
            cooldown: Duration::from_secs(60 * 60),
            again: Again::Worse,
            mode: Mode::Capture,
            capture: CaptureSet::all(),
            collect: Collect::All,
            duration: Duration::from_secs(10),
        }
    }
}

/// How long each of a rule's conditions must hold: true now, and in at least four fifths of the time. With ticks of
/// 250 ms that is 32 of 40 in 10 s, 7 of 8 in 2 s, and each of 4 in 1 s.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Holds {
    /// `abs`.
    pub abs: Duration,
    /// `diff`.
    pub diff: Duration,
    /// `forecast`.
    pub forecast: Duration,
    /// `below`.
    pub below: Duration,
}

impl From<Duration> for Holds {
    /// The same for each.
    fn from(hold: Duration) -> Self {
        Self { abs: hold, diff: hold, forecast: hold, below: hold }
    }
}

/// When a rule that has captured does so again.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Again {
    /// When it has become worse: the room below the limit has shrunk by a third since the last capture,
    /// or, for what has no limit, the value has grown by half, or with `below` fallen by a third. Else not
    /// while the incident is open. Another incident that is no worse than all of the last 24 hours waits for
    /// `cooldown`, and for twice as long with each such incident in a day.
    Worse,
    /// Each time `cooldown` has passed since the last capture, in the same incident or another: holmes.
    Cooldown,
}

impl Again {
    /// Its name in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Worse => "worse",
            Self::Cooldown => "cooldown",
        }
    }
}

/// What a rule does when it fires.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mode {
    /// It captures.
    Capture,
    /// It says that it would.
    DryRun,
}

impl Mode {
    /// Its name in settings.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Capture => "capture",
            Self::DryRun => "dry-run",
        }
    }
}
