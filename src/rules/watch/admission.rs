//! What becomes of a value that is beyond a threshold for long enough: a capture, or what holds it back.

use std::time::Duration;

use super::{LimitAhead, Watch};
use crate::base::Moment;
use crate::model::{Again, Rule};
use crate::rules::history::{Candidate, DAY, FireKind};
use crate::rules::verdict::{By, Crossing, Decision, Hold};
use crate::rules::{Mark, Opening};

/// Worse is less than this share of the room that was left below the limit at the last capture.
pub(in crate::rules) const SHRUNK: f64 = 2.0 / 3.0;
/// Worse, where there is no limit, is more than so many times the value of the last capture.
pub(in crate::rules) const GROWN: f64 = 1.5;
/// How long after an incident that could not be opened (a full disk) the next is tried at the latest.
const RETRY: Duration = Duration::from_secs(60);
/// When less than this share of the limit is left, it does not become worse: the captures between 80 %
/// and here are eight, and the next one would not be finished.
pub(in crate::rules) const LEAST_ROOM: f64 = 0.01;

impl Watch {
    /// Decides on a value that is beyond a threshold for long enough: fire, or what holds it back.
    pub(super) fn crossed(
        &mut self,
        now: Moment,
        crossing: Crossing,
        limit: LimitAhead,
        opening: &dyn Fn(&Rule) -> Opening,
    ) -> Decision {
        let falls = crossing.by == By::Below;
        let LimitAhead { value: limit, is_behind_soft } = limit;
        let limit = limit.filter(|_| !falls);
        let room = limit.map(|limit| (limit - crossing.value).max(0.0));
        let forecast = match crossing.by {
            By::Forecast { left } => Some(left),
            _ => None,
        };
        let mark = Mark { value: crossing.value, room };
        let candidate = Candidate { mark, limit, is_behind_soft, forecast, falls };
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

    /// What keeps the rule from another capture in its incident.
    fn held_in_incident(
        &self,
        now: Moment,
        crossing: Crossing,
        candidate: &Candidate,
        urgency: Option<FireKind>,
    ) -> Option<Hold> {
        let room = candidate.mark.room;
        let worse = self.rule.again == Again::Worse && self.is_worse_than_last(crossing, candidate);
        // The critical value of days ago may be all that this long incident has.
        let critical = urgency == Some(FireKind::Critical);
        if self.rule.again == Again::Worse && !worse && !critical {
            return Some(Hold::NotWorse { crossing, room });
        }
        // Steps towards a limit are few: they go on where the captures of the incident are used up.
        let is_bounded = critical || urgency.is_some() && room.is_some();
        if self.exhausted && !is_bounded {
            return Some(Hold::Exhausted { crossing });
        }
        if worse || critical { None } else { self.cooling_down(now, crossing, candidate) }
    }

    /// What keeps the rule from an incident.
    fn held_without_incident(
        &self,
        now: Moment,
        crossing: Crossing,
        candidate: &Candidate,
        urgency: Option<FireKind>,
        opening: &dyn Fn(&Rule) -> Opening,
    ) -> Option<Hold> {
        if self.lost && !self.is_worse_than_last(crossing, candidate) {
            let until = self.captured?.reaches(self.rule.cooldown.min(RETRY));
            if now < until {
                return Some(Hold::CoolingDown { crossing, until });
            }
        }
        // holmes' wait holds whatever the value is. One that could not be opened was due.
        let waits = self.rule.again == Again::Cooldown || urgency.is_none();
        if waits
            && !self.lost
            && let Some(hold) = self.cooling_down(now, crossing, candidate)
        {
            return Some(hold);
        }
        // Without a limit there is a minute left: only the gap between incidents is waited for.
        let critical = self.is_critical(crossing.value);
        let is_pressing = critical || urgency.is_some() && candidate.mark.room.is_some();
        match opening(&self.rule) {
            Opening::Gap { until } if !is_pressing => Some(Hold::Gap { crossing, until }),
            Opening::Spent { until } if urgency.is_none() => Some(Hold::Spent { crossing, until }),
            Opening::Exhausted if urgency.is_none() => Some(Hold::Exhausted { crossing }),
            _ => None,
        }
    }

    /// The wait since the last capture, which doubles with each repeat, unless it is over. Rules with
    /// `again = "cooldown"` have holmes' wait, which is always the same.
    fn cooling_down(&self, now: Moment, crossing: Crossing, candidate: &Candidate) -> Option<Hold> {
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

    fn is_worse_than_last(&self, crossing: Crossing, candidate: &Candidate) -> bool {
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

/// Returns `true` if `candidate` is worse than `mark` by as much as counts.
fn is_worse(mark: Mark, candidate: &Candidate) -> bool {
    let value = candidate.mark.value;
    match (candidate.room_at(&mark), candidate.mark.room, candidate.limit) {
        (Some(before), Some(room), Some(limit)) => {
            room <= before * SHRUNK && room >= limit * LEAST_ROOM
        }
        _ => value >= mark.value * GROWN && value > mark.value,
    }
}

/// Whether there is less than `before` by as much as counts: a third. Near nothing it does not become
/// worse, as near a limit.
fn is_scarcer(before: f64, Crossing { value, threshold, .. }: Crossing) -> bool {
    value < before
        && value <= before - before.abs() * (1.0 - SHRUNK)
        && value.abs() >= threshold.abs() * LEAST_ROOM
}
