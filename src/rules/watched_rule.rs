//! One rule and its state.

pub(super) mod admission;
mod hold_time;

use std::time::Duration;

use super::decision::{Condition, Decision, HoldReason, ThresholdCrossing};
use super::decision_history::{DecisionChange, DecisionHistory};
use super::history::{FireHistory, FireRecord};
use super::ring::{ValueRing, WINDOW};
use super::{Admission, LastFire};
use crate::base::{EventTime, Moment};
use crate::model::{HoldDurations, Metric, Mode, Rule, Vitals};
use hold_time::HeldTime;

/// Time without a value after which an incident clears. A value can be missing for some ticks, for
/// example while the process has no descriptor left.
const MISSING_VALUE_TIMEOUT: Duration = Duration::from_secs(60);

/// A rule and its state.
#[derive(Clone, Debug)]
pub(super) struct WatchedRule {
    pub(super) rule: Rule,
    ring: ValueRing,
    /// Hold time of each condition.
    hold_times: [HeldTime; Condition::COUNT],
    is_capturing: bool,
    /// End of its last capture.
    pub(super) last_capture_end: Option<EventTime>,
    /// `true` if the last incident could not be opened, so the retry does not wait for the whole
    /// cooldown.
    open_failed: bool,
    /// The value on which it fired last.
    last_fire: Option<LastFire>,
    /// Its incidents of the last 24 hours.
    pub(super) history: FireHistory,
    /// `true` if the value has been within `critical` since the last capture.
    was_below_critical: bool,
    /// `true` if the rule has fired and not cleared.
    pub(super) active: bool,
    /// `true` if its incident may have no more captures.
    capture_limit_reached: bool,
    /// Time since which all conditions for clearing have held.
    clear_started_at: Option<Moment>,
    /// First tick without a value since the last value.
    missing_since: Option<Moment>,
    pub(super) value: Option<f64>,
    pub(super) decision: Decision,
    /// Time of the last change of the kind of decision. `None` before the first tick.
    pub(super) changed_at: Option<Moment>,
    /// Earlier decisions, with the times of their changes.
    pub(super) decision_history: DecisionHistory,
}

/// The limit that a rising value approaches.
#[derive(Clone, Copy, Debug)]
struct LimitAhead {
    value: Option<f64>,
    /// `true` if the value is past a soft limit, which only slows the process down. `value` is then
    /// the hard limit behind it.
    is_above_soft_limit: bool,
}

impl LimitAhead {
    fn new(metric: &Metric, value: f64, vitals: &Vitals) -> Self {
        let nearest = metric.limit(vitals);
        let hard_limit =
            metric.hard_limit(vitals).filter(|_| nearest.is_some_and(|limit| value >= limit));
        Self { value: hard_limit.or(nearest), is_above_soft_limit: hard_limit.is_some() }
    }
}

impl WatchedRule {
    pub(super) fn new(rule: Rule) -> Self {
        Self {
            rule,
            ring: ValueRing::default(),
            hold_times: [HeldTime::default(); Condition::COUNT],
            is_capturing: false,
            last_capture_end: None,
            open_failed: false,
            last_fire: None,
            history: FireHistory::default(),
            was_below_critical: true,
            active: false,
            capture_limit_reached: false,
            clear_started_at: None,
            missing_since: None,
            value: None,
            decision: Decision::Hold(HoldReason::WarmingUp { value_count: 0 }),
            changed_at: None,
            decision_history: DecisionHistory::default(),
        }
    }

    /// Replaces the rule and keeps the state that still applies.
    pub(super) fn replace_rule(&mut self, rule: Rule) {
        if rule == self.rule {
            return;
        }
        self.hold_times = [HeldTime::default(); Condition::COUNT];
        self.clear_started_at = None;
        if rule.metric != self.rule.metric {
            self.ring = ValueRing::default();
            self.last_fire = None;
            self.history.clear();
            self.value = None;
            self.decision = Decision::Hold(HoldReason::WarmingUp { value_count: 0 });
            self.changed_at = None;
        }
        // A dry run fired without captures, so its history does not count.
        if rule.mode != self.rule.mode && self.rule.mode == Mode::DryRun {
            self.history.clear();
            self.last_capture_end = None;
            self.last_fire = None;
        }
        // Earlier decisions would be explained in the terms of the new rule.
        if rule.metric != self.rule.metric
            || rule.diff != self.rule.diff
            || rule.below != self.rule.below
        {
            self.decision_history = DecisionHistory::default();
        }
        self.rule = rule;
    }

    /// Moves the start of all hold times by `time`, in which the process was stopped.
    pub(super) fn exclude_standstill(&mut self, time: Duration) {
        self.hold_times.iter_mut().for_each(|held| held.shift(time));
        for start in [&mut self.clear_started_at, &mut self.missing_since].into_iter().flatten() {
            *start = *start + time;
        }
    }

    pub(super) fn capture_started(&mut self) {
        self.is_capturing = true;
    }

    pub(super) fn capture_ended(&mut self, now: Moment) {
        self.is_capturing = false;
        self.last_capture_end = Some(now.into());
        self.open_failed = false;
    }

    /// Records that its incident could not be opened. It is retried, but not at every tick.
    pub(super) fn incident_open_failed(&mut self, now: Moment) {
        self.capture_ended(now);
        self.active = false;
        self.open_failed = true;
        self.history.remove_last();
    }

    /// Restores the state of the same rule that an earlier process saved.
    pub(super) fn restore(&mut self, captured: EventTime, records: &[FireRecord]) {
        self.last_capture_end = Some(captured);
        self.last_fire = records.last().map(|record| record.worst_fire);
        self.history.restore(records);
    }

    pub(super) fn mark_capture_limit_reached(&mut self) {
        self.capture_limit_reached = true;
    }

    /// Evaluates the rule at a tick.
    pub(super) fn evaluate(
        &mut self,
        now: Moment,
        vitals: &Vitals,
        admission: &dyn Fn(&Rule) -> Admission,
    ) {
        // An infinite time to a limit is a value: no limit is in sight.
        let is_valid =
            |value: &f64| value.is_finite() || *value == f64::INFINITY && self.rule.below.is_some();
        self.value = self.rule.metric.value(vitals).filter(is_valid);
        let decision = self.decide(now, vitals, admission);
        if self.changed_at.is_none() || !decision.is_same_kind(&self.decision) {
            self.changed_at = Some(now);
            self.decision_history.push(DecisionChange { at: now, value: self.value, decision });
        }
        self.decision = decision;
    }

    fn decide(
        &mut self,
        now: Moment,
        vitals: &Vitals,
        admission: &dyn Fn(&Rule) -> Admission,
    ) -> Decision {
        let Some(value) = self.value else {
            self.hold_times = [HeldTime::default(); Condition::COUNT];
            self.clear_started_at = None;
            return self.decide_without_value(now);
        };
        self.missing_since = None;
        self.was_below_critical |= !self.is_critical(value);
        self.ring.push(now, value);
        if !self.ring.is_full() {
            return Decision::Hold(HoldReason::WarmingUp { value_count: self.ring.len() });
        }
        let limit = LimitAhead::new(&self.rule.metric, value, vitals);
        let hold = match self.check_conditions(now, value, limit.value) {
            Ok(crossing) => {
                self.clear_started_at = None;
                return self.decide_crossing(now, crossing, limit, admission);
            }
            Err(hold) => hold,
        };
        if !self.active || matches!(hold, HoldReason::Pending { .. } | HoldReason::AboveMax { .. })
        {
            self.clear_started_at = None;
            return Decision::Hold(hold);
        }
        let lower_is_worse = self.rule.below.is_some();
        let is_beyond = |clear: &f64| if lower_is_worse { value < *clear } else { value > *clear };
        if let Some(clear) = self.rule.clear.filter(is_beyond) {
            self.clear_started_at = None;
            return Decision::Hold(HoldReason::NotClear { value, clear });
        }
        let started_at = *self.clear_started_at.get_or_insert(now);
        let hold_time = self.rule.clear_for;
        if now.since(started_at) < hold_time {
            return Decision::Hold(HoldReason::Clearing { value, started_at, hold_time });
        }
        self.clear().unwrap_or(Decision::Hold(hold))
    }

    /// Decides at a tick without a value. An incident does not stay open for a value that is gone,
    /// such as that of a runtime that has shut down: it would absorb all later incidents.
    fn decide_without_value(&mut self, now: Moment) -> Decision {
        let missing_since = *self.missing_since.get_or_insert(now);
        let is_timed_out = now.since(missing_since) >= MISSING_VALUE_TIMEOUT;
        if self.active
            && is_timed_out
            && let Some(decision) = self.clear()
        {
            return decision;
        }
        Decision::Hold(HoldReason::NoValue)
    }

    /// Ends the part of this rule in its incident. `None` while its capture runs.
    fn clear(&mut self) -> Option<Decision> {
        if self.is_capturing {
            return None;
        }
        self.active = false;
        self.capture_limit_reached = false;
        self.clear_started_at = None;
        Some(Decision::Clear)
    }

    /// Evaluates the conditions for `value`, the newest of the full ring, regardless of earlier
    /// captures. Returns a condition that has been crossed long enough, or the reason why there is
    /// none.
    ///
    /// `diff` compares products instead of quotients, so that comparisons of whole numbers are
    /// exact.
    fn check_conditions(
        &mut self,
        now: Moment,
        value: f64,
        limit: Option<f64>,
    ) -> Result<ThresholdCrossing, HoldReason> {
        let Rule { min, max, .. } = self.rule;
        if value < min {
            let HoldDurations { abs, diff, forecast, below } = self.rule.hold;
            let hold_times = [abs, diff, forecast, below];
            self.hold_times
                .iter_mut()
                .zip(hold_times)
                .for_each(|(held, hold_time)| held.record_false(now, hold_time));
            return Err(HoldReason::BelowMin { value, min });
        }
        if let Some(max) = max.filter(|max| value >= *max) {
            self.hold_times = [HeldTime::default(); Condition::COUNT];
            return Err(HoldReason::AboveMax { value, max });
        }
        let average = self.ring.average();
        let crossing =
            |condition, threshold| ThresholdCrossing { value, threshold, condition, average };
        let above =
            self.rule.abs.filter(|abs| value > *abs).map(|abs| crossing(Condition::Abs, abs));
        let raised = self.rule.diff.and_then(|diff| {
            let sum = self.ring.sum();
            let raised = sum * 100.0 + sum.abs() * diff;
            let scale = (WINDOW * 100) as f64;
            (self.ring.is_average_below(value) && value * scale >= raised)
                .then(|| crossing(Condition::Diff, raised / scale))
        });
        let forecast = self.rule.forecast.zip(limit).and_then(|(horizon, limit)| {
            let rise_rate = self.ring.rise_rate();
            let headroom = limit - value;
            (rise_rate > 0.0 && headroom <= rise_rate * horizon.as_secs_f64()).then(|| {
                crossing(
                    Condition::Forecast { time_to_limit: duration_from_secs(headroom / rise_rate) },
                    limit,
                )
            })
        });
        let below = self.rule.below.filter(|below| value < *below);
        let below = below.map(|below| crossing(Condition::Below, below));
        let holds = self.rule.hold;
        let mut fires = None;
        let mut pending = None;
        let conditions: [_; Condition::COUNT] = [
            (above, holds.abs),
            (raised, holds.diff),
            (forecast, holds.forecast),
            (below, holds.below),
        ];
        for ((found, hold_time), held_time) in conditions.into_iter().zip(&mut self.hold_times) {
            let Some(crossing) = found else {
                held_time.record_false(now, hold_time);
                continue;
            };
            let started_at = held_time.record_true(now, hold_time);
            if now.since(started_at) >= hold_time {
                fires = fires.or(Some(crossing));
            } else {
                pending = pending.or(Some(HoldReason::Pending { crossing, started_at, hold_time }));
            }
        }
        let within_limits = HoldReason::WithinLimits { value, abs: self.rule.abs, average };
        fires.ok_or(pending.unwrap_or(within_limits))
    }
}

/// Converts `seconds` to a duration, saturating at [`Duration::MAX`].
fn duration_from_secs(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}
