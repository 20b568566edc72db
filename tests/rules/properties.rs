//! Properties of rules that hold for all values.

use std::collections::BTreeMap;
use std::time::Duration;

use marple::internals::base::Moment;
use marple::internals::model::{Metric, Refire, Rule, Vitals};
use marple::internals::rules::{Condition, Decision, Engine};
use proptest::prelude::*;

fn gauge(name: &str) -> Rule {
    Rule {
        name: name.to_owned(),
        cooldown: Duration::ZERO,
        refire: Refire::AfterCooldown,
        ..Rule::new(Metric::Gauge("x".into()))
    }
}

fn moment_at(second: usize) -> Moment {
    Moment::from_nanos(second as u64 * 1_000_000_000)
}

fn vitals(value: f64) -> Vitals {
    Vitals { gauges: vec![("x".into(), value)], ..Vitals::default() }
}

/// Returns the decisions of `rule` over `values`, one per second, while nothing is being captured.
fn run(rule: Rule, values: &[f64]) -> Vec<Decision> {
    let mut engine = Engine::new(vec![rule]);
    let decide = |(second, value): (usize, &f64)| {
        engine.evaluate(moment_at(second), &vitals(*value)).next().expect("there is one rule").1
    };
    values.iter().enumerate().map(decide).collect()
}

fn is_fire(decision: &Decision) -> bool {
    matches!(decision, Decision::Fire(_))
}

/// The algorithm of holmes: integers, a ring of ten values that includes the current one, ten
/// values before the first check, a cooldown from the end of the dump.
struct Holmes {
    min: i64,
    diff: i64,
    abs: i64,
    max: i64,
    cooldown: usize,
    ring: Vec<i64>,
    count: usize,
    cool_until: usize,
}

impl Holmes {
    fn tick(&mut self, second: usize, cur: i64) -> bool {
        if self.ring.len() == 10 {
            self.ring.remove(0);
        }
        self.ring.push(cur);
        self.count += 1;
        if self.count < 10 || self.cool_until > second || !self.matches(cur) {
            return false;
        }
        self.cool_until = second + self.cooldown;
        true
    }

    fn matches(&self, cur: i64) -> bool {
        if cur < self.min {
            return false;
        }
        if self.max != 0 && cur >= self.max {
            return false;
        }
        if cur > self.abs {
            return true;
        }
        let avg = self.ring.iter().sum::<i64>() / self.ring.len() as i64;
        cur >= avg * (100 + self.diff) / 100
    }
}

fn values() -> impl Strategy<Value = Vec<f64>> {
    prop::collection::vec(prop_oneof![0.0..100.0_f64, (0..100_u8).prop_map(f64::from)], 0..60)
}

proptest! {
    #[test]
    fn steady_value_never_fires_by_diff(value in -1e12..1e12_f64, diff in 1e-9..1e6_f64) {
        let rule = Rule { min: f64::MIN, diff: Some(diff), ..gauge("x") };
        for decision in run(rule, &[value; 40]) {
            prop_assert!(!is_fire(&decision), "{:?}", decision);
        }
    }

    #[test]
    fn no_rule_fires_below_min_or_at_or_above_max(
        values in values(), min in 0.0..50.0_f64, max in 50.0..100.0_f64, diff in 0.1..50.0_f64,
    ) {
        let rule = Rule {
            min, max: Some(max), abs: Some(20.0), diff: Some(diff), ..gauge("x")
        };
        for (value, decision) in values.iter().zip(run(rule, &values)) {
            prop_assert!(!is_fire(&decision) || (min..max).contains(value), "{} {:?}", value, decision);
        }
    }

    #[test]
    fn lower_abs_fires_whenever_higher_abs_does(
        values in values(), low in 0.0..100.0_f64, more in 0.0..50.0_f64, diff in 1.0..90.0_f64,
    ) {
        let rule = |abs| Rule { abs: Some(abs), diff: Some(diff), ..gauge("x") };
        let (low, high) = (run(rule(low), &values), run(rule(low + more), &values));
        for (low, high) in low.iter().zip(&high) {
            prop_assert!(is_fire(low) || !is_fire(high));
        }
    }

    #[test]
    fn fired_value_is_beyond_threshold(values in values(), diff in 1.0..90.0_f64) {
        let rule = Rule { abs: Some(80.0), diff: Some(diff), ..gauge("x") };
        for decision in run(rule, &values) {
            if let Decision::Fire(crossing) = decision {
                prop_assert!(crossing.value >= crossing.threshold);
                prop_assert!(crossing.condition == Condition::Abs || crossing.value > crossing.average);
            }
        }
    }

    #[test]
    fn no_rule_fires_during_capture_or_cooldown(
        values in values(), cooldown in 0..12_usize, length in 0..8_usize, abs in 0.0..60.0_f64,
    ) {
        let rule = Rule {
            abs: Some(abs),
            diff: Some(10.0),
            cooldown: Duration::from_secs(cooldown as u64),
            ..gauge("x")
        };
        let mut engine = Engine::new(vec![rule]);
        let mut capture: Option<usize> = None;
        let mut quiet_until = 0;
        for (second, value) in values.iter().enumerate() {
            if capture == Some(second) {
                engine.capture_ended("x", moment_at(second));
                capture = None;
            }
            let fired = engine.evaluate(moment_at(second), &vitals(*value)).any(|(_, said)| is_fire(&said));
            prop_assert!(!fired || (capture.is_none() && second >= quiet_until));
            if fired {
                engine.capture_started("x");
                let end = second + length + 1;
                capture = Some(end);
                quiet_until = end + cooldown;
            }
        }
    }

    #[test]
    fn incident_opens_before_it_clears(values in values(), clear in 0.0..40.0_f64) {
        let rule = Rule { abs: Some(50.0), clear: Some(clear), diff: Some(30.0), ..gauge("x") };
        let mut open = false;
        for (value, decision) in values.iter().zip(run(rule, &values)) {
            match decision {
                Decision::Fire(_) => open = true,
                Decision::Clear => {
                    prop_assert!(open && *value <= clear);
                    open = false;
                }
                Decision::Hold(_) => (),
            }
        }
    }

    #[test]
    fn rule_order_does_not_change_decisions(
        values in values(), limits in prop::collection::vec((0.0..90.0_f64, 1.0..80.0_f64), 1..6),
    ) {
        let rules: Vec<Rule> = limits
            .iter()
            .enumerate()
            .map(|(n, &(abs, diff))| Rule {
                abs: Some(abs),
                diff: Some(diff),
                ..gauge(&format!("rule-{n}"))
            })
            .collect();
        let reversed = rules.iter().rev().cloned().collect();
        let mut engines = [Engine::new(rules), Engine::new(reversed)];
        for (second, value) in values.iter().enumerate() {
            let [one, other] = engines.each_mut().map(|engine| {
                let _ = engine.evaluate(moment_at(second), &vitals(*value));
                let state = |state: marple::internals::rules::State<'_>| {
                    (state.rule.name.clone(), format!("{:?}", state.decision))
                };
                engine.states().map(state).collect::<BTreeMap<_, _>>()
            });
            prop_assert_eq!(one, other);
        }
    }

    /// Values are multiples of a thousand, so that integer division is exact. `min` is above 0,
    /// because holmes fires on a steady 0.
    #[test]
    fn decisions_match_holmes_on_integers(
        thousands in prop::collection::vec(0..100_i64, 0..120),
        min in 1..40_i64, abs in 0..100_i64, max in prop_oneof![Just(0), 1..120_i64],
        diff in 1..200_i64, cooldown in 0..15_usize,
    ) {
        let (min, abs, max) = (min * 1000, abs * 1000, max * 1000);
        let mut holmes =
            Holmes { min, diff, abs, max, cooldown, ring: Vec::new(), count: 0, cool_until: 0 };
        let mut engine = Engine::new(vec![Rule {
            min: min as f64,
            diff: Some(diff as f64),
            abs: Some(abs as f64),
            max: (max != 0).then_some(max as f64),
            cooldown: Duration::from_secs(cooldown as u64),
            ..gauge("x")
        }]);
        for (second, value) in thousands.iter().map(|value| value * 1000).enumerate() {
            let expected = holmes.tick(second, value);
            let current_vitals = vitals(value as f64);
            let fired = engine.evaluate(moment_at(second), &current_vitals).any(|(_, said)| is_fire(&said));
            prop_assert_eq!(fired, expected, "second {}: {}", second, value);
            if fired {
                engine.capture_started("x");
                engine.capture_ended("x", moment_at(second));
            }
        }
    }
}
