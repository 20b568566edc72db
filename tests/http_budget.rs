//! Tests of the daily quota of on-demand captures, which is kept across restarts.
//!
//! The test runs itself as the service: with `MARPLE_TEST_SERVICE` set, `service` prints its
//! address and waits to be killed.

#[path = "support/mod.rs"]
mod support;

use std::io::{BufRead, BufReader};
use std::path::Path;
use std::process::{Child, Stdio};
use std::time::Duration;
use std::{env, fs, thread};

use jiff::{SignedDuration, Timestamp};
use marple::config::{BudgetSettings, HttpSettings, Listen, StacksSettings, ThreadsMode};
use marple::{Builder, CaptureKind, Settings};

use crate::support::host::{self, WAIT_TIMEOUT, gauge_rule, settings};
use crate::support::rerun::{self, test_path};
use crate::support::web::{self, get, send_request, serve_with};

const SERVICE_ENV: &str = "MARPLE_TEST_SERVICE";

fn settings_with_daily_quota(on_demand_captures_per_day: usize) -> Settings {
    Settings {
        budget: BudgetSettings { on_demand_captures_per_day, ..Default::default() },
        ..settings()
    }
}

#[test]
fn service_process() {
    let Some(dir) = env::var_os(SERVICE_ENV) else { return };
    let address = web::unused_address();
    let http = HttpSettings { listen: Listen::Tcp(address), ..HttpSettings::default() };
    let settings = Settings { dir: dir.into(), http: Some(http), ..settings_with_daily_quota(3) };
    let _agent = Builder::from_settings(settings).start().unwrap();
    println!("SAYS http://{address}");
    thread::sleep(WAIT_TIMEOUT);
}

/// The service in a child process, killed when it is dropped.
struct Service(Child, String);

impl Service {
    fn start(dir: &Path) -> Self {
        let mut child = rerun::command(test_path!(service_process))
            .env(SERVICE_ENV, dir)
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        let address_line = lines
            .map(Result::unwrap)
            .find_map(|line| line.split_once("SAYS ").map(|(_, url)| format!("{url}/debug/pprof")));
        Self(child, address_line.expect("the service says where it listens"))
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

#[test]
fn daily_quota_survives_restarts_and_429_has_retry_time() {
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("captures");
    let first = Service::start(&dir);
    // This program's allocator is not marple's: the capture fails, which uses no quota and is not
    // an error of the agent.
    let heap = get(&format!("{}/heap", first.1));
    assert_eq!((heap.status, heap.header("x-go-pprof")), (404, Some("1")), "{}", heap.text());
    assert!(heap.text().contains("#[global_allocator]"), "{}", heap.text());
    for path in ["threadcreate", "goroutine"] {
        assert_eq!(get(&format!("{}/{path}", first.1)).status, 200, "{path}");
    }
    // These requests are not captures.
    for path in ["/", "/symbol?0x1", "/cmdline", "/block", "/mutex", "/profile?seconds=x&hz=0"] {
        assert!([200, 400].contains(&get(&format!("{}{path}", first.1)).status), "{path}");
    }
    assert_eq!(send_request("HEAD", &format!("{}/goroutine", first.1), &[], "").status, 200);
    drop(first);

    let second = Service::start(&dir);
    assert_eq!(get(&format!("{}/goroutine?debug=1", second.1)).status, 200);
    let before = Timestamp::now();
    for path in ["goroutine", "profile?seconds=1", "trace", "threadcreate", "heap"] {
        let response = get(&format!("{}/{path}", second.1));
        assert_eq!((response.status, response.header("x-go-pprof")), (429, Some("1")), "{path}");
        let text = response.text();
        let exhausted_until = text.trim().rsplit(' ').next().unwrap().parse::<Timestamp>().unwrap();
        assert!(
            text.contains("budget.on_demand_captures_per_day (3) is exhausted until"),
            "{text}"
        );
        assert!(exhausted_until > before + SignedDuration::from_hours(23), "{text}");
        let wait: i64 = response.header("retry-after").unwrap().parse().unwrap();
        assert!((1..=24 * 3600 + 15 * 60 + 1).contains(&wait), "{wait}");
    }
    drop(second);

    let third = Service::start(&dir);
    assert_eq!(get(&format!("{}/goroutine", third.1)).status, 429, "killed and started again");
    assert_eq!(get(&format!("{}/symbol?0x1", third.1)).status, 200);
}

#[test]
fn on_demand_quota_and_incident_budget_are_separate() {
    let rule = gauge_rule("queue", [CaptureKind::Threads], Duration::from_millis(50));
    let (host, url) = serve_with(
        HttpSettings::default(),
        Settings { rules: vec![rule], ..settings_with_daily_quota(1) },
    );
    let streams = || get(&format!("{url}/status")).json()["budget"].clone();
    assert_eq!(streams()["on_demand_captures_until"], serde_json::Value::Null);
    assert_eq!(get(&format!("{url}/debug/pprof/goroutine")).status, 200);
    assert_eq!(get(&format!("{url}/debug/pprof/goroutine")).status, 429);
    let listed = streams();
    assert_eq!(
        (&listed["on_demand_captures_24h"], &listed["on_demand_captures_per_day"]),
        (&1.into(), &1.into())
    );
    assert!(listed["on_demand_captures_until"].is_string(), "{listed}");
    assert_eq!(listed["incidents_in_a_day"], 0);
    let metrics = get(&format!("{url}/metrics")).text();
    assert!(metrics.contains("\nmarple_streams_left 0\n"), "{metrics}");
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
