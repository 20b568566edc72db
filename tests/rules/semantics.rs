//! Tests of each statement of the rule semantics with given values, at the boundary and on both
//! sides of it.

use std::sync::Arc;
use std::time::Duration;

use marple::internals::base::{Bytes, Moment};
use marple::internals::model::{Limit, Metric, Refire, Rule, Vitals};
use marple::internals::rules::{Admission, Condition, Decision, Engine, HoldReason, WINDOW};

const TICK: Duration = Duration::from_secs(1);

fn rule() -> Rule {
    Rule {
        name: "depth".to_owned(),
        refire: Refire::AfterCooldown,
        ..Rule::new(Metric::Gauge("depth".into()))
    }
}

/// One rule that gets a value each second.
struct RuleBench {
    engine: Engine,
    now: Moment,
}

impl RuleBench {
    fn new(rule: Rule) -> Self {
        Self { engine: Engine::new(vec![rule]), now: Moment::from_nanos(1_000_000_000_000) }
    }

    /// Returns a bench with as many values as a rule needs before its first decision.
    fn with_window_filled(rule: Rule, value: f64) -> Self {
        let mut bench = Self::new(rule);
        for _ in 1..WINDOW {
            bench.observe(value);
        }
        bench
    }

    fn observe(&mut self, value: impl Into<Option<f64>>) -> Decision {
        self.now = self.now + TICK;
        let depth: Arc<str> = "depth".into();
        let gauges = value.into().map(|value| (depth, value)).into_iter().collect();
        let vitals = Vitals { at: self.now, gauges, ..Vitals::default() };
        let decisions: Vec<_> = self.engine.evaluate(self.now, &vitals).collect();
        let [(0, decision)] = decisions[..] else { panic!("{decisions:?}") };
        decision
    }

    fn explanation(&self) -> String {
        self.engine.states().next().unwrap().explain().to_string()
    }

    fn run_capture(&mut self) {
        self.engine.capture_started("depth");
        self.engine.capture_ended("depth", self.now);
    }
}

fn is_fire(decision: Decision) -> bool {
    matches!(decision, Decision::Fire(_))
}

#[test]
fn first_decision_is_at_tenth_value() {
    let mut bench = RuleBench::new(Rule { abs: Some(5.0), ..rule() });
    assert_eq!(bench.explanation(), "warming up: 0 of 10 values of gauge.depth collected");
    for seen in 1..=9 {
        assert_eq!(bench.observe(9.0), Decision::Hold(HoldReason::WarmingUp { value_count: seen }));
    }
    assert_eq!(bench.explanation(), "warming up: 9 of 10 values of gauge.depth collected");
    assert!(is_fire(bench.observe(9.0)));
}

#[test]
fn min_max_and_abs_are_exact_at_boundary() {
    let (min, max, abs) = (Some(10.0), Some(90.0), Some(50.0));
    let below = HoldReason::BelowMin { value: 9.0, min: 10.0 };
    let above = |value| HoldReason::AboveMax { value, max: 90.0 };
    for (min, max, value, expected) in [
        (min, None, 9.0, Err(below)),
        (None, None, 49.0, Err(HoldReason::WithinLimits { value: 49.0, abs, average: 49.0 })),
        (None, None, 50.0, Err(HoldReason::WithinLimits { value: 50.0, abs, average: 50.0 })),
        (None, None, 51.0, Ok(())),
        (Some(51.0), None, 51.0, Ok(())),
        (Some(52.0), None, 51.0, Err(HoldReason::BelowMin { value: 51.0, min: 52.0 })),
        (None, max, 89.0, Ok(())),
        (None, max, 90.0, Err(above(90.0))),
        (None, max, 91.0, Err(above(91.0))),
    ] {
        let mut bench = RuleBench::with_window_filled(
            Rule { min: min.unwrap_or(0.0), max, abs, ..rule() },
            value,
        );
        match (bench.observe(value), expected) {
            (Decision::Fire(crossing), Ok(())) => {
                assert_eq!((crossing.condition, crossing.threshold), (Condition::Abs, 50.0));
                assert_eq!((crossing.value, crossing.average), (value, value));
            }
            (Decision::Hold(hold), Err(expected)) => assert_eq!(hold, expected),
            (decision, expected) => panic!("{value}: {decision:?}, not {expected:?}"),
        }
    }
}

#[test]
fn diff_compares_with_average_including_current_value() {
    // Average: (9 * 9 + 23) / 10 = 10.4; 25 % above it is 13.0 for a tenth value of 23: fires. The
    // boundary with nine values of nine is v = (81 + v) / 10 * 1.25, that is v = 11.571…
    for (before, value, expected) in [
        (9.0, 11.0, None),
        (9.0, 11.5, None),
        (9.0, 11.6, Some(11.575)),
        (9.0, 23.0, Some(13.0)),
        (7.0, 9.0, Some(9.0)),
        (7.0, 8.0, None),
        (7.0, 10.0, Some(9.125)),
    ] {
        let mut bench = RuleBench::with_window_filled(Rule { diff: Some(25.0), ..rule() }, before);
        let threshold = match bench.observe(value) {
            Decision::Fire(crossing) => {
                assert_eq!(crossing.condition, Condition::Diff);
                Some(crossing.threshold)
            }
            _ => None,
        };
        assert_eq!(threshold, expected, "{before} {value}");
    }
}

#[test]
fn abs_is_reported_before_diff() {
    let mut bench =
        RuleBench::with_window_filled(Rule { abs: Some(50.0), diff: Some(25.0), ..rule() }, 1.0);
    let Decision::Fire(crossing) = bench.observe(51.0) else { panic!("{}", bench.explanation()) };
    assert_eq!((crossing.condition, crossing.average), (Condition::Abs, 6.0));
}

#[test]
fn steady_value_does_not_fire_by_diff() {
    for value in [0.0, 2.0, 0.1, 1e18] {
        let mut bench = RuleBench::with_window_filled(Rule { diff: Some(1.0), ..rule() }, value);
        for _ in 0..30 {
            assert!(!is_fire(bench.observe(value)), "{value}: {}", bench.explanation());
        }
    }
    // A value below zero does not fire either: there, 25 % above the average is closer to zero.
    let mut bench =
        RuleBench::with_window_filled(Rule { diff: Some(25.0), min: -100.0, ..rule() }, -10.0);
    assert!(!is_fire(bench.observe(-10.0)));
    assert!(!is_fire(bench.observe(-8.0)));
    assert!(is_fire(bench.observe(-6.0)), "{}", bench.explanation());
}

#[test]
fn cooldown_starts_at_end_of_capture() {
    let cooldown = Duration::from_secs(3);
    let mut bench = RuleBench::with_window_filled(Rule { abs: Some(5.0), cooldown, ..rule() }, 9.0);
    assert!(is_fire(bench.observe(9.0)));
    bench.engine.capture_started("depth");
    for _ in 0..5 {
        assert!(matches!(bench.observe(9.0), Decision::Hold(HoldReason::Capturing { .. })));
    }
    assert_eq!(bench.explanation(), "gauge.depth 9 is above abs 5, but its capture is running");
    bench.engine.capture_ended("depth", bench.now);
    let end = bench.now + cooldown;
    for _ in 0..2 {
        let decision = bench.observe(9.0);
        let Decision::Hold(HoldReason::CoolingDown { until, .. }) = decision else {
            panic!("{decision:?}")
        };
        assert_eq!(until, end);
    }
    assert_eq!(
        bench.explanation(),
        "gauge.depth 9 is above abs 5, but it is cooling down for another 1s"
    );
    assert!(
        is_fire(bench.observe(9.0)),
        "the cooldown is over: another capture in the same incident"
    );
    assert_eq!(bench.now, end);
}

#[test]
fn for_is_continuous_time_condition_holds() {
    let rule_with_hold = || Rule { abs: Some(5.0), hold: Duration::from_secs(2).into(), ..rule() };
    let holding = |decision| matches!(decision, Decision::Hold(HoldReason::Pending { .. }));
    let mut bench = RuleBench::with_window_filled(rule_with_hold(), 9.0);
    assert!(holding(bench.observe(9.0)));
    assert!(holding(bench.observe(9.0)));
    assert_eq!(bench.explanation(), "gauge.depth 9 is above abs 5, for 1s of 2s");
    assert!(is_fire(bench.observe(9.0)));

    for gap in [Some(5.0), None, Some(f64::NAN)] {
        let mut bench = RuleBench::with_window_filled(rule_with_hold(), 9.0);
        assert!(holding(bench.observe(9.0)));
        assert!(holding(bench.observe(9.0)));
        assert!(!is_fire(bench.observe(gap)));
        assert!(holding(bench.observe(9.0)), "the gap of {gap:?} begins it anew");
        assert!(holding(bench.observe(9.0)));
        assert!(is_fire(bench.observe(9.0)));
    }
}

#[test]
fn incident_clears_once() {
    // Without `clear` the rule clears if no threshold is crossed; with `clear` at or below that
    // value.
    for (clear, above, at) in [(None, 5.1, 5.0), (Some(3.0), 3.1, 3.0), (Some(3.0), 3.1, 2.9)] {
        let mut bench =
            RuleBench::with_window_filled(Rule { abs: Some(5.0), clear, ..rule() }, 9.0);
        assert!(is_fire(bench.observe(9.0)));
        bench.run_capture();
        let open = bench.observe(above);
        assert!(matches!(open, Decision::Hold(_)), "{open:?}");
        assert!(bench.engine.states().next().unwrap().active);
        assert_eq!(bench.observe(at), Decision::Clear);
        assert_eq!(bench.explanation(), "gauge.depth is back within limits");
        assert!(!bench.engine.states().next().unwrap().active);
        assert!(matches!(bench.observe(at), Decision::Hold(HoldReason::WithinLimits { .. })));
    }
}

#[test]
fn missing_value_max_or_running_capture_does_not_clear() {
    let clearing = Rule { abs: Some(5.0), max: Some(20.0), clear: Some(3.0), ..rule() };
    for (clear, value) in
        [(None, None), (Some(3.0), None), (None, Some(20.0)), (Some(3.0), Some(4.0))]
    {
        let mut bench = RuleBench::with_window_filled(Rule { clear, ..clearing.clone() }, 9.0);
        assert!(is_fire(bench.observe(9.0)));
        bench.run_capture();
        assert!(matches!(bench.observe(value), Decision::Hold(_)), "{clear:?} {value:?}");
        assert!(bench.engine.states().next().unwrap().active);
    }
    let mut bench = RuleBench::with_window_filled(clearing, 9.0);
    assert!(is_fire(bench.observe(9.0)));
    bench.engine.capture_started("depth");
    assert!(matches!(bench.observe(1.0), Decision::Hold(HoldReason::WithinLimits { .. })));
    bench.engine.capture_ended("depth", bench.now);
    assert_eq!(bench.observe(1.0), Decision::Clear, "its capture has ended");
}

#[test]
fn incident_clears_one_minute_after_value_disappears() {
    let mut bench = RuleBench::with_window_filled(Rule { abs: Some(5.0), ..rule() }, 9.0);
    assert!(is_fire(bench.observe(9.0)));
    bench.run_capture();
    // A gap shorter than a minute does not clear it, nor do two that add up to more.
    for value in
        std::iter::repeat_n(None, 50).chain([Some(9.0)]).chain(std::iter::repeat_n(None, 60))
    {
        assert!(matches!(bench.observe(value), Decision::Hold(_)));
    }
    assert_eq!(bench.observe(None), Decision::Clear);
    assert_eq!(bench.observe(None), Decision::Hold(HoldReason::NoValue));
}

#[test]
fn every_reason_text_has_its_numbers() {
    let mut bench = RuleBench::with_window_filled(
        Rule { abs: Some(50.0), min: 2.0, max: Some(90.0), clear: Some(40.0), ..rule() },
        10.0,
    );
    for (value, sentence) in [
        (Some(10.0), "gauge.depth 10 is within limits: abs 50, average 10"),
        (Some(1.5), "gauge.depth 1.50 is below min 2"),
        (Some(90.0), "gauge.depth 90 is at or above max 90, too late for a capture"),
        (None, "gauge.depth has no value"),
        (Some(60.0), "gauge.depth 60 is above abs 50"),
        (Some(45.0), "gauge.depth 45 is within limits, but the incident stays open until clear 40"),
    ] {
        bench.observe(value);
        assert_eq!(bench.explanation(), sentence);
    }
    let mut bench = RuleBench::with_window_filled(Rule { diff: Some(25.0), ..rule() }, 9.0);
    bench.observe(23.0);
    assert_eq!(
        bench.explanation(),
        "gauge.depth 23 is at or above 13 (average 10.40 plus diff 25 %)"
    );
}

#[test]
fn state_since_changes_only_with_decision_kind() {
    let mut bench = RuleBench::with_window_filled(Rule { abs: Some(50.0), ..rule() }, 10.0);
    bench.observe(10.0);
    let since = bench.now;
    bench.observe(12.0);
    let state = bench.engine.states().next().unwrap();
    assert_eq!((state.value, state.changed_at), (Some(12.0), Some(since)));
    bench.observe(60.0);
    assert_eq!(bench.engine.states().next().unwrap().changed_at, Some(bench.now));
}

#[test]
fn unchanged_rule_keeps_state_on_reload() {
    let rule_with_hold = Rule { abs: Some(5.0), hold: Duration::from_secs(1).into(), ..rule() };
    let other = Rule { name: "other".to_owned(), ..rule() };
    let mut bench = RuleBench::with_window_filled(rule_with_hold.clone(), 9.0);
    bench.observe(9.0);
    let replaced = bench.engine.replace(vec![rule_with_hold.clone()]);
    assert!(is_fire(bench.observe(9.0)), "{}", bench.explanation());
    assert_eq!(replaced, []);
    bench.engine.capture_started("depth");
    assert_eq!(bench.engine.replace(vec![other, rule_with_hold.clone()]), []);
    let other_is_gone = bench.engine.replace(vec![rule_with_hold.clone()]);
    assert_eq!(other_is_gone, [], "its incident was not open");
    assert!(matches!(bench.observe(9.0), Decision::Hold(HoldReason::Capturing { .. })));
    assert_eq!(bench.engine.replace(vec![]), [rule_with_hold], "its incident was open");
}

#[test]
fn changed_rule_keeps_still_valid_state() {
    let before = Rule { abs: Some(5.0), hold: Duration::from_secs(1).into(), ..rule() };
    let after = Rule { abs: Some(6.0), cooldown: Duration::from_secs(4), ..before.clone() };
    let mut bench = RuleBench::with_window_filled(before.clone(), 9.0);
    bench.observe(9.0);
    assert!(is_fire(bench.observe(9.0)));
    bench.run_capture();
    let end = bench.now;
    bench.engine.replace(vec![after.clone()]);
    let decision = bench.observe(9.0);
    assert!(
        matches!(decision, Decision::Hold(HoldReason::Pending { .. })),
        "`for` anew: {decision:?}"
    );
    let Decision::Hold(HoldReason::CoolingDown { until, .. }) = bench.observe(9.0) else {
        panic!("{}", bench.explanation())
    };
    assert_eq!(
        until,
        end + Duration::from_secs(4),
        "the cooldown's new length, from the same capture"
    );
    assert!(bench.engine.states().next().unwrap().active);

    bench.engine.replace(vec![Rule { metric: Metric::Tasks, ..after }]);
    assert_eq!(bench.explanation(), "warming up: 0 of 10 values of tasks collected");
    assert!(bench.engine.states().next().unwrap().active);
}

#[test]
fn below_refires_after_drop_by_third_and_clears_above() {
    let rule = Rule {
        refire: Refire::OnWorsening,
        below: Some(9.0),
        clear: Some(12.0),
        critical: Some(2.0),
        cooldown: Duration::from_secs(3600),
        ..rule()
    };
    let mut bench = RuleBench::with_window_filled(rule, 20.0);
    assert!(!is_fire(bench.observe(9.0)), "at it is not below it");
    assert_eq!(bench.explanation(), "gauge.depth 9 is not below 9");
    let Decision::Fire(crossing) = bench.observe(8.9) else { panic!("{}", bench.explanation()) };
    assert_eq!((crossing.condition, crossing.threshold), (Condition::Below, 9.0));
    assert_eq!(bench.explanation(), "gauge.depth 8.90 is below 9");
    bench.run_capture();
    // Two thirds of 8.9 are 5.93.
    for (value, again) in [(6.0, false), (5.9, true), (5.9, false), (4.0, false), (3.9, true)] {
        assert_eq!(is_fire(bench.observe(value)), again, "{value}");
        bench.run_capture();
    }
    // A value below a hundredth of the threshold does not refire: that capture would come too late.
    assert!(!is_fire(bench.observe(0.08)));
    assert!(matches!(bench.observe(11.9), Decision::Hold(HoldReason::NotClear { .. })));
    assert_eq!(bench.observe(12.0), Decision::Clear);
    // A value no worse than the last waits for the cooldown. A worse one does not; it waits for the
    // minimum gap, unless it is critical.
    assert!(matches!(bench.observe(3.9), Decision::Hold(HoldReason::CoolingDown { .. })));
    let until = bench.now + Duration::from_secs(60);
    bench.engine.set_admission(Admission::TooSoon { until });
    assert!(matches!(bench.observe(2.5), Decision::Hold(HoldReason::TooSoon { .. })));
    assert!(is_fire(bench.observe(1.9)), "{}", bench.explanation());
}

#[test]
fn infinite_time_to_limit_holds_and_clears() {
    let limit = Limit { value: Bytes(1000), source: "test".into() };
    let rule = Rule { below: Some(60.0), clear: Some(600.0), ..Rule::new(Metric::TimeToLimit) };
    let mut engine = Engine::new(vec![rule]);
    let mut second = 0;
    let mut show = |growth: Option<f64>| {
        second += 1;
        let vitals = Vitals {
            working_set: Some(Bytes(500)),
            memory_limit: Some(limit.clone()),
            memory_growth: growth,
            ..Vitals::default()
        };
        let now = Moment::from_nanos(second * 1_000_000_000);
        let decision = engine.evaluate(now, &vitals).next().unwrap().1;
        (decision.name(), engine.states().next().unwrap().explain().to_string())
    };
    assert_eq!(show(None).1, "memory.time_to_limit has no value");
    (1..WINDOW).for_each(|_| drop(show(Some(0.0))));
    let (decision, explanation) = show(Some(-3.0));
    assert_eq!(decision, "within_limits");
    assert_eq!(
        explanation,
        "memory.time_to_limit is infinite: the limit is not reached within a day"
    );
    assert_eq!(show(Some(1.0)).1, "memory.time_to_limit 500s is not below 60s");
    let (decision, explanation) = show(Some(10.0));
    assert_eq!((decision, explanation.as_str()), ("fire", "memory.time_to_limit 50s is below 60s"));
    assert_eq!(show(Some(1.0)).0, "not_clear");
    assert_eq!(show(Some(0.0)).0, "clear", "nothing grows any more");
}

#[test]
fn decision_history_lists_changes_newest_first() {
    let mut bench = RuleBench::with_window_filled(Rule { abs: Some(5.0), ..rule() }, 1.0);
    for value in [Some(1.0), Some(2.0), Some(9.0), Some(3.0), None, None, Some(3.0)] {
        bench.observe(value);
        if value == Some(9.0) {
            bench.run_capture();
        }
    }
    let history = |bench: &RuleBench| {
        let state = bench.engine.states().next().unwrap();
        let told = state.recent_decisions().map(|said| {
            let text = said.decision.explain(state.rule, said.at).to_string();
            ((bench.now.since(said.at)).as_secs(), said.value, said.decision.name(), text)
        });
        told.collect::<Vec<_>>()
    };
    let within = "gauge.depth 3 is within limits: abs 5, average ";
    let [again, missing, clear, fire, first, warming] = &history(&bench)[..] else {
        panic!("{:?}", history(&bench))
    };
    assert_eq!((again.0, again.1, again.2), (0, Some(3.0), "within_limits"));
    assert!(again.3.starts_with(within), "{}", again.3);
    let text = "gauge.depth has no value".to_owned();
    assert_eq!(*missing, (2, None, "no_value", text));
    let text = "gauge.depth is back within limits".to_owned();
    assert_eq!(*clear, (3, Some(3.0), "clear", text));
    assert_eq!(*fire, (4, Some(9.0), "fire", "gauge.depth 9 is above abs 5".to_owned()));
    assert_eq!((first.0, first.1, first.2), (6, Some(1.0), "within_limits"));
    assert_eq!((warming.0, warming.2), (15, "warming_up"));
    // A changed threshold keeps the history. A changed condition drops it: its terms do not
    // describe the earlier decisions.
    let rule = bench.engine.rule(0).unwrap().clone();
    bench.engine.replace(vec![Rule { abs: Some(7.0), ..rule.clone() }]);
    assert_eq!(history(&bench).len(), 6);
    bench.engine.replace(vec![Rule { diff: Some(7.0), ..rule }]);
    assert_eq!(history(&bench), []);
}

#[test]
fn forecast_fires_at_horizon_before_limit_and_not_on_step() {
    let rule = Rule { forecast: Some(Duration::from_secs(10)), ..Rule::new(Metric::Memory) };
    let first_fire = |used: &dyn Fn(u64) -> u64| {
        let mut engine = Engine::new(vec![rule.clone()]);
        (0..60).find(|&second| {
            let vitals = Vitals {
                working_set: Some(Bytes(used(second))),
                memory_limit: Some(Limit { value: Bytes(100), source: "test".into() }),
                ..Vitals::default()
            };
            let now = Moment::from_nanos(second * 1_000_000_000);
            let decision = engine.evaluate(now, &vitals).next().unwrap().1;
            if let Decision::Fire(crossing) = decision {
                assert!(matches!(crossing.condition, Condition::Forecast { .. }), "{crossing:?}");
            }
            is_fire(decision)
        })
    };
    // At 1 % per second from 50 %, 90 % is ten seconds before the limit.
    assert_eq!(first_fire(&|second| (50 + second).min(99)), Some(40));
    assert_eq!(first_fire(&|second| if second < 30 { 50 } else { 95 }), None);
    assert_eq!(first_fire(&|second| 95 - second), None, "it falls");
}
