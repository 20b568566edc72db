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
    Hold(HoldReason),
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
    pub condition: Condition,
    /// The average of the last ten values, including this one.
    pub average: f64,
}

/// A condition of a rule.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Condition {
    /// The value is above `abs`.
    Abs,
    /// The value is `diff` per cent above its average.
    Diff,
    /// The value reaches its limit within `forecast`.
    Forecast {
        /// Time to the limit at the current rate of rise.
        time_to_limit: Duration,
    },
    /// The value is below `below`.
    Below,
}

impl Condition {
    /// Number of conditions.
    pub(super) const COUNT: usize = 4;
}

/// Reason why a rule does not fire. Numbers are in the metric's unit.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum HoldReason {
    /// The metric could not be measured.
    NoValue,
    /// There are too few values for an average.
    WarmingUp {
        /// Number of values so far.
        value_count: usize,
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
        started_at: Moment,
        /// Required duration.
        hold_time: Duration,
    },
    /// A condition is crossed, but for less than `for`.
    Pending {
        /// The crossed condition.
        crossing: ThresholdCrossing,
        /// Time since which it is crossed.
        started_at: Moment,
        /// Required duration.
        hold_time: Duration,
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
        immediate_threshold: Option<f64>,
    },
    /// A condition is crossed, but the value is no worse than at the last capture of this incident.
    NotWorse {
        /// The crossed condition.
        crossing: ThresholdCrossing,
        /// Headroom below the limit, if there is one.
        headroom: Option<f64>,
    },
    /// A condition is crossed, but too soon after the last incident.
    TooSoon {
        /// The crossed condition.
        crossing: ThresholdCrossing,
        /// Time at which the next incident is allowed.
        until: Moment,
    },
    /// A condition is crossed, but the daily budget of incidents is used up.
    DailyBudgetSpent {
        /// The crossed condition.
        crossing: ThresholdCrossing,
        /// Time at which the next incident is allowed.
        until: Moment,
    },
    /// A condition is crossed, but its incident has reached its maximum number of captures.
    CaptureLimitReached {
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
                HoldReason::NoValue => "no_value",
                HoldReason::WarmingUp { .. } => "warming_up",
                HoldReason::BelowMin { .. } => "below_min",
                HoldReason::AboveMax { .. } => "above_max",
                HoldReason::WithinLimits { .. } => "within_limits",
                HoldReason::NotClear { .. } => "not_clear",
                HoldReason::Pending { .. } => "holding",
                HoldReason::Capturing { .. } => "capturing",
                HoldReason::CoolingDown { .. } => "cooling_down",
                HoldReason::Repeating { .. } => "repeating",
                HoldReason::Clearing { .. } => "clearing",
                HoldReason::NotWorse { .. } => "not_worse",
                HoldReason::TooSoon { .. } => "too_soon",
                HoldReason::DailyBudgetSpent { .. } => "daily_budget_spent",
                HoldReason::CaptureLimitReached { .. } => "capture_limit",
            },
        }
    }

    /// Returns the time at which the reason to hold ends, or `None` if it does not depend on time.
    pub const fn hold_ends_at(self) -> Option<Moment> {
        match self {
            Self::Hold(
                HoldReason::CoolingDown { until, .. }
                | HoldReason::Repeating { until, .. }
                | HoldReason::TooSoon { until, .. }
                | HoldReason::DailyBudgetSpent { until, .. },
            ) => Some(until),
            _ => None,
        }
    }

    /// Returns `true` if `other` is the same kind of decision, possibly with other numbers.
    pub(super) fn is_same_kind(&self, other: &Self) -> bool {
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

    fn write_crossing(
        &self,
        f: &mut fmt::Formatter<'_>,
        crossing: ThresholdCrossing,
    ) -> fmt::Result {
        let value = self.amount(crossing.value);
        let threshold = self.amount(crossing.threshold);
        match crossing.condition {
            Condition::Abs => write!(f, "{} {value} is above abs {threshold}", self.rule.metric),
            Condition::Below => write!(f, "{} {value} is below {threshold}", self.rule.metric),
            Condition::Diff => write!(
                f,
                "{} {value} is at or above {threshold} (average {} plus diff {} %)",
                self.rule.metric,
                self.amount(crossing.average),
                self.rule.diff.unwrap_or_default(),
            ),
            Condition::Forecast { time_to_limit } => write!(
                f,
                "{} {value} is projected to reach its limit {threshold} in {:?}",
                self.rule.metric,
                truncate_to_millis(time_to_limit),
            ),
        }
    }

    fn write_hold_reason(&self, f: &mut fmt::Formatter<'_>, hold: HoldReason) -> fmt::Result {
        let metric = &self.rule.metric;
        match hold {
            HoldReason::NoValue => write!(f, "{metric} has no value"),
            HoldReason::WarmingUp { value_count } => {
                write!(f, "warming up: {value_count} of {WINDOW} values of {metric} collected")
            }
            HoldReason::BelowMin { value, min } => {
                write!(f, "{metric} {} is below min {}", self.amount(value), self.amount(min))
            }
            HoldReason::AboveMax { value, max } => write!(
                f,
                "{metric} {} is at or above max {}, too late for a capture",
                self.amount(value),
                self.amount(max),
            ),
            HoldReason::WithinLimits { value: f64::INFINITY, .. } => {
                write!(f, "{metric} is infinite: the limit is not reached within a day")
            }
            HoldReason::WithinLimits { value, abs, average } => {
                if let Some(below) = self.rule.below {
                    let value = self.amount(value);
                    let below = self.amount(below);
                    return write!(f, "{metric} {value} is not below {below}");
                }
                write!(f, "{metric} {} is within limits: ", self.amount(value))?;
                if let Some(abs) = abs {
                    write!(f, "abs {}, ", self.amount(abs))?;
                }
                write!(f, "average {}", self.amount(average))
            }
            HoldReason::NotClear { value, clear } => write!(
                f,
                "{metric} {} is within limits, but the incident stays open until clear {}",
                self.amount(value),
                self.amount(clear),
            ),
            HoldReason::Pending { crossing, started_at, hold_time } => {
                self.write_crossing(f, crossing)?;
                write!(
                    f,
                    ", for {:?} of {hold_time:?}",
                    truncate_to_millis(self.now.since(started_at))
                )
            }
            HoldReason::Capturing { crossing } => {
                self.write_crossing(f, crossing)?;
                f.write_str(", but its capture is running")
            }
            HoldReason::CoolingDown { crossing, until } => {
                self.write_crossing(f, crossing)?;
                write!(
                    f,
                    ", but it is cooling down for another {:?}",
                    truncate_to_millis(until.since(self.now))
                )
            }
            HoldReason::Repeating { crossing, until, repeats, immediate_threshold } => {
                self.write_crossing(f, crossing)?;
                write!(
                    f,
                    ", but it is no worse than the captures of the last 24 hours ({repeats} of \
                     those incidents are repeats): delayed for another {:?}",
                    truncate_to_millis(until.since(self.now))
                )?;
                match immediate_threshold {
                    Some(value) if self.rule.below.is_some() => {
                        write!(f, ", or until it is below {}", self.amount(value))
                    }
                    Some(value) => write!(f, ", or until it is above {}", self.amount(value)),
                    None => Ok(()),
                }
            }
            HoldReason::Clearing { value, started_at, hold_time } => write!(
                f,
                "{metric} {} is within limits, for {:?} of {hold_time:?}",
                self.amount(value),
                truncate_to_millis(self.now.since(started_at)),
            ),
            HoldReason::NotWorse { crossing, headroom } => {
                self.write_crossing(f, crossing)?;
                f.write_str(", but it is already captured and no worse")?;
                match headroom {
                    Some(headroom) => write!(f, ": headroom is {}", self.amount(headroom)),
                    None => Ok(()),
                }
            }
            HoldReason::TooSoon { crossing, until } => {
                self.write_crossing(f, crossing)?;
                let remaining = truncate_to_millis(until.since(self.now));
                write!(f, ", but min_between_incidents lasts another {remaining:?}")
            }
            HoldReason::DailyBudgetSpent { crossing, until } => {
                self.write_crossing(f, crossing)?;
                let remaining = truncate_to_millis(until.since(self.now));
                write!(f, ", but incidents_per_day is used up for another {remaining:?}")
            }
            HoldReason::CaptureLimitReached { crossing } => {
                self.write_crossing(f, crossing)?;
                f.write_str(", but captures_per_incident is used up")
            }
        }
    }
}

impl fmt::Display for StateExplanation<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.decision {
            Decision::Fire(crossing) => self.write_crossing(f, crossing),
            Decision::Hold(hold) => self.write_hold_reason(f, hold),
            Decision::Clear => write!(f, "{} is back within limits", self.rule.metric),
        }
    }
}

/// Rounds `duration` down to whole milliseconds.
fn truncate_to_millis(duration: Duration) -> Duration {
    Duration::from_millis(duration.as_millis().try_into().unwrap_or(u64::MAX))
}
