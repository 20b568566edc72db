//! Admission of a value that has crossed a threshold long enough: capture or hold.

use std::time::Duration;

use super::{LimitAhead, WatchedRule};
use crate::base::Moment;
use crate::model::{Refire, Rule};
use crate::rules::decision::{Condition, Decision, HoldReason, ThresholdCrossing};
use crate::rules::history::{
    DAY, FireCandidate, FireKind, MIN_HEADROOM_FRACTION, WORSE_HEADROOM_FRACTION,
    WORSE_VALUE_FACTOR,
};
use crate::rules::{Admission, LastFire};

/// Maximum time until the retry after an incident could not be opened (for example on a full disk).
const MAX_OPEN_RETRY_DELAY: Duration = Duration::from_secs(60);

impl WatchedRule {
    /// Decides on a value that has crossed a threshold long enough: fire, or hold with a reason.
    pub(super) fn decide_crossing(
        &mut self,
        now: Moment,
        crossing: ThresholdCrossing,
        limit: LimitAhead,
        admission: &dyn Fn(&Rule) -> Admission,
    ) -> Decision {
        let lower_is_worse = crossing.condition == Condition::Below;
        let LimitAhead { value: limit, is_above_soft_limit } = limit;
        let limit = limit.filter(|_| !lower_is_worse);
        let headroom = limit.map(|limit| (limit - crossing.value).max(0.0));
        let forecast = match crossing.condition {
            Condition::Forecast { time_to_limit } => Some(time_to_limit),
            _ => None,
        };
        let fire = LastFire { value: crossing.value, headroom };
        let candidate =
            FireCandidate { fire, limit, is_above_soft_limit, forecast, lower_is_worse };
        let window = DAY.max(self.rule.cooldown);
        let is_critical = self.is_critical(crossing.value);
        let urgency =
            self.history.urgency(now, window, &candidate, is_critical && self.was_below_critical);
        let hold_reason = match self.active {
            true => self.hold_reason_in_incident(now, crossing, &candidate, urgency),
            false => {
                self.hold_reason_without_incident(now, crossing, &candidate, urgency, admission)
            }
        };
        if let Some(hold) = hold_reason {
            return Decision::Hold(hold);
        }
        if self.active {
            self.history.record_recapture(now, &candidate);
        } else {
            self.history.record_opened(now, &candidate, urgency.unwrap_or(FireKind::Repeat));
        }
        self.active = true;
        self.was_below_critical = false;
        self.last_fire = Some(fire);
        Decision::Fire(crossing)
    }

    /// Returns the reason not to capture again in the open incident, or `None`.
    fn hold_reason_in_incident(
        &self,
        now: Moment,
        crossing: ThresholdCrossing,
        candidate: &FireCandidate,
        urgency: Option<FireKind>,
    ) -> Option<HoldReason> {
        let headroom = candidate.fire.headroom;
        let worse =
            self.rule.refire == Refire::OnWorsening && self.is_worse_than_last(crossing, candidate);
        // In a long incident, the last critical value may have been captured days ago.
        let critical = urgency == Some(FireKind::Critical);
        if self.rule.refire == Refire::OnWorsening && !worse && !critical {
            return Some(HoldReason::NotWorse { crossing, headroom });
        }
        // Steps towards a limit are few, so they are captured even beyond the incident's maximum.
        let is_bounded = critical || urgency.is_some() && headroom.is_some();
        if self.capture_limit_reached && !is_bounded {
            return Some(HoldReason::CaptureLimitReached { crossing });
        }
        if worse || critical { None } else { self.cooldown_reason(now, crossing, candidate) }
    }

    /// Returns the reason not to open an incident, or `None`.
    fn hold_reason_without_incident(
        &self,
        now: Moment,
        crossing: ThresholdCrossing,
        candidate: &FireCandidate,
        urgency: Option<FireKind>,
        admission: &dyn Fn(&Rule) -> Admission,
    ) -> Option<HoldReason> {
        if self.open_failed && !self.is_worse_than_last(crossing, candidate) {
            let until =
                self.last_capture_end?.time_at_age(self.rule.cooldown.min(MAX_OPEN_RETRY_DELAY));
            if now < until {
                return Some(HoldReason::CoolingDown { crossing, until });
            }
        }
        // The cooldown of holmes applies at any value. An incident that could not be opened was
        // already due.
        let needs_cooldown = self.rule.refire == Refire::AfterCooldown || urgency.is_none();
        if needs_cooldown
            && !self.open_failed
            && let Some(hold) = self.cooldown_reason(now, crossing, candidate)
        {
            return Some(hold);
        }
        // Waiting up to a minute for the gap is acceptable unless the value is critical or nears a
        // limit.
        let is_critical = self.is_critical(crossing.value);
        let is_urgent = is_critical || urgency.is_some() && candidate.fire.headroom.is_some();
        match admission(&self.rule) {
            Admission::TooSoon { until } if !is_urgent => {
                Some(HoldReason::TooSoon { crossing, until })
            }
            Admission::DailyBudgetSpent { until } if urgency.is_none() => {
                Some(HoldReason::DailyBudgetSpent { crossing, until })
            }
            Admission::CaptureLimitReached if urgency.is_none() => {
                Some(HoldReason::CaptureLimitReached { crossing })
            }
            _ => None,
        }
    }

    /// Returns the reason to wait after the last capture, or `None` if the wait is over. The wait
    /// doubles with each repeat. With `refire = "after-cooldown"` it is constant, as in holmes.
    fn cooldown_reason(
        &self,
        now: Moment,
        crossing: ThresholdCrossing,
        candidate: &FireCandidate,
    ) -> Option<HoldReason> {
        if self.is_capturing {
            return Some(HoldReason::Capturing { crossing });
        }
        let captured = self.last_capture_end?;
        let cooldown = self.rule.cooldown;
        let repeats = self.history.repeat_count(now);
        if self.rule.refire == Refire::AfterCooldown || repeats == 0 {
            let until = captured.time_at_age(cooldown);
            return (now < until).then_some(HoldReason::CoolingDown { crossing, until });
        }
        let until = self.history.next_repeat_at(now, captured, cooldown);
        (now < until).then(|| {
            let window = DAY.max(cooldown);
            let immediate_threshold = self.history.next_worse_value(now, window, candidate);
            HoldReason::Repeating { crossing, until, repeats, immediate_threshold }
        })
    }

    fn is_worse_than_last(&self, crossing: ThresholdCrossing, candidate: &FireCandidate) -> bool {
        match self.last_fire {
            None => true,
            Some(last) if candidate.lower_is_worse => has_fallen_by_step(last.value, crossing),
            Some(last) => is_worse(last, candidate),
        }
    }

    pub(super) fn is_critical(&self, value: f64) -> bool {
        self.rule.critical.is_some_and(|critical| match self.rule.below {
            Some(_) => value < critical,
            None => value > critical,
        })
    }
}

/// Returns `true` if `candidate` is worse than `last` by at least one step.
fn is_worse(last: LastFire, candidate: &FireCandidate) -> bool {
    let value = candidate.fire.value;
    match (candidate.headroom_at(&last), candidate.fire.headroom, candidate.limit) {
        (Some(before), Some(room), Some(limit)) => {
            room <= before * WORSE_HEADROOM_FRACTION && room >= limit * MIN_HEADROOM_FRACTION
        }
        _ => value >= last.value * WORSE_VALUE_FACTOR && value > last.value,
    }
}

/// Returns `true` if the value is at least a third below `before`. Close to 0 it does not count as
/// worse, as close to a limit.
fn has_fallen_by_step(
    before: f64,
    ThresholdCrossing { value, threshold, .. }: ThresholdCrossing,
) -> bool {
    value < before
        && value <= before - before.abs() * (1.0 - WORSE_HEADROOM_FRACTION)
        && value.abs() >= threshold.abs() * MIN_HEADROOM_FRACTION
}
