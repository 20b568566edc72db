//! Tests of each statement of the rule semantics with given values, at the boundary and on both
//! sides of it.

use std::sync::Arc;
use std::time::Duration;

use marple::base::{Bytes, Moment};
use marple::model::{Again, Limit, Metric, Rule, Vitals};
use marple::rules::{Admission, By, Decision, Engine, Hold, WINDOW};

const TICK: Duration = Duration::from_secs(1);

fn rule() -> Rule {
    Rule {
        name: "depth".to_owned(),
        again: Again::Cooldown,
        ..Rule::on(Metric::Gauge("depth".into()))
    }
}

/// One rule that gets a value each second.
struct Bench {
    engine: Engine,
    now: Moment,
}

impl Bench {
    fn new(rule: Rule) -> Self {
        Self { engine: Engine::new(vec![rule]), now: Moment::from_nanos(1_000_000_000_000) }
    }

    /// Returns a bench with as many values as a rule needs before its first decision.
    fn warm(rule: Rule, value: f64) -> Self {
        let mut bench = Self::new(rule);
        for _ in 1..WINDOW {
            bench.show(value);
        }
        bench
    }

    fn show(&mut self, value: impl Into<Option<f64>>) -> Decision {
        self.now = self.now + TICK;
        let depth: Arc<str> = "depth".into();
        let gauges = value.into().map(|value| (depth, value)).into_iter().collect();
        let vitals = Vitals { at: self.now, gauges, ..Vitals::default() };
        let decisions: Vec<_> = self.engine.observe(self.now, &vitals).collect();
        let [(0, decision)] = decisions[..] else { panic!("{decisions:?}") };
        decision
    }

    fn told(&self) -> String {
        self.engine.states().next().unwrap().explain().to_string()
    }

    fn capture(&mut self) {
        self.engine.capturing("depth");
        self.engine.captured("depth", self.now);
    }
}

fn fires(decision: Decision) -> bool {
    matches!(decision, Decision::Fire(_))
}

#[test]
fn the_first_decision_is_at_the_tenth_value() {
    let mut bench = Bench::new(Rule { abs: Some(5.0), ..rule() });
    assert_eq!(bench.told(), "warming up: 0 of 10 values of gauge.depth seen");
    for seen in 1..=9 {
        assert_eq!(bench.show(9.0), Decision::Hold(Hold::WarmingUp { seen }));
    }
    assert_eq!(bench.told(), "warming up: 9 of 10 values of gauge.depth seen");
    assert!(fires(bench.show(9.0)));
}

#[test]
fn each_limit_holds_at_its_boundary() {
    let (min, max, abs) = (Some(10.0), Some(90.0), Some(50.0));
    let below = Hold::BelowMin { value: 9.0, min: 10.0 };
    let above = |value| Hold::AboveMax { value, max: 90.0 };
    for (min, max, value, expected) in [
        (min, None, 9.0, Err(below)),
        (None, None, 49.0, Err(Hold::WithinLimits { value: 49.0, abs, average: 49.0 })),
        (None, None, 50.0, Err(Hold::WithinLimits { value: 50.0, abs, average: 50.0 })),
        (None, None, 51.0, Ok(())),
        (Some(51.0), None, 51.0, Ok(())),
        (Some(52.0), None, 51.0, Err(Hold::BelowMin { value: 51.0, min: 52.0 })),
        (None, max, 89.0, Ok(())),
        (None, max, 90.0, Err(above(90.0))),
        (None, max, 91.0, Err(above(91.0))),
    ] {
        let mut bench = Bench::warm(Rule { min: min.unwrap_or(0.0), max, abs, ..rule() }, value);
        match (bench.show(value), expected) {
            (Decision::Fire(crossing), Ok(())) => {
                assert_eq!((crossing.by, crossing.threshold), (By::Abs, 50.0));
                assert_eq!((crossing.value, crossing.average), (value, value));
            }
            (Decision::Hold(hold), Err(expected)) => assert_eq!(hold, expected),
            (decision, expected) => panic!("{value}: {decision:?}, not {expected:?}"),
        }
    }
}

#[test]
fn diff_is_above_an_average_that_includes_the_value() {
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
        let mut bench = Bench::warm(Rule { diff: Some(25.0), ..rule() }, before);
        let threshold = match bench.show(value) {
            Decision::Fire(crossing) => {
                assert_eq!(crossing.by, By::Diff);
                Some(crossing.threshold)
            }
            _ => None,
        };
        assert_eq!(threshold, expected, "{before} {value}");
    }
}

#[test]
fn abs_is_said_before_diff() {
    let mut bench = Bench::warm(Rule { abs: Some(50.0), diff: Some(25.0), ..rule() }, 1.0);
    let Decision::Fire(crossing) = bench.show(51.0) else { panic!("{}", bench.told()) };
    assert_eq!((crossing.by, crossing.average), (By::Abs, 6.0));
}

#[test]
fn a_steady_value_does_not_fire_by_diff() {
    for value in [0.0, 2.0, 0.1, 1e18] {
        let mut bench = Bench::warm(Rule { diff: Some(1.0), ..rule() }, value);
        for _ in 0..30 {
            assert!(!fires(bench.show(value)), "{value}: {}", bench.told());
        }
    }
    // A value below zero does not fire either: there, 25 % above the average is closer to zero.
    let mut bench = Bench::warm(Rule { diff: Some(25.0), min: -100.0, ..rule() }, -10.0);
    assert!(!fires(bench.show(-10.0)));
    assert!(!fires(bench.show(-8.0)));
    assert!(fires(bench.show(-6.0)), "{}", bench.told());
}

#[test]
fn the_cooldown_is_from_the_end_of_the_capture() {
    let cooldown = Duration::from_secs(3);
    let mut bench = Bench::warm(Rule { abs: Some(5.0), cooldown, ..rule() }, 9.0);
    assert!(fires(bench.show(9.0)));
    bench.engine.capturing("depth");
    for _ in 0..5 {
        assert!(matches!(bench.show(9.0), Decision::Hold(Hold::Capturing { .. })));
    }
    assert_eq!(bench.told(), "gauge.depth 9 is above abs 5, but its capture is running");
    bench.engine.captured("depth", bench.now);
    let end = bench.now + cooldown;
    for _ in 0..2 {
        let decision = bench.show(9.0);
        let Decision::Hold(Hold::CoolingDown { until, .. }) = decision else {
            panic!("{decision:?}")
        };
        assert_eq!(until, end);
    }
    assert_eq!(bench.told(), "gauge.depth 9 is above abs 5, but it is cooling down for another 1s");
    assert!(fires(bench.show(9.0)), "the cooldown is over: another capture in the same incident");
    assert_eq!(bench.now, end);
}

#[test]
fn for_is_how_long_a_condition_holds_without_a_gap() {
    let held = || Rule { abs: Some(5.0), hold: Duration::from_secs(2).into(), ..rule() };
    let holding = |decision| matches!(decision, Decision::Hold(Hold::Holding { .. }));
    let mut bench = Bench::warm(held(), 9.0);
    assert!(holding(bench.show(9.0)));
    assert!(holding(bench.show(9.0)));
    assert_eq!(bench.told(), "gauge.depth 9 is above abs 5, for 1s of 2s");
    assert!(fires(bench.show(9.0)));

    for gap in [Some(5.0), None, Some(f64::NAN)] {
        let mut bench = Bench::warm(held(), 9.0);
        assert!(holding(bench.show(9.0)));
        assert!(holding(bench.show(9.0)));
        assert!(!fires(bench.show(gap)));
        assert!(holding(bench.show(9.0)), "the gap of {gap:?} begins it anew");
        assert!(holding(bench.show(9.0)));
        assert!(fires(bench.show(9.0)));
    }
}

#[test]
fn an_incident_clears_once() {
    // Without `clear` the rule clears if no threshold is crossed; with `clear` at or below that
    // value.
    for (clear, above, at) in [(None, 5.1, 5.0), (Some(3.0), 3.1, 3.0), (Some(3.0), 3.1, 2.9)] {
        let mut bench = Bench::warm(Rule { abs: Some(5.0), clear, ..rule() }, 9.0);
        assert!(fires(bench.show(9.0)));
        bench.capture();
        let open = bench.show(above);
        assert!(matches!(open, Decision::Hold(_)), "{open:?}");
        assert!(bench.engine.states().next().unwrap().active);
        assert_eq!(bench.show(at), Decision::Clear);
        assert_eq!(bench.told(), "gauge.depth is back within limits");
        assert!(!bench.engine.states().next().unwrap().active);
        assert!(matches!(bench.show(at), Decision::Hold(Hold::WithinLimits { .. })));
    }
}

#[test]
fn what_does_not_clear_an_incident() {
    let clearing = Rule { abs: Some(5.0), max: Some(20.0), clear: Some(3.0), ..rule() };
    for (clear, value) in
        [(None, None), (Some(3.0), None), (None, Some(20.0)), (Some(3.0), Some(4.0))]
    {
        let mut bench = Bench::warm(Rule { clear, ..clearing.clone() }, 9.0);
        assert!(fires(bench.show(9.0)));
        bench.capture();
        assert!(matches!(bench.show(value), Decision::Hold(_)), "{clear:?} {value:?}");
        assert!(bench.engine.states().next().unwrap().active);
    }
    let mut bench = Bench::warm(clearing, 9.0);
    assert!(fires(bench.show(9.0)));
    bench.engine.capturing("depth");
    assert!(matches!(bench.show(1.0), Decision::Hold(Hold::WithinLimits { .. })));
    bench.engine.captured("depth", bench.now);
    assert_eq!(bench.show(1.0), Decision::Clear, "its capture has ended");
}

#[test]
fn incident_clears_a_minute_after_its_value_is_gone() {
    let mut bench = Bench::warm(Rule { abs: Some(5.0), ..rule() }, 9.0);
    assert!(fires(bench.show(9.0)));
    bench.capture();
    // A gap shorter than a minute does not clear it, nor do two that add up to more.
    for value in
        std::iter::repeat_n(None, 50).chain([Some(9.0)]).chain(std::iter::repeat_n(None, 60))
    {
        assert!(matches!(bench.show(value), Decision::Hold(_)));
    }
    assert_eq!(bench.show(None), Decision::Clear);
    assert_eq!(bench.show(None), Decision::Hold(Hold::NoValue));
}

#[test]
fn every_reason_is_a_sentence_with_numbers() {
    let mut bench = Bench::warm(
        Rule { abs: Some(50.0), min: 2.0, max: Some(90.0), clear: Some(40.0), ..rule() },
        10.0,
    );
    for (value, sentence) in [
        (Some(10.0), "gauge.depth 10 is within limits: abs 50, average 10"),
        (Some(1.5), "gauge.depth 1.50 is below min 2"),
        (Some(90.0), "gauge.depth 90 is at or above max 90, too late for a capture"),
        (None, "gauge.depth cannot be measured here"),
        (Some(60.0), "gauge.depth 60 is above abs 50"),
        (Some(45.0), "gauge.depth 45 is within limits, but the incident is open until 40"),
    ] {
        bench.show(value);
        assert_eq!(bench.told(), sentence);
    }
    let mut bench = Bench::warm(Rule { diff: Some(25.0), ..rule() }, 9.0);
    bench.show(23.0);
    assert_eq!(bench.told(), "gauge.depth 23 is at or above 13, its average 10.40 plus diff 25 %");
}

#[test]
fn a_state_is_dated_by_its_kind() {
    let mut bench = Bench::warm(Rule { abs: Some(50.0), ..rule() }, 10.0);
    bench.show(10.0);
    let since = bench.now;
    bench.show(12.0);
    let state = bench.engine.states().next().unwrap();
    assert_eq!((state.value, state.since), (Some(12.0), Some(since)));
    bench.show(60.0);
    assert_eq!(bench.engine.states().next().unwrap().since, Some(bench.now));
}

#[test]
fn an_unchanged_rule_does_not_notice_a_reload() {
    let held = Rule { abs: Some(5.0), hold: Duration::from_secs(1).into(), ..rule() };
    let other = Rule { name: "other".to_owned(), ..rule() };
    let mut bench = Bench::warm(held.clone(), 9.0);
    bench.show(9.0);
    let gone = bench.engine.replace(vec![held.clone()]);
    assert!(fires(bench.show(9.0)), "{}", bench.told());
    assert_eq!(gone, []);
    bench.engine.capturing("depth");
    assert_eq!(bench.engine.replace(vec![other, held.clone()]), []);
    let other_is_gone = bench.engine.replace(vec![held.clone()]);
    assert_eq!(other_is_gone, [], "its incident was not open");
    assert!(matches!(bench.show(9.0), Decision::Hold(Hold::Capturing { .. })));
    assert_eq!(bench.engine.replace(vec![]), [held], "its incident was open");
}

#[test]
fn a_changed_rule_keeps_what_still_means_something() {
    let before = Rule { abs: Some(5.0), hold: Duration::from_secs(1).into(), ..rule() };
    let after = Rule { abs: Some(6.0), cooldown: Duration::from_secs(4), ..before.clone() };
    let mut bench = Bench::warm(before.clone(), 9.0);
    bench.show(9.0);
    assert!(fires(bench.show(9.0)));
    bench.capture();
    let end = bench.now;
    bench.engine.replace(vec![after.clone()]);
    let decision = bench.show(9.0);
    assert!(matches!(decision, Decision::Hold(Hold::Holding { .. })), "`for` anew: {decision:?}");
    let Decision::Hold(Hold::CoolingDown { until, .. }) = bench.show(9.0) else {
        panic!("{}", bench.told())
    };
    assert_eq!(
        until,
        end + Duration::from_secs(4),
        "the cooldown's new length, from the same capture"
    );
    assert!(bench.engine.states().next().unwrap().active);

    bench.engine.replace(vec![Rule { metric: Metric::Tasks, ..after }]);
    assert_eq!(bench.told(), "warming up: 0 of 10 values of tasks seen");
    assert!(bench.engine.states().next().unwrap().active);
}

#[test]
fn too_little_fires_again_when_a_third_is_gone_and_clears_above() {
    let rule = Rule {
        again: Again::Worse,
        below: Some(9.0),
        clear: Some(12.0),
        critical: Some(2.0),
        cooldown: Duration::from_secs(3600),
        ..rule()
    };
    let mut bench = Bench::warm(rule, 20.0);
    assert!(!fires(bench.show(9.0)), "at it is not below it");
    assert_eq!(bench.told(), "gauge.depth 9 is not below 9");
    let Decision::Fire(crossing) = bench.show(8.9) else { panic!("{}", bench.told()) };
    assert_eq!((crossing.by, crossing.threshold), (By::Below, 9.0));
    assert_eq!(bench.told(), "gauge.depth 8.90 is below 9");
    bench.capture();
    // Two thirds of 8.9 are 5.93.
    for (value, again) in [(6.0, false), (5.9, true), (5.9, false), (4.0, false), (3.9, true)] {
        assert_eq!(fires(bench.show(value)), again, "{value}");
        bench.capture();
    }
    // A value below a hundredth of the threshold does not refire: that capture would come too late.
    assert!(!fires(bench.show(0.08)));
    assert!(matches!(bench.show(11.9), Decision::Hold(Hold::NotClear { .. })));
    assert_eq!(bench.show(12.0), Decision::Clear);
    // A value no worse than the last waits for the cooldown. A worse one does not; it waits for the
    // minimum gap, unless it is critical.
    assert!(matches!(bench.show(3.9), Decision::Hold(Hold::CoolingDown { .. })));
    let until = bench.now + Duration::from_secs(60);
    bench.engine.permit(Admission::Gap { until });
    assert!(matches!(bench.show(2.5), Decision::Hold(Hold::Gap { .. })));
    assert!(fires(bench.show(1.9)), "{}", bench.told());
}

#[test]
fn an_endless_time_to_the_limit_holds_and_clears() {
    let limit = Limit { value: Bytes(1000), source: "test".into() };
    let rule = Rule { below: Some(60.0), clear: Some(600.0), ..Rule::on(Metric::TimeToLimit) };
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
        let decision = engine.observe(now, &vitals).next().unwrap().1;
        (decision.name(), engine.states().next().unwrap().explain().to_string())
    };
    assert_eq!(show(None).1, "memory.time_to_limit cannot be measured here");
    (1..WINDOW).for_each(|_| drop(show(Some(0.0))));
    let (decision, told) = show(Some(-3.0));
    assert_eq!(decision, "within_limits");
    assert_eq!(told, "memory.time_to_limit is endless: no limit is in sight");
    assert_eq!(show(Some(1.0)).1, "memory.time_to_limit 500s is not below 60s");
    let (decision, told) = show(Some(10.0));
    assert_eq!((decision, told.as_str()), ("fire", "memory.time_to_limit 50s is below 60s"));
    assert_eq!(show(Some(1.0)).0, "not_clear");
    assert_eq!(show(Some(0.0)).0, "clear", "nothing grows any more");
}

#[test]
fn what_was_decided_before_is_told_once_a_change_the_newest_first() {
    let mut bench = Bench::warm(Rule { abs: Some(5.0), ..rule() }, 1.0);
    for value in [Some(1.0), Some(2.0), Some(9.0), Some(3.0), None, None, Some(3.0)] {
        bench.show(value);
        if value == Some(9.0) {
            bench.capture();
        }
    }
    let told = |bench: &Bench| {
        let state = bench.engine.states().next().unwrap();
        let told = state.past().map(|said| {
            let text = said.decision.explain(state.rule, said.at).to_string();
            ((bench.now.since(said.at)).as_secs(), said.value, said.decision.name(), text)
        });
        told.collect::<Vec<_>>()
    };
    let within = "gauge.depth 3 is within limits: abs 5, average ";
    let [again, missing, clear, fire, first, warming] = &told(&bench)[..] else {
        panic!("{:?}", told(&bench))
    };
    assert_eq!((again.0, again.1, again.2), (0, Some(3.0), "within_limits"));
    assert!(again.3.starts_with(within), "{}", again.3);
    let text = "gauge.depth cannot be measured here".to_owned();
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
    assert_eq!(told(&bench).len(), 6);
    bench.engine.replace(vec![Rule { diff: Some(7.0), ..rule }]);
    assert_eq!(told(&bench), []);
}

#[test]
fn a_forecast_fires_that_long_before_the_limit_and_not_on_a_step() {
    let rule = Rule { forecast: Some(Duration::from_secs(10)), ..Rule::on(Metric::Memory) };
    let first_fire = |used: &dyn Fn(u64) -> u64| {
        let mut engine = Engine::new(vec![rule.clone()]);
        (0..60).find(|&second| {
            let vitals = Vitals {
                working_set: Some(Bytes(used(second))),
                memory_limit: Some(Limit { value: Bytes(100), source: "test".into() }),
                ..Vitals::default()
            };
            let now = Moment::from_nanos(second * 1_000_000_000);
            let decision = engine.observe(now, &vitals).next().unwrap().1;
            if let Decision::Fire(crossing) = decision {
                assert!(matches!(crossing.by, By::Forecast { .. }), "{crossing:?}");
            }
            fires(decision)
        })
    };
    // At 1 % per second from 50 %, 90 % is ten seconds before the limit.
    assert_eq!(first_fire(&|second| (50 + second).min(99)), Some(40));
    assert_eq!(first_fire(&|second| if second < 30 { 50 } else { 95 }), None);
    assert_eq!(first_fire(&|second| 95 - second), None, "it falls");
}
