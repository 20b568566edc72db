//! Admission of a value that has crossed a threshold long enough: capture or hold.

use std::time::Duration;

use super::{LimitAhead, WatchedRule};
use crate::base::Moment;
use crate::model::{Again, Rule};
use crate::rules::history::{DAY, FireCandidate, FireKind};
use crate::rules::verdict::{By, Decision, Hold, ThresholdCrossing};
use crate::rules::{Admission, LastFire};

/// A value is worse if `headroom <= SHRUNK * headroom at the last capture`.
pub(in crate::rules) const SHRUNK: f64 = 2.0 / 3.0;
/// Without a limit, a value is worse if `value >= GROWN * value at the last capture`.
pub(in crate::rules) const GROWN: f64 = 1.5;
/// Maximum time until the retry after an incident could not be opened (for example on a full disk).
const RETRY: Duration = Duration::from_secs(60);
/// Share of the limit. With less headroom a value does not count as worse. There are eight captures
/// between 80 % and this point, and another would not finish in time.
pub(in crate::rules) const LEAST_ROOM: f64 = 0.01;

impl WatchedRule {
    /// Decides on a value that has crossed a threshold long enough: fire, or hold with a reason.
    pub(super) fn crossed(
        &mut self,
        now: Moment,
        crossing: ThresholdCrossing,
        limit: LimitAhead,
        opening: &dyn Fn(&Rule) -> Admission,
    ) -> Decision {
        let falls = crossing.by == By::Below;
        let LimitAhead { value: limit, is_behind_soft } = limit;
        let limit = limit.filter(|_| !falls);
        let room = limit.map(|limit| (limit - crossing.value).max(0.0));
        let forecast = match crossing.by {
            By::Forecast { left } => Some(left),
            _ => None,
        };
        let mark = LastFire { value: crossing.value, room };
        let candidate = FireCandidate { mark, limit, is_behind_soft, forecast, falls };
        let window = DAY.max(self.rule.cooldown);
        let critical = self.is_critical(crossing.value);
        let urgency =
            self.history.urgency(now, window, &candidate, critical && self.was_below_critical);
        let held = match self.active {
            true => self.held_in_incident(now, crossing, &candidate, urgency),
            false => self.held_without_incident(now, crossing, &candidate, urgency, opening),
        };
        if let Some(hold) = held {
            return Decision::Hold(hold);
        }
        if self.active {
            self.history.captured_again(now, &candidate);
        } else {
            self.history.opened(now, &candidate, urgency.unwrap_or(FireKind::Repeat));
        }
        self.active = true;
        self.was_below_critical = false;
        self.mark = Some(mark);
        Decision::Fire(crossing)
    }

    /// Returns the reason not to capture again in the open incident, or `None`.
    fn held_in_incident(
        &self,
        now: Moment,
        crossing: ThresholdCrossing,
        candidate: &FireCandidate,
        urgency: Option<FireKind>,
    ) -> Option<Hold> {
        let room = candidate.mark.room;
        let worse = self.rule.again == Again::Worse && self.is_worse_than_last(crossing, candidate);
        // In a long incident, the last critical value may have been captured days ago.
        let critical = urgency == Some(FireKind::Critical);
        if self.rule.again == Again::Worse && !worse && !critical {
            return Some(Hold::NotWorse { crossing, room });
        }
        // Steps towards a limit are few, so they are captured even beyond the incident's maximum.
        let is_bounded = critical || urgency.is_some() && room.is_some();
        if self.exhausted && !is_bounded {
            return Some(Hold::Exhausted { crossing });
        }
        if worse || critical { None } else { self.cooling_down(now, crossing, candidate) }
    }

    /// Returns the reason not to open an incident, or `None`.
    fn held_without_incident(
        &self,
        now: Moment,
        crossing: ThresholdCrossing,
        candidate: &FireCandidate,
        urgency: Option<FireKind>,
        opening: &dyn Fn(&Rule) -> Admission,
    ) -> Option<Hold> {
        if self.lost && !self.is_worse_than_last(crossing, candidate) {
            let until = self.captured?.reaches(self.rule.cooldown.min(RETRY));
            if now < until {
                return Some(Hold::CoolingDown { crossing, until });
            }
        }
        // The cooldown of holmes applies at any value. An incident that could not be opened was
        // already due.
        let waits = self.rule.again == Again::Cooldown || urgency.is_none();
        if waits
            && !self.lost
            && let Some(hold) = self.cooling_down(now, crossing, candidate)
        {
            return Some(hold);
        }
        // Waiting up to a minute for the gap is acceptable unless the value is critical or nears a
        // limit.
        let critical = self.is_critical(crossing.value);
        let is_pressing = critical || urgency.is_some() && candidate.mark.room.is_some();
        match opening(&self.rule) {
            Admission::Gap { until } if !is_pressing => Some(Hold::Gap { crossing, until }),
            Admission::Spent { until } if urgency.is_none() => {
                Some(Hold::Spent { crossing, until })
            }
            Admission::Exhausted if urgency.is_none() => Some(Hold::Exhausted { crossing }),
            _ => None,
        }
    }

    /// Returns the reason to wait after the last capture, or `None` if the wait is over. The wait
    /// doubles with each repeat. With `again = "cooldown"` it is constant, as in holmes.
    fn cooling_down(
        &self,
        now: Moment,
        crossing: ThresholdCrossing,
        candidate: &FireCandidate,
    ) -> Option<Hold> {
        if self.capturing {
            return Some(Hold::Capturing { crossing });
        }
        let (captured, cooldown) = (self.captured?, self.rule.cooldown);
        let repeats = self.history.repeats(now);
        if self.rule.again == Again::Cooldown || repeats == 0 {
            let until = captured.reaches(cooldown);
            return (now < until).then_some(Hold::CoolingDown { crossing, until });
        }
        let until = self.history.next_repeat(now, captured, cooldown);
        (now < until).then(|| {
            let window = DAY.max(cooldown);
            let sooner = self.history.next_step(now, window, candidate);
            Hold::Repeating { crossing, until, repeats, sooner }
        })
    }

    fn is_worse_than_last(&self, crossing: ThresholdCrossing, candidate: &FireCandidate) -> bool {
        match self.mark {
            None => true,
            Some(mark) if candidate.falls => is_scarcer(mark.value, crossing),
            Some(mark) => is_worse(mark, candidate),
        }
    }

    pub(super) fn is_critical(&self, value: f64) -> bool {
        self.rule.critical.is_some_and(|critical| match self.rule.below {
            Some(_) => value < critical,
            None => value > critical,
        })
    }
}

/// Returns `true` if `candidate` is worse than `mark` by at least one step.
fn is_worse(mark: LastFire, candidate: &FireCandidate) -> bool {
    let value = candidate.mark.value;
    match (candidate.room_at(&mark), candidate.mark.room, candidate.limit) {
        (Some(before), Some(room), Some(limit)) => {
            room <= before * SHRUNK && room >= limit * LEAST_ROOM
        }
        _ => value >= mark.value * GROWN && value > mark.value,
    }
}

/// Returns `true` if the value is at least a third below `before`. Close to 0 it does not count as
/// worse, as close to a limit.
fn is_scarcer(before: f64, ThresholdCrossing { value, threshold, .. }: ThresholdCrossing) -> bool {
    value < before
        && value <= before - before.abs() * (1.0 - SHRUNK)
        && value.abs() >= threshold.abs() * LEAST_ROOM
}
