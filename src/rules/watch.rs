//! One rule and what it remembers.

use super::ring::{Ring, WINDOW};
use super::verdict::{By, Crossing, Decision, Hold};
use crate::base::Moment;
use crate::model::{Rule, Vitals};

/// A rule and its state.
#[derive(Clone, Debug)]
pub(super) struct Watch {
    pub(super) rule: Rule,
    ring: Ring,
    /// Since when something is crossed without a gap.
    crossed: Option<Moment>,
    capturing: bool,
    /// When its last capture ended.
    captured: Option<Moment>,
    /// Whether it has fired and not cleared.
    pub(super) active: bool,
    pub(super) value: Option<f64>,
    pub(super) decision: Decision,
    /// Since when it has been deciding like this; none before the first tick.
    pub(super) since: Option<Moment>,
}

impl Watch {
    pub(super) fn new(rule: Rule) -> Self {
        Self {
            rule,
            ring: Ring::default(),
            crossed: None,
            capturing: false,
            captured: None,
            active: false,
            value: None,
            decision: Decision::Hold(Hold::WarmingUp { seen: 0 }),
            since: None,
        }
    }

    /// Goes on with `rule` in place of the one it had.
    pub(super) fn change(&mut self, rule: Rule) {
        if rule == self.rule {
            return;
        }
        self.crossed = None;
        if rule.metric != self.rule.metric {
            self.ring = Ring::default();
            self.value = None;
            self.decision = Decision::Hold(Hold::WarmingUp { seen: 0 });
            self.since = None;
        }
        self.rule = rule;
    }

    pub(super) fn capture_began(&mut self) {
        self.capturing = true;
    }

    pub(super) fn capture_ended(&mut self, now: Moment) {
        self.capturing = false;
        self.captured = Some(now);
    }

    /// Takes a tick.
    pub(super) fn observe(&mut self, now: Moment, vitals: &Vitals) {
        self.value = self.rule.metric.value(vitals).filter(|value| value.is_finite());
        let decision = self.decide(now);
        if self.since.is_none() || !decision.is_like(&self.decision) {
            self.since = Some(now);
        }
        self.decision = decision;
    }

    fn decide(&mut self, now: Moment) -> Decision {
        let Some(value) = self.value else {
            self.crossed = None;
            return Decision::Hold(Hold::NoValue);
        };
        self.ring.push(value);
        if !self.ring.is_full() {
            return Decision::Hold(Hold::WarmingUp { seen: self.ring.seen() });
        }
        let hold = match judge(&self.rule, value, &self.ring) {
            Ok(crossing) => return self.crossed(now, crossing),
            Err(hold) => hold,
        };
        self.crossed = None;
        if !self.active || matches!(hold, Hold::AboveMax { .. }) {
            return Decision::Hold(hold);
        }
        match self.rule.clear {
            Some(clear) if value > clear => Decision::Hold(Hold::NotClear { value, clear }),
            _ if self.capturing => Decision::Hold(hold),
            _ => {
                self.active = false;
                Decision::Clear
            }
        }
    }

    fn crossed(&mut self, now: Moment, crossing: Crossing) -> Decision {
        let since = *self.crossed.get_or_insert(now);
        let need = self.rule.hold;
        if now.since(since) < need {
            return Decision::Hold(Hold::Holding { crossing, since, need });
        }
        if self.capturing {
            return Decision::Hold(Hold::Capturing { crossing });
        }
        if let Some(until) = self.captured.map(|captured| captured + self.rule.cooldown)
            && now < until
        {
            return Decision::Hold(Hold::CoolingDown { crossing, until });
        }
        self.active = true;
        Decision::Fire(crossing)
    }
}

/// What `rule` says to `value`, the newest of the full `ring`, whatever was before.
///
/// `diff` is compared in products, not in quotients, so that whole numbers are compared exactly.
fn judge(rule: &Rule, value: f64, ring: &Ring) -> Result<Crossing, Hold> {
    if value < rule.min {
        return Err(Hold::BelowMin { value, min: rule.min });
    }
    if let Some(max) = rule.max
        && value >= max
    {
        return Err(Hold::AboveMax { value, max });
    }
    let average = ring.average();
    if let Some(abs) = rule.abs
        && value > abs
    {
        return Ok(Crossing { value, threshold: abs, by: By::Abs, average });
    }
    if let Some(diff) = rule.diff {
        let sum = ring.sum();
        let raised = sum * 100.0 + sum.abs() * diff;
        let scale = (WINDOW * 100) as f64;
        if ring.is_below(value) && value * scale >= raised {
            return Ok(Crossing { value, threshold: raised / scale, by: By::Diff, average });
        }
    }
    Err(Hold::WithinLimits { value, abs: rule.abs, average })
}
