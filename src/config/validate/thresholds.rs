//! Checks of a rule's numbers: each by itself, and against each other.

use std::time::Duration;

use super::Validator;
use crate::model::{Amount, Metric, Rule, Unit};

/// Byte counts that lack a unit: every process has more memory than a page. 0 and 1 are excluded,
/// since they are written to fire always.
const MISSING_UNIT_RANGE: std::ops::Range<f64> = 2.0..4096.0;
/// A longer condition never holds, and a longer forecast is never right.
const MAX_RULE_DURATION: Duration = Duration::from_secs(24 * 60 * 60);

pub(super) fn check_thresholds(check: &mut Validator, rule: &Rule) {
    check_each(check, rule);
    let unit = rule.metric.unit();
    let shown = |value| Amount { value, unit };
    if let Some(diff) = rule.diff {
        check.require(diff.is_finite() && diff > 0.0, &["diff"], || {
            format!("{diff} would fire on a steady value: write more than 0, such as 25")
        });
    }
    if let Some(below) = rule.below {
        check_falling(check, rule, below);
    } else {
        check_rising(check, rule);
    }
    if let Some(max) = rule.max {
        let (name, floor) = match rule.abs {
            Some(abs) if abs > rule.min => ("abs", abs),
            _ => ("min", rule.min),
        };
        check.require(max > floor, &["max", name], || {
            format!(
                "{} is not above {name} ({}): the rule could never fire",
                shown(max),
                shown(floor)
            )
        });
    }
    check_durations(check, rule);
}

/// Checks each threshold by itself.
fn check_each(check: &mut Validator, rule: &Rule) {
    let unit = rule.metric.unit();
    let thresholds = [
        ("min", Some(rule.min)),
        ("abs", rule.abs),
        ("below", rule.below),
        ("max", rule.max),
        ("clear", rule.clear),
        ("critical", rule.critical),
    ];
    for (key, value) in thresholds {
        let Some(value) = value else { continue };
        let (is_valid, right) = match unit {
            _ if !value.is_finite() => (false, "a finite number"),
            Unit::Percent => ((0.0..=100.0).contains(&value), "0 to 100"),
            Unit::Bytes | Unit::Seconds => (value >= 0.0, "0 or more"),
            Unit::Count => (true, ""),
        };
        check.require(is_valid, &[key, "metric"], || {
            format!("{} can never reach {value}: write {right}", rule.metric)
        });
    }
    let is_size = matches!(rule.metric, Metric::WorkingSet | Metric::Rss | Metric::Heap);
    for (key, value) in [("abs", rule.abs), ("max", rule.max), ("critical", rule.critical)] {
        let Some(value) = value.filter(|value| is_size && MISSING_UNIT_RANGE.contains(value))
        else {
            continue;
        };
        check.require(false, &[key, "metric"], || {
            format!(
                "{} always exceeds {value} bytes: write \"{value}MiB\", or metric = \"memory\" \
                 for {value} % of the memory limit",
                rule.metric
            )
        });
    }
}

/// Checks a rule that fires above a threshold.
fn check_rising(check: &mut Validator, rule: &Rule) {
    let unit = rule.metric.unit();
    let shown = |value| Amount { value, unit };
    if let Some(abs) = rule.abs {
        check.require(rule.min <= abs, &["min", "abs"], || {
            format!(
                "{} is above abs ({}), and the rule does not fire below min: write a lower value",
                shown(rule.min),
                shown(abs)
            )
        });
    }
    if let (Some(clear), Some(abs)) = (rule.clear, rule.abs) {
        check.require(clear < abs, &["clear", "abs"], || {
            format!("{} is not below abs ({}): write a lower value", shown(clear), shown(abs))
        });
    }
    if let Some(critical) = rule.critical {
        let floors = [("abs", rule.abs), ("min", Some(rule.min)), ("clear", rule.clear)];
        let mut floors = floors.into_iter().filter_map(|(key, value)| Some((key, value?)));
        if let Some((key, floor)) = floors.find(|(_, floor)| critical < *floor) {
            check.require(false, &["critical", key], || {
                format!(
                    "{} is below {key} ({}), so every incident is critical: write a higher value",
                    shown(critical),
                    shown(floor)
                )
            });
        }
    }
    for (key, value) in [("critical", rule.critical), ("clear", rule.clear)] {
        if let (Some(value), Some(max)) = (value, rule.max) {
            check.require(value < max, &[key, "max"], || {
                format!(
                    "{} is not below max ({}), and the rule does not fire at or above max: \
                     write a lower value",
                    shown(value),
                    shown(max)
                )
            });
        }
    }
}

/// Checks a rule that fires below a threshold, with all comparisons reversed.
fn check_falling(check: &mut Validator, rule: &Rule, below: f64) {
    let unit = rule.metric.unit();
    let shown = |value| Amount { value, unit };
    check.require(below > rule.min, &["below", "min"], || {
        format!("{} is not above min ({}): write a higher value", shown(below), shown(rule.min))
    });
    if let Some(clear) = rule.clear.filter(|clear| *clear <= below) {
        check.require(false, &["clear", "below"], || {
            format!("{} is not above below ({}): write a higher value", shown(clear), shown(below))
        });
    }
    if rule.abs.is_some() || rule.diff.is_some() || rule.forecast.is_some() {
        // Combining `below` with the other conditions is already an error.
        return;
    }
    if let Some(critical) = rule.critical.filter(|critical| *critical > below) {
        check.require(false, &["critical", "below"], || {
            format!(
                "{} is above below ({}), so every incident is critical: write a lower value",
                shown(critical),
                shown(below)
            )
        });
    }
    if let Some(critical) = rule.critical.filter(|critical| *critical <= rule.min) {
        check.require(false, &["critical", "min"], || {
            format!(
                "{} is not above min ({}), and the rule does not fire below min: write a higher \
                 value",
                shown(critical),
                shown(rule.min)
            )
        });
    }
}

fn check_durations(check: &mut Validator, rule: &Rule) {
    let holds = rule.hold;
    let longest = holds.abs.max(holds.diff).max(holds.forecast).max(holds.below);
    let limits = [("for", longest), ("clear_for", rule.clear_for), ("duration", rule.duration)];
    let forecast = rule.forecast.map(|within| ("forecast", within));
    for (key, time) in limits.into_iter().chain(forecast) {
        check.require(time <= MAX_RULE_DURATION, &[key], || {
            format!("{time:?} is longer than a day: write at most {MAX_RULE_DURATION:?}")
        });
    }
    if let Some(forecast) = rule.forecast {
        check.require(!forecast.is_zero(), &["forecast"], || {
            "the duration is 0: write a duration such as \"10s\"".to_owned()
        });
        check.require(forecast.is_zero() || holds.forecast < forecast, &["for", "forecast"], || {
            format!(
                "{:?} is not shorter than forecast ({forecast:?}), so the limit would be reached \
                 before the rule fires: write a shorter duration, or one for each condition, such \
                 as {{ abs = \"30s\", forecast = \"1s\" }}",
                holds.forecast
            )
        });
    }
}
