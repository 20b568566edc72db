//! Tests that evaluating rules allocates nothing.

use std::time::Duration;

use marple::internals::base::{Bytes, Moment};
use marple::internals::model::{Limit, Metric, Rule, Vitals};
use marple::internals::rules::Engine;

use crate::support::counting::allocations;

#[test]
fn rule_evaluation_allocates_nothing() {
    let names = ["memory", "gauge.depth", "runtime.lag", "fds"];
    let rules = names
        .into_iter()
        .map(|metric: &str| Rule {
            min: 1.0,
            diff: Some(25.0),
            abs: Some(50.0),
            max: Some(95.0),
            forecast: Some(Duration::from_secs(60)),
            hold: Duration::from_secs(1).into(),
            clear: Some(40.0),
            clear_for: Duration::from_secs(1),
            cooldown: Duration::from_secs(3),
            ..Rule::new(metric.parse::<Metric>().unwrap())
        })
        .chain([Rule { below: Some(30.0), ..Rule::new("gauge.depth".parse().unwrap()) }])
        .collect();
    let mut engine = Engine::new(rules);
    let mut vitals = Vitals {
        memory_limit: Some(Limit { value: Bytes(100), source: "test".into() }),
        gauges: vec![("depth".into(), 0.0)],
        ..Vitals::default()
    };
    let before = allocations();
    let mut decisions = 0;
    for second in 0..1000_u64 {
        let value = second * 7 % 100;
        vitals.working_set = Some(Bytes(value));
        vitals.gauges[0].1 = value as f64;
        vitals.lag = (second % 3 != 0).then(|| Duration::from_secs(value));
        let now = Moment::from_nanos(second * 1_000_000_000);
        decisions += engine.evaluate(now, &vitals).count();
        if second % 50 == 0 {
            engine.capture_started("memory");
            engine.capture_ended("memory", now);
        }
    }
    assert_eq!(allocations() - before, 0);
    assert_eq!(decisions, 5000);
    assert_eq!(allocations() - before, 0);
    drop(vec![engine]);
    assert!(allocations() > before, "the counter counts");
}
