//! One rule and its state.

pub(super) mod admission;
mod hold;

use std::time::Duration;

use super::history::{FireHistory, FireRecord};
use super::past::{DecisionChange, DecisionHistory};
use super::ring::{ValueRing, WINDOW};
use super::verdict::{By, Decision, Hold, ThresholdCrossing};
use super::{Admission, LastFire};
use crate::base::{EventTime, Moment};
use crate::model::{Holds, Metric, Mode, Rule, Vitals};
use hold::HeldTime;

/// Time without a value after which an incident clears. A value can be missing for some ticks, for
/// example while the process has no descriptor left.
const VALUE_LOST: Duration = Duration::from_secs(60);

/// A rule and its state.
#[derive(Clone, Debug)]
pub(super) struct WatchedRule {
    pub(super) rule: Rule,
    ring: ValueRing,
    /// Hold time of each condition.
    crossed: [HeldTime; By::COUNT],
    capturing: bool,
    /// End of its last capture.
    pub(super) captured: Option<EventTime>,
    /// `true` if the last incident could not be opened, so the retry does not wait for the whole
    /// cooldown.
    lost: bool,
    /// The value on which it fired last.
    mark: Option<LastFire>,
    /// Its incidents of the last 24 hours.
    pub(super) history: FireHistory,
    /// `true` if the value has been within `critical` since the last capture.
    was_below_critical: bool,
    /// `true` if the rule has fired and not cleared.
    pub(super) active: bool,
    /// `true` if its incident may have no more captures.
    exhausted: bool,
    /// Time since which all conditions for clearing have held.
    clearing: Option<Moment>,
    /// First tick without a value since the last value.
    lost_since: Option<Moment>,
    pub(super) value: Option<f64>,
    pub(super) decision: Decision,
    /// Time of the last change of the kind of decision. `None` before the first tick.
    pub(super) since: Option<Moment>,
    /// Earlier decisions, with the times of their changes.
    pub(super) past: DecisionHistory,
}

/// The limit that a rising value approaches.
#[derive(Clone, Copy, Debug)]
struct LimitAhead {
    value: Option<f64>,
    /// `true` if the value is past a soft limit, which only slows the process down. `value` is then
    /// the hard limit behind it.
    is_behind_soft: bool,
}

impl LimitAhead {
    fn new(metric: &Metric, value: f64, vitals: &Vitals) -> Self {
        let nearest = metric.limit(vitals);
        let behind = metric.limit_behind(vitals).filter(|_| nearest.is_some_and(|it| value >= it));
        Self { value: behind.or(nearest), is_behind_soft: behind.is_some() }
    }
}

impl WatchedRule {
    pub(super) fn new(rule: Rule) -> Self {
        Self {
            rule,
            ring: ValueRing::default(),
            crossed: [HeldTime::default(); By::COUNT],
            capturing: false,
            captured: None,
            lost: false,
            mark: None,
            history: FireHistory::default(),
            was_below_critical: true,
            active: false,
            exhausted: false,
            clearing: None,
            lost_since: None,
            value: None,
            decision: Decision::Hold(Hold::WarmingUp { seen: 0 }),
            since: None,
            past: DecisionHistory::default(),
        }
    }

    /// Replaces the rule and keeps the state that still applies.
    pub(super) fn change(&mut self, rule: Rule) {
        if rule == self.rule {
            return;
        }
        self.crossed = [HeldTime::default(); By::COUNT];
        self.clearing = None;
        if rule.metric != self.rule.metric {
            self.ring = ValueRing::default();
            self.mark = None;
            self.history.clear();
            self.value = None;
            self.decision = Decision::Hold(Hold::WarmingUp { seen: 0 });
            self.since = None;
        }
        // A dry run fired without captures, so its history does not count.
        if rule.mode != self.rule.mode && self.rule.mode == Mode::DryRun {
            self.history.clear();
            self.captured = None;
            self.mark = None;
        }
        // Earlier decisions would be explained in the terms of the new rule.
        if rule.metric != self.rule.metric
            || rule.diff != self.rule.diff
            || rule.below != self.rule.below
        {
            self.past = DecisionHistory::default();
        }
        self.rule = rule;
    }

    /// Moves the start of all hold times by `time`, in which the process was stopped.
    pub(super) fn stood_still(&mut self, time: Duration) {
        self.crossed.iter_mut().for_each(|held| held.postpone(time));
        for since in [&mut self.clearing, &mut self.lost_since].into_iter().flatten() {
            *since = *since + time;
        }
    }

    pub(super) fn capture_began(&mut self) {
        self.capturing = true;
    }

    pub(super) fn capture_ended(&mut self, now: Moment) {
        self.capturing = false;
        self.captured = Some(now.into());
        self.lost = false;
    }

    /// Records that its incident could not be opened. It is retried, but not at every tick.
    pub(super) fn capture_lost(&mut self, now: Moment) {
        self.capture_ended(now);
        self.active = false;
        self.lost = true;
        self.history.withdraw();
    }

    /// Restores the state of the same rule that an earlier process saved.
    pub(super) fn remember(&mut self, captured: EventTime, records: &[FireRecord]) {
        self.captured = Some(captured);
        self.mark = records.last().map(|record| record.mark);
        self.history.restore(records);
    }

    pub(super) fn exhaust(&mut self) {
        self.exhausted = true;
    }

    /// Evaluates the rule at a tick.
    pub(super) fn observe(
        &mut self,
        now: Moment,
        vitals: &Vitals,
        opening: &dyn Fn(&Rule) -> Admission,
    ) {
        // An infinite time to a limit is a value: no limit is in sight.
        let told =
            |value: &f64| value.is_finite() || *value == f64::INFINITY && self.rule.below.is_some();
        self.value = self.rule.metric.value(vitals).filter(told);
        let decision = self.decide(now, vitals, opening);
        if self.since.is_none() || !decision.is_like(&self.decision) {
            self.since = Some(now);
            self.past.push(DecisionChange { at: now, value: self.value, decision });
        }
        self.decision = decision;
    }

    fn decide(
        &mut self,
        now: Moment,
        vitals: &Vitals,
        opening: &dyn Fn(&Rule) -> Admission,
    ) -> Decision {
        let Some(value) = self.value else {
            self.crossed = [HeldTime::default(); By::COUNT];
            self.clearing = None;
            return self.without_value(now);
        };
        self.lost_since = None;
        self.was_below_critical |= !self.is_critical(value);
        self.ring.push(now, value);
        if !self.ring.is_full() {
            return Decision::Hold(Hold::WarmingUp { seen: self.ring.seen() });
        }
        let limit = LimitAhead::new(&self.rule.metric, value, vitals);
        let hold = match self.judge(now, value, limit.value) {
            Ok(crossing) => {
                self.clearing = None;
                return self.crossed(now, crossing, limit, opening);
            }
            Err(hold) => hold,
        };
        if !self.active || matches!(hold, Hold::Holding { .. } | Hold::AboveMax { .. }) {
            self.clearing = None;
            return Decision::Hold(hold);
        }
        let falls = self.rule.below.is_some();
        let is_beyond = |clear: &f64| if falls { value < *clear } else { value > *clear };
        if let Some(clear) = self.rule.clear.filter(is_beyond) {
            self.clearing = None;
            return Decision::Hold(Hold::NotClear { value, clear });
        }
        let since = *self.clearing.get_or_insert(now);
        let need = self.rule.clear_hold;
        if now.since(since) < need {
            return Decision::Hold(Hold::Clearing { value, since, need });
        }
        self.clear().unwrap_or(Decision::Hold(hold))
    }

    /// Decides at a tick without a value. An incident does not stay open for a value that is gone,
    /// such as that of a runtime that has shut down: it would absorb all later incidents.
    fn without_value(&mut self, now: Moment) -> Decision {
        let since = *self.lost_since.get_or_insert(now);
        let is_lost = now.since(since) >= VALUE_LOST;
        if self.active
            && is_lost
            && let Some(cleared) = self.clear()
        {
            return cleared;
        }
        Decision::Hold(Hold::NoValue)
    }

    /// Ends the part of this rule in its incident. `None` while its capture runs.
    fn clear(&mut self) -> Option<Decision> {
        if self.capturing {
            return None;
        }
        self.active = false;
        self.exhausted = false;
        self.clearing = None;
        Some(Decision::Clear)
    }

    /// Evaluates the conditions for `value`, the newest of the full ring, regardless of earlier
    /// captures. Returns a condition that has been crossed long enough, or the reason why there is
    /// none.
    ///
    /// `diff` compares products instead of quotients, so that comparisons of whole numbers are
    /// exact.
    fn judge(
        &mut self,
        now: Moment,
        value: f64,
        limit: Option<f64>,
    ) -> Result<ThresholdCrossing, Hold> {
        let Rule { min, max, .. } = self.rule;
        if value < min {
            let Holds { abs, diff, forecast, below } = self.rule.hold;
            let needs = [abs, diff, forecast, below];
            self.crossed
                .iter_mut()
                .zip(needs)
                .for_each(|(held, need)| held.record_false(now, need));
            return Err(Hold::BelowMin { value, min });
        }
        if let Some(max) = max.filter(|max| value >= *max) {
            self.crossed = [HeldTime::default(); By::COUNT];
            return Err(Hold::AboveMax { value, max });
        }
        let average = self.ring.average();
        let crossing = |by, threshold| ThresholdCrossing { value, threshold, by, average };
        let above = self.rule.abs.filter(|abs| value > *abs).map(|abs| crossing(By::Abs, abs));
        let raised = self.rule.diff.and_then(|diff| {
            let sum = self.ring.sum();
            let raised = sum * 100.0 + sum.abs() * diff;
            let scale = (WINDOW * 100) as f64;
            (self.ring.is_below(value) && value * scale >= raised)
                .then(|| crossing(By::Diff, raised / scale))
        });
        let soon = self.rule.forecast.zip(limit).and_then(|(within, limit)| {
            let (rise, room) = (self.ring.rise(), limit - value);
            (rise > 0.0 && room <= rise * within.as_secs_f64())
                .then(|| crossing(By::Forecast { left: seconds(room / rise) }, limit))
        });
        let below = self.rule.below.filter(|below| value < *below);
        let below = below.map(|below| crossing(By::Below, below));
        let holds = self.rule.hold;
        let (mut fires, mut waiting) = (None, None);
        let conditions: [_; By::COUNT] = [
            (above, holds.abs),
            (raised, holds.diff),
            (soon, holds.forecast),
            (below, holds.below),
        ];
        for ((found, need), held) in conditions.into_iter().zip(&mut self.crossed) {
            let Some(crossing) = found else {
                held.record_false(now, need);
                continue;
            };
            let since = held.record_true(now, need);
            if now.since(since) >= need {
                fires = fires.or(Some(crossing));
            } else {
                waiting = waiting.or(Some(Hold::Holding { crossing, since, need }));
            }
        }
        let within = Hold::WithinLimits { value, abs: self.rule.abs, average };
        fires.ok_or(waiting.unwrap_or(within))
    }
}

/// Converts `seconds` to a duration, saturating at [`Duration::MAX`].
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}
