//! What is decided, and why, in numbers and in a sentence.

use std::fmt;
use std::time::Duration;

use super::ring::WINDOW;
use crate::base::Moment;
use crate::model::{Amount, Rule};

/// What a rule says at a tick.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decision {
    /// Capture.
    Fire(Crossing),
    /// Do not, and why.
    Hold(Hold),
    /// The incident of this rule is over. Said once.
    Clear,
}

/// What was crossed. Numbers are in the metric's unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Crossing {
    /// The value.
    pub value: f64,
    /// The threshold it is beyond: `abs` or `below`, or the average raised by `diff`; for a forecast, the
    /// limit.
    pub threshold: f64,
    /// Which of them.
    pub by: By,
    /// The average of the last ten values, this one included.
    pub average: f64,
}

/// A kind of threshold.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The value is above `abs`.
    Abs,
    /// The value is `diff` per cent above its average.
    Diff,
    /// The value reaches its limit within `forecast`.
    Forecast {
        /// How long that takes, as the value rises.
        left: Duration,
    },
    /// The value is below `below`.
    Below,
}

impl By {
    /// How many kinds there are.
    pub(super) const COUNT: usize = 4;
}

/// Why a rule does not fire. Numbers are in the metric's unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Hold {
    /// The metric could not be measured.
    NoValue,
    /// Too few values for an average.
    WarmingUp {
        /// How many were seen.
        seen: usize,
    },
    /// Below `min`.
    BelowMin {
        /// The value.
        value: f64,
        /// `min`.
        min: f64,
    },
    /// At or above `max`.
    AboveMax {
        /// The value.
        value: f64,
        /// `max`.
        max: f64,
    },
    /// Nothing is crossed.
    WithinLimits {
        /// The value.
        value: f64,
        /// `abs`, if the rule has one.
        abs: Option<f64>,
        /// The average of the last ten.
        average: f64,
    },
    /// Nothing is crossed any more, but the incident is open until the value is down at `clear`.
    NotClear {
        /// The value.
        value: f64,
        /// What it must come down to.
        clear: f64,
    },
    /// Nothing is crossed any more, but not for as long as `clear_for` yet.
    Clearing {
        /// The value.
        value: f64,
        /// Since when.
        since: Moment,
        /// How long it must be.
        need: Duration,
    },
    /// Crossed, but not for as long as `for` yet.
    Holding {
        /// What is crossed.
        crossing: Crossing,
        /// Since when.
        since: Moment,
        /// How long it must be.
        need: Duration,
    },
    /// Crossed, but a capture of this rule runs.
    Capturing {
        /// What is crossed.
        crossing: Crossing,
    },
    /// Crossed, but too soon after the last capture.
    CoolingDown {
        /// What is crossed.
        crossing: Crossing,
        /// When the rule may fire again.
        until: Moment,
    },
    /// Crossed, but no worse than what was captured in the last 24 hours: each such incident waits twice as
    /// long as the one before it.
    Repeating {
        /// What is crossed.
        crossing: Crossing,
        /// When the rule may fire again.
        until: Moment,
        /// How many such incidents there were in the last 24 hours.
        repeats: usize,
        /// The value from which on it fires at once, if there is one before the limit.
        sooner: Option<f64>,
    },
    /// Crossed, and captured in this incident already: it has not become worse.
    NotWorse {
        /// What is crossed.
        crossing: Crossing,
        /// What is left below the limit, if there is one.
        room: Option<f64>,
    },
    /// Crossed, but too soon after the last incident.
    Gap {
        /// What is crossed.
        crossing: Crossing,
        /// When there may be another.
        until: Moment,
    },
    /// Crossed, but the day's incidents are spent.
    Spent {
        /// What is crossed.
        crossing: Crossing,
        /// When there may be another.
        until: Moment,
    },
    /// Crossed, but the captures of its incident are spent.
    Exhausted {
        /// What is crossed.
        crossing: Crossing,
    },
}

impl Decision {
    /// The decision in one sentence: `rule` is the one that made it, `now` the moment it is told.
    pub fn explain(self, rule: &Rule, now: Moment) -> Explain<'_> {
        Explain { decision: self, rule, now }
    }

    /// The decision in one word, for machines.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Fire(_) => "fire",
            Self::Clear => "clear",
            Self::Hold(hold) => match hold {
                Hold::NoValue => "no_value",
                Hold::WarmingUp { .. } => "warming_up",
                Hold::BelowMin { .. } => "below_min",
                Hold::AboveMax { .. } => "above_max",
                Hold::WithinLimits { .. } => "within_limits",
                Hold::NotClear { .. } => "not_clear",
                Hold::Holding { .. } => "holding",
                Hold::Capturing { .. } => "capturing",
                Hold::CoolingDown { .. } => "cooling_down",
                Hold::Repeating { .. } => "repeating",
                Hold::Clearing { .. } => "clearing",
                Hold::NotWorse { .. } => "not_worse",
                Hold::Gap { .. } => "gap",
                Hold::Spent { .. } => "spent",
                Hold::Exhausted { .. } => "exhausted",
            },
        }
    }

    /// When what holds the rule back ends, if that is a matter of time.
    pub const fn until(self) -> Option<Moment> {
        match self {
            Self::Hold(
                Hold::CoolingDown { until, .. }
                | Hold::Repeating { until, .. }
                | Hold::Gap { until, .. }
                | Hold::Spent { until, .. },
            ) => Some(until),
            _ => None,
        }
    }

    /// Whether `other` says the same, be it with other numbers.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Hold(a), Self::Hold(b)) => {
                std::mem::discriminant(a) == std::mem::discriminant(b)
            }
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

/// A decision that prints as one sentence.
#[derive(Clone, Copy, Debug)]
pub struct Explain<'r> {
    decision: Decision,
    rule: &'r Rule,
    now: Moment,
}

impl Explain<'_> {
    fn amount(&self, value: f64) -> Amount {
        Amount { value, unit: self.rule.metric.unit() }
    }

    fn crossing(&self, f: &mut fmt::Formatter<'_>, crossing: Crossing) -> fmt::Result {
        let Crossing { value, threshold, by, average } = crossing;
        let (value, threshold) = (self.amount(value), self.amount(threshold));
        match by {
            By::Abs => write!(f, "{} {value} is above abs {threshold}", self.rule.metric),
            By::Below => write!(f, "{} {value} is below {threshold}", self.rule.metric),
            By::Diff => write!(
                f,
                "{} {value} is at or above {threshold}, its average {} plus diff {} %",
                self.rule.metric,
                self.amount(average),
                self.rule.diff.unwrap_or_default(),
            ),
            By::Forecast { left } => write!(
                f,
                "{} {value} reaches its limit {threshold} in {:?}, as it rises",
                self.rule.metric,
                millis(left),
            ),
        }
    }

    fn hold(&self, f: &mut fmt::Formatter<'_>, hold: Hold) -> fmt::Result {
        let metric = &self.rule.metric;
        match hold {
            Hold::NoValue => write!(f, "{metric} cannot be measured here"),
            Hold::WarmingUp { seen } => {
                write!(f, "warming up: {seen} of {WINDOW} values of {metric} seen")
            }
            Hold::BelowMin { value, min } => {
                write!(f, "{metric} {} is below min {}", self.amount(value), self.amount(min))
            }
            Hold::AboveMax { value, max } => write!(
                f,
                "{metric} {} is at or above max {}, too late for a capture",
                self.amount(value),
                self.amount(max),
            ),
            Hold::WithinLimits { value: f64::INFINITY, .. } => {
                write!(f, "{metric} is endless: no limit is in sight")
            }
            Hold::WithinLimits { value, abs, average } => {
                if let Some(below) = self.rule.below {
                    let (value, below) = (self.amount(value), self.amount(below));
                    return write!(f, "{metric} {value} is not below {below}");
                }
                write!(f, "{metric} {} is within limits: ", self.amount(value))?;
                if let Some(abs) = abs {
                    write!(f, "abs {}, ", self.amount(abs))?;
                }
                write!(f, "average {}", self.amount(average))
            }
            Hold::NotClear { value, clear } => write!(
                f,
                "{metric} {} is within limits, but the incident is open until {}",
                self.amount(value),
                self.amount(clear),
            ),
            Hold::Holding { crossing, since, need } => {
                self.crossing(f, crossing)?;
                write!(f, ", for {:?} of {need:?}", millis(self.now.since(since)))
            }
            Hold::Capturing { crossing } => {
                self.crossing(f, crossing)?;
                f.write_str(", but its capture is running")
            }
            Hold::CoolingDown { crossing, until } => {
                self.crossing(f, crossing)?;
                write!(
                    f,
                    ", but it is cooling down for another {:?}",
                    millis(until.since(self.now))
                )
            }
            Hold::Repeating { crossing, until, repeats, sooner } => {
                self.crossing(f, crossing)?;
                write!(
                    f,
                    ", but no worse than what was captured in the last 24 hours, {repeats} of those \
                     incidents being repeats: held back for another {:?}",
                    millis(until.since(self.now))
                )?;
                match sooner {
                    Some(value) if self.rule.below.is_some() => {
                        write!(f, ", or until it is below {}", self.amount(value))
                    }
                    Some(value) => write!(f, ", or until it is above {}", self.amount(value)),
                    None => Ok(()),
                }
            }
            Hold::Clearing { value, since, need } => write!(
                f,
                "{metric} {} is within limits, for {:?} of {need:?}",
                self.amount(value),
                millis(self.now.since(since)),
            ),
            Hold::NotWorse { crossing, room } => {
                self.crossing(f, crossing)?;
                f.write_str(", but it was captured and has not become worse")?;
                match room {
                    Some(room) => write!(f, ": {} are left", self.amount(room)),
                    None => Ok(()),
                }
            }
            Hold::Gap { crossing, until } => {
                self.crossing(f, crossing)?;
                let left = millis(until.since(self.now));
                write!(f, ", but min_between_incidents has {left:?} to go")
            }
            Hold::Spent { crossing, until } => {
                self.crossing(f, crossing)?;
                let left = millis(until.since(self.now));
                write!(f, ", but incidents_per_day are spent for another {left:?}")
            }
            Hold::Exhausted { crossing } => {
                self.crossing(f, crossing)?;
                f.write_str(", but captures_per_incident are spent")
            }
        }
    }
}

impl fmt::Display for Explain<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.decision {
            Decision::Fire(crossing) => self.crossing(f, crossing),
            Decision::Hold(hold) => self.hold(f, hold),
            Decision::Clear => write!(f, "{} is back within limits", self.rule.metric),
        }
    }
}

/// `duration` in whole milliseconds.
fn millis(duration: Duration) -> Duration {
    Duration::from_millis(duration.as_millis().try_into().unwrap_or(u64::MAX))
}
