//! Custom counters and histograms, from the recording call to the manifest of the incident they
//! cause. Also the limits and the vitals before and after the incident in that manifest.

use std::fs;
use std::time::Duration;

use marple::internals::model::{CaptureKind, Rule};
use marple::{AgentHandle, Settings};

use crate::support::host::{Host, WAIT_TIMEOUT, settings, wait_for};

fn rule(metric: &str, abs: f64) -> Rule {
    Rule {
        abs: Some(abs),
        capture: [CaptureKind::Heap].into(),
        duration: Duration::from_millis(50),
        clear_for: Duration::from_millis(2500),
        cooldown: Duration::from_secs(3600),
        ..Rule::new(metric.parse().unwrap())
    }
}

/// Waits until the decision of the first rule is `decision`.
fn wait_for_decision(handle: &AgentHandle, decision: &str) {
    wait_for(decision, || {
        let status = handle.status().wait(WAIT_TIMEOUT).unwrap();
        (status.rules[0].decision == decision).then_some(())
    });
}

#[test]
fn slow_requests_fire_rule_and_manifest_has_surrounding_vitals() {
    let rules = vec![rule("histogram.wait.p99", 1.0), rule("counter.orders.rate", 1e12)];
    let host = Host::start(Settings { rules, ..settings() });
    let handle = host.handle();
    let (wait, orders) = (handle.histogram("wait").unwrap(), handle.counter("orders").unwrap());
    wait_for_decision(&handle, "no_value");
    // The requests are fast until the rule has evaluated them, then slow until it fires, then fast
    // again.
    let serve = |seconds: f64, until: &dyn Fn() -> bool| {
        wait_for("the requests", || {
            (0..50).for_each(|_| wait.record(seconds));
            orders.add(50);
            until().then_some(())
        });
    };
    let first = || handle.status().wait(WAIT_TIMEOUT).unwrap().rules.remove(0);
    serve(0.01, &|| first().decision == "within_limits");
    // 200 ticks are 4 s, enough for several rows in the history even if ticks are skipped.
    let ticks = || handle.status().wait(WAIT_TIMEOUT).unwrap().counters.ticks;
    let enough = ticks() + 200;
    serve(0.01, &|| ticks() >= enough);
    serve(2.0, &|| first().active);
    serve(0.01, &|| !first().active);

    let status = handle.status().wait(WAIT_TIMEOUT).unwrap();
    let all = &status.histograms[0];
    assert_eq!((all.name.as_str(), all.refused), ("wait", 0));
    assert_eq!(status.vitals.values["counter.orders.total"] as u64 % 50, 0);
    // The status lists decisions newest first; consecutive ones differ.
    let decisions: Vec<&str> = first().decisions.iter().map(|entry| entry.decision).collect();
    let at = |decision| decisions.iter().position(|name| *name == decision).expect(decision);
    assert!(at("clear") < at("fire"), "{decisions:?}");
    assert!(
        decisions.len() <= 16 && decisions.windows(2).all(|pair| pair[0] != pair[1]),
        "{decisions:?}"
    );
    let fired = &first().decisions[at("fire")];
    assert!(fired.value.is_some_and(|value| (value - 2.0).abs() <= 2.0 / 64.0), "{fired:?}");
    assert!(fired.explanation.contains("is above abs 1"), "{}", fired.explanation);

    let (_, manifest) = host.wait_for_closed(1).remove(0);
    let reason = &manifest.reasons[0];
    assert_eq!(reason.metric, Some("histogram.wait.p99".parse().unwrap()));
    // The history has one row per second: fast requests before the rule fired, and again after it
    // until it cleared.
    let rows = |part: &str| {
        let value =
            |row: &marple::internals::model::VitalsRow| Some((row.at, *row.values.get(part)?));
        manifest.vitals.iter().filter_map(value).collect::<Vec<_>>()
    };
    let waits = rows("histogram.wait.p99");
    assert!(waits.iter().any(|(at, wait)| *at < reason.at && *wait < 0.1), "{waits:?}");
    assert!(waits.iter().any(|(at, wait)| *at > reason.at && *wait < 0.1), "{waits:?}");
    assert!(rows("counter.orders.rate").iter().any(|(_, rate)| *rate > 0.0));
    let last = manifest.vitals.last().unwrap().at;
    assert!(last > reason.at, "{last} {}", reason.at);
    // The limits in force must match the files they were read from.
    let source = manifest.limits.memory_source.as_deref().unwrap();
    let limit = manifest.limits.memory.unwrap().get();
    if source != "physical memory" {
        assert_eq!(fs::read_to_string(source).unwrap().trim(), limit.to_string());
    }
    assert!(limit > 0 && manifest.limits.cpu_source.is_some());
}
