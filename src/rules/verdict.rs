//! Decisions and their reasons, as numbers and as a sentence.

use std::fmt;
use std::time::Duration;

use super::ring::WINDOW;
use crate::base::Moment;
use crate::model::{Amount, Rule};

/// The decision of a rule at a tick.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Decision {
    /// Capture.
    Fire(ThresholdCrossing),
    /// Do not capture, for this reason.
    Hold(Hold),
    /// The incident of this rule has ended. Returned once.
    Clear,
}

/// A crossed threshold. Numbers are in the metric's unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct ThresholdCrossing {
    /// The value.
    pub value: f64,
    /// The crossed threshold: `abs`, `below`, or the average raised by `diff`. For a forecast, the
    /// limit.
    pub threshold: f64,
    /// The condition that is crossed.
    pub by: By,
    /// The average of the last ten values, including this one.
    pub average: f64,
}

/// A condition of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum By {
    /// The value is above `abs`.
    Abs,
    /// The value is `diff` per cent above its average.
    Diff,
    /// The value reaches its limit within `forecast`.
    Forecast {
        /// Time to the limit at the current rate of rise.
        left: Duration,
    },
    /// The value is below `below`.
    Below,
}

impl By {
    /// Number of conditions.
    pub(super) const COUNT: usize = 4;
}

/// Reason why a rule does not fire. Numbers are in the metric's unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Hold {
    /// The metric could not be measured.
    NoValue,
    /// There are too few values for an average.
    WarmingUp {
        /// Number of values so far.
        seen: usize,
    },
    /// The value is below `min`.
    BelowMin {
        /// The value.
        value: f64,
        /// The minimum, `min`.
        min: f64,
    },
    /// The value is at or above `max`.
    AboveMax {
        /// The value.
        value: f64,
        /// The maximum, `max`.
        max: f64,
    },
    /// No condition is crossed.
    WithinLimits {
        /// The value.
        value: f64,
        /// The threshold `abs`, if the rule has one.
        abs: Option<f64>,
        /// The average of the last ten values.
        average: f64,
    },
    /// No condition is crossed, but the incident stays open until the value is back at `clear`.
    NotClear {
        /// The value.
        value: f64,
        /// The threshold `clear`.
        clear: f64,
    },
    /// No condition is crossed, but for less than `clear_for`.
    Clearing {
        /// The value.
        value: f64,
        /// Time since which no condition is crossed.
        since: Moment,
        /// Required duration.
        need: Duration,
    },
    /// A condition is crossed, but for less than `for`.
    Holding {
        /// The crossed condition.
        crossing: ThresholdCrossing,
        /// Time since which it is crossed.
        since: Moment,
        /// Required duration.
        need: Duration,
    },
    /// A condition is crossed, but a capture of this rule is running.
    Capturing {
        /// The crossed condition.
        crossing: ThresholdCrossing,
    },
    /// A condition is crossed, but too soon after the last capture.
    CoolingDown {
        /// The crossed condition.
        crossing: ThresholdCrossing,
        /// Time at which the rule may fire again.
        until: Moment,
    },
    /// A condition is crossed, but the value is no worse than at a capture of the last 24 hours.
    /// Each such incident waits twice as long as the one before it.
    Repeating {
        /// The crossed condition.
        crossing: ThresholdCrossing,
        /// Time at which the rule may fire again.
        until: Moment,
        /// Number of such incidents in the last 24 hours.
        repeats: usize,
        /// The value at which the rule fires at once, or `None` if there is none before the limit.
        sooner: Option<f64>,
    },
    /// A condition is crossed, but the value is no worse than at the last capture of this incident.
    NotWorse {
        /// The crossed condition.
        crossing: ThresholdCrossing,
        /// Headroom below the limit, if there is one.
        room: Option<f64>,
    },
    /// A condition is crossed, but too soon after the last incident.
    Gap {
        /// The crossed condition.
        crossing: ThresholdCrossing,
        /// Time at which the next incident is allowed.
        until: Moment,
    },
    /// A condition is crossed, but the daily budget of incidents is used up.
    Spent {
        /// The crossed condition.
        crossing: ThresholdCrossing,
        /// Time at which the next incident is allowed.
        until: Moment,
    },
    /// A condition is crossed, but its incident has reached its maximum number of captures.
    Exhausted {
        /// The crossed condition.
        crossing: ThresholdCrossing,
    },
}

impl Decision {
    /// Returns the decision as one sentence. `rule` is the rule that made it, `now` the current
    /// time.
    pub fn explain(self, rule: &Rule, now: Moment) -> StateExplanation<'_> {
        StateExplanation { decision: self, rule, now }
    }

    /// Returns the kind of decision as one word, for machines.
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

    /// Returns the time at which the reason to hold ends, or `None` if it does not depend on time.
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

    /// Returns `true` if `other` is the same kind of decision, possibly with other numbers.
    pub(super) fn is_like(&self, other: &Self) -> bool {
        match (self, other) {
            (Self::Hold(a), Self::Hold(b)) => {
                std::mem::discriminant(a) == std::mem::discriminant(b)
            }
            _ => std::mem::discriminant(self) == std::mem::discriminant(other),
        }
    }
}

/// A decision that displays as one sentence.
#[derive(Clone, Copy, Debug)]
pub struct StateExplanation<'r> {
    decision: Decision,
    rule: &'r Rule,
    now: Moment,
}

impl StateExplanation<'_> {
    fn amount(&self, value: f64) -> Amount {
        Amount { value, unit: self.rule.metric.unit() }
    }

    fn crossing(&self, f: &mut fmt::Formatter<'_>, crossing: ThresholdCrossing) -> fmt::Result {
        let ThresholdCrossing { value, threshold, by, average } = crossing;
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

impl fmt::Display for StateExplanation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.decision {
            Decision::Fire(crossing) => self.crossing(f, crossing),
            Decision::Hold(hold) => self.hold(f, hold),
            Decision::Clear => write!(f, "{} is back within limits", self.rule.metric),
        }
    }
}

/// Rounds `duration` down to whole milliseconds.
fn millis(duration: Duration) -> Duration {
    Duration::from_millis(duration.as_millis().try_into().unwrap_or(u64::MAX))
}
