//! One rule and what it remembers.

use std::time::Duration;

use super::past::{Past, Said};
use super::ring::{Ring, WINDOW};
use super::verdict::{By, Crossing, Decision, Hold};
use super::{Mark, Opening};
use crate::base::Moment;
use crate::model::{Again, Rule, Vitals};

/// Worse is less than this share of the room that was left below the limit at the last capture.
const SHRUNK: f64 = 2.0 / 3.0;
/// Worse, where there is no limit, is more than so many times the value of the last capture.
const GROWN: f64 = 1.5;
/// How long after an incident that could not be opened (a full disk) the next is tried at the latest.
const RETRY: Duration = Duration::from_secs(60);
/// When less than this share of the limit is left, it does not become worse: the captures between 80 %
/// and here are eight, and the next one would not be finished.
const LEAST_ROOM: f64 = 0.01;

/// A rule and its state.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    pub(super) rule: Rule,
    ring: Ring,
    /// Since when each condition holds without a gap.
    crossed: [Option<Moment>; By::COUNT],
    capturing: bool,
    /// When its last capture ended.
    captured: Option<Moment>,
    /// Whether that came to nothing, so that the next need not wait for the whole cooldown.
    lost: bool,
    /// What it fired on last.
    mark: Option<Mark>,
    /// Whether it has fired and not cleared.
    pub(super) active: bool,
    /// Whether its incident may have no more captures.
    exhausted: bool,
    /// Since when all that is needed to clear is so.
    clearing: Option<Moment>,
    pub(super) value: Option<f64>,
    pub(super) decision: Decision,
    /// Since when it has been deciding like this; none before the first tick.
    pub(super) since: Option<Moment>,
    /// What it decided before, and when that changed.
    pub(super) past: Past,
}

impl Watch {
    pub(super) fn new(rule: Rule) -> Self {
        Self {
            rule,
            ring: Ring::default(),
            crossed: [None; By::COUNT],
            capturing: false,
            captured: None,
            lost: false,
            mark: None,
            active: false,
            exhausted: false,
            clearing: None,
            value: None,
            decision: Decision::Hold(Hold::WarmingUp { seen: 0 }),
            since: None,
            past: Past::default(),
        }
    }

    /// Goes on with `rule` in place of the one it had.
    pub(super) fn change(&mut self, rule: Rule) {
        if rule == self.rule {
            return;
        }
        self.crossed = [None; By::COUNT];
        self.clearing = None;
        if rule.metric != self.rule.metric {
            self.ring = Ring::default();
            self.mark = None;
            self.value = None;
            self.decision = Decision::Hold(Hold::WarmingUp { seen: 0 });
            self.since = None;
        }
        // What it said before would be told in the other rule's words.
        if rule.metric != self.rule.metric
            || rule.diff != self.rule.diff
            || rule.below != self.rule.below
        {
            self.past = Past::default();
        }
        self.rule = rule;
    }

    pub(super) fn capture_began(&mut self) {
        self.capturing = true;
    }

    pub(super) fn capture_ended(&mut self, now: Moment) {
        self.capturing = false;
        self.captured = Some(now);
        self.lost = false;
    }

    /// Its incident could not be opened: it is tried again, but not at every tick.
    pub(super) fn capture_lost(&mut self, now: Moment) {
        self.capture_ended(now);
        self.active = false;
        self.lost = true;
    }

    /// Goes on from what a predecessor remembers of the same rule.
    pub(super) fn remember(&mut self, captured: Moment, mark: Mark) {
        self.captured = Some(captured);
        self.mark = Some(mark);
    }

    pub(super) fn mark(&self) -> Option<Mark> {
        self.mark
    }

    pub(super) fn exhaust(&mut self) {
        self.exhausted = true;
    }

    /// Takes a tick.
    pub(super) fn observe(&mut self, now: Moment, vitals: &Vitals, opening: Opening) {
        // Endless time to a limit is a value: nothing is near.
        let told =
            |value: &f64| value.is_finite() || *value == f64::INFINITY && self.rule.below.is_some();
        self.value = self.rule.metric.value(vitals).filter(told);
        let decision = self.decide(now, vitals, opening);
        if self.since.is_none() || !decision.is_like(&self.decision) {
            self.since = Some(now);
            self.past.push(Said { at: now, value: self.value, decision });
        }
        self.decision = decision;
    }

    fn decide(&mut self, now: Moment, vitals: &Vitals, opening: Opening) -> Decision {
        let Some(value) = self.value else {
            self.crossed = [None; By::COUNT];
            self.clearing = None;
            return Decision::Hold(Hold::NoValue);
        };
        self.ring.push(now, value);
        if !self.ring.is_full() {
            return Decision::Hold(Hold::WarmingUp { seen: self.ring.seen() });
        }
        let limit = self.rule.metric.limit(vitals);
        let hold = match self.judge(now, value, limit) {
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
        if self.capturing {
            return Decision::Hold(hold);
        }
        self.active = false;
        self.exhausted = false;
        self.clearing = None;
        Decision::Clear
    }

    /// What the rule says to `value`, the newest of the full ring, whatever was captured before: what is
    /// crossed for long enough, else why nothing is.
    ///
    /// `diff` is compared in products, not in quotients, so that whole numbers are compared exactly.
    fn judge(&mut self, now: Moment, value: f64, limit: Option<f64>) -> Result<Crossing, Hold> {
        let Rule { min, max, .. } = self.rule;
        if value < min {
            self.crossed = [None; By::COUNT];
            return Err(Hold::BelowMin { value, min });
        }
        if let Some(max) = max.filter(|max| value >= *max) {
            self.crossed = [None; By::COUNT];
            return Err(Hold::AboveMax { value, max });
        }
        let average = self.ring.average();
        let crossing = |by, threshold| Crossing { value, threshold, by, average };
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
        for ((found, need), begun) in conditions.into_iter().zip(&mut self.crossed) {
            let Some(crossing) = found else {
                *begun = None;
                continue;
            };
            let since = *begun.get_or_insert(now);
            if now.since(since) >= need {
                fires = fires.or(Some(crossing));
            } else {
                waiting = waiting.or(Some(Hold::Holding { crossing, since, need }));
            }
        }
        let within = Hold::WithinLimits { value, abs: self.rule.abs, average };
        fires.ok_or(waiting.unwrap_or(within))
    }

    fn crossed(
        &mut self,
        now: Moment,
        crossing: Crossing,
        limit: Option<f64>,
        opening: Opening,
    ) -> Decision {
        let limit = limit.filter(|_| crossing.by != By::Below);
        let room = limit.map(|limit| (limit - crossing.value).max(0.0));
        let worse = match (self.rule.again, self.mark) {
            (Again::Cooldown, _) => None,
            (Again::Worse, None) => Some(true),
            (Again::Worse, Some(mark)) if crossing.by == By::Below => {
                Some(is_scarcer(mark.value, crossing))
            }
            (Again::Worse, Some(mark)) => Some(is_worse(mark, crossing.value, room, limit)),
        };
        if self.active && worse == Some(false) {
            return Decision::Hold(Hold::NotWorse { crossing, room });
        }
        if self.exhausted {
            return Decision::Hold(Hold::Exhausted { crossing });
        }
        if worse != Some(true) {
            if self.capturing {
                return Decision::Hold(Hold::Capturing { crossing });
            }
            let wait = if self.lost { self.rule.cooldown.min(RETRY) } else { self.rule.cooldown };
            if let Some(until) = self.captured.map(|captured| captured + wait)
                && now < until
            {
                return Decision::Hold(Hold::CoolingDown { crossing, until });
            }
        }
        if !self.active {
            let critical = self.rule.critical.is_some_and(|critical| match crossing.by {
                By::Below => crossing.value < critical,
                _ => crossing.value > critical,
            });
            match opening {
                Opening::Gap { until } if !critical => {
                    return Decision::Hold(Hold::Gap { crossing, until });
                }
                Opening::Spent { until } => {
                    return Decision::Hold(Hold::Spent { crossing, until });
                }
                Opening::Exhausted => return Decision::Hold(Hold::Exhausted { crossing }),
                Opening::Free | Opening::Gap { .. } => {}
            }
        }
        self.active = true;
        self.mark = Some(Mark { value: crossing.value, room });
        Decision::Fire(crossing)
    }
}

/// `seconds` as a duration; the longest there is when it has no place in one.
fn seconds(seconds: f64) -> Duration {
    Duration::try_from_secs_f64(seconds.max(0.0)).unwrap_or(Duration::MAX)
}

/// Whether `value`, with `room` left below `limit`, is worse than `mark` by as much as counts.
fn is_worse(mark: Mark, value: f64, room: Option<f64>, limit: Option<f64>) -> bool {
    match (mark.room, room, limit) {
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
