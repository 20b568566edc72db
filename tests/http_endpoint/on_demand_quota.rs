//! Tests of the daily quota of on-demand captures. That it is kept across restarts, and that a
//! capture that fails uses none of it, is tested in `tests/no_allocator`.

use std::fs;
use std::time::Duration;

use marple::config::{BudgetSettings, HttpSettings, StacksSettings, ThreadsMode};
use marple::{CaptureKind, Settings};

use crate::support::host::{self, gauge_rule, settings};
use crate::support::web::{get, serve_with};

fn settings_with_daily_quota(on_demand_captures_per_day: usize) -> Settings {
    Settings {
        budget: BudgetSettings { on_demand_captures_per_day, ..Default::default() },
        ..settings()
    }
}

#[test]
fn on_demand_quota_and_incident_budget_are_separate() {
    let rule = gauge_rule("queue", [CaptureKind::Threads], Duration::from_millis(50));
    let (host, url) = serve_with(
        HttpSettings::default(),
        Settings { rules: vec![rule], ..settings_with_daily_quota(1) },
    );
    let budget = || get(&format!("{url}/status")).json()["budget"].clone();
    assert_eq!(budget()["on_demand_captures_until"], serde_json::Value::Null);
    assert_eq!(get(&format!("{url}/debug/pprof/goroutine")).status, 200);
    assert_eq!(get(&format!("{url}/debug/pprof/goroutine")).status, 429);
    let listed = budget();
    assert_eq!(
        (&listed["on_demand_captures_24h"], &listed["on_demand_captures_per_day"]),
        (&1.into(), &1.into())
    );
    assert!(listed["on_demand_captures_until"].is_string(), "{listed}");
    assert_eq!(listed["incidents_in_a_day"], 0);
    let metrics = get(&format!("{url}/metrics")).text();
    assert!(metrics.contains("\nmarple_on_demand_captures_left 0\n"), "{metrics}");
    assert!(metrics.contains("code=\"429\"} 1\n"), "{metrics}");
    let gauge = host.handle().gauge("queue").unwrap();
    gauge.set(100.0);
    host::wait_for("the rule's incident", || (!host.incidents().is_empty()).then_some(()));
    gauge.set(0.0);
    assert_eq!(host.wait_for_closed(1)[0].1.artifacts.len(), 2);
}

#[test]
fn on_demand_capture_needs_no_disk() {
    let (host, url) = serve_with(HttpSettings::default(), settings_with_daily_quota(100));
    fs::remove_dir_all(host.captures()).unwrap();
    for _ in 0..3 {
        assert_eq!(get(&format!("{url}/debug/pprof/goroutine")).status, 200);
    }
    let failures = get(&format!("{url}/status")).json()["failures"].to_string();
    assert!(failures.contains("state not saved"), "{failures}");
}

#[test]
fn disabled_capture_is_not_found_with_reason() {
    let stacks = StacksSettings { threads: ThreadsMode::Off, ..StacksSettings::default() };
    let (_host, url) = serve_with(HttpSettings::default(), Settings { stacks, ..settings() });
    for path in ["goroutine", "goroutine?debug=1", "goroutine?seconds=1"] {
        let response = get(&format!("{url}/debug/pprof/{path}"));
        assert_eq!((response.status, response.header("x-go-pprof")), (404, Some("1")), "{path}");
        assert_eq!(response.text(), "No threads: `stacks.threads` is \"off\"\n", "{path}");
    }
    // The task list is still available.
    let text = get(&format!("{url}/debug/pprof/goroutine?debug=2"));
    assert_eq!(text.status, 200);
    assert!(text.text().contains("`stacks.threads` is \"off\""), "{}", text.text());
    assert_eq!(get(&format!("{url}/status")).json()["budget"]["on_demand_captures_24h"], 1);
}
