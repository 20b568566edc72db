//! Tests of on-demand captures: which request gets the engine, for how long, and when it is
//! released.
#![cfg(all(feature = "cpu", feature = "heap", feature = "trace"))]
#![cfg(all(target_os = "linux", target_env = "gnu"))]

mod host;
mod web;

use std::alloc::System;
use std::io::Write;
use std::thread;
use std::time::Duration;

use host::{Host, gauge_rule, settings, wait_for};
use marple::codec::pprof;
use marple::config::{HttpSettings, Secret};
use marple::{CaptureKind, Settings};
use serde_json::Value;
use web::{Answer, ask, get, serve, serve_with};

#[global_allocator]
static ALLOCATOR: marple::Allocator<System> = marple::Allocator::new(System);

fn streams(url: &str) -> Vec<Value> {
    get(&format!("{url}/status")).json()["streams"].as_array().unwrap().clone()
}

/// Sends a request in the background and returns once its capture runs.
fn begin(url: &str, path: &str) -> thread::JoinHandle<Answer> {
    let asked = format!("{url}/debug/pprof/{path}");
    let asking = thread::spawn(move || get(&asked));
    wait_for("the capture to run", || {
        streams(url).iter().any(|stream| stream["until"].is_string()).then_some(())
    });
    asking
}

#[test]
fn who_comes_second_is_told_who_and_until_when_and_the_first_is_untouched() {
    let (_host, url) = serve(HttpSettings::default());
    let first = begin(&url, "profile?seconds=3");
    let second = get(&format!("{url}/debug/pprof/profile?seconds=1"));
    assert_eq!((second.status, second.header("x-go-pprof")), (500, Some("1")));
    let text = second.text();
    assert!(text.starts_with("Could not enable CPU profiling: in use by 127.0.0.1:"), "{text}");
    assert!(text.contains(" until 2"), "{text}");
    let wait: u64 = second.header("retry-after").unwrap().parse().unwrap();
    assert!((1..=4).contains(&wait), "{wait}");
    let first = first.join().unwrap();
    assert_eq!(first.status, 200);
    let nanos = pprof::read(&first.body).unwrap().duration_nanos;
    assert!(nanos >= 3_000_000_000, "{nanos}");
    assert!(streams(&url).is_empty());
}

#[test]
fn a_client_that_goes_away_frees_the_engine() {
    let (_host, url) = serve(HttpSettings::default());
    let mut client = web::connect(&url);
    client
        .write_all(b"GET /debug/pprof/profile?seconds=250 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    wait_for("the capture to run", || (!streams(&url).is_empty()).then_some(()));
    drop(client);
    wait_for("the capture to be given up", || streams(&url).is_empty().then_some(()));
    assert_eq!(get(&format!("{url}/debug/pprof/profile?seconds=1")).status, 200);
}

#[test]
fn of_a_hundred_at_once_one_captures_and_the_others_are_told() {
    let (_host, url) = serve(HttpSettings::default());
    let first = begin(&url, "trace?seconds=4");
    let asking: Vec<_> = (0..100)
        .map(|_| {
            let url = url.clone();
            thread::spawn(move || get(&format!("{url}/debug/pprof/trace?seconds=1")))
        })
        .collect();
    for asking in asking {
        let answer = asking.join().unwrap();
        assert_eq!(answer.status, 500, "{}", answer.text());
        assert!(answer.text().starts_with("Could not enable tracing: in use by 127.0.0.1:"));
    }
    assert_eq!(first.join().unwrap().status, 200);
}

#[test]
fn beyond_the_caps_it_is_refused_and_the_cap_is_named() {
    let http = HttpSettings { max_duration: Duration::from_secs(90), ..HttpSettings::default() };
    let (_host, url) = serve(http);
    for (path, words) in [
        ("profile?seconds=91", "beyond the cap of 90 (http.max_duration)"),
        ("profile?seconds=9223372036854775807", "beyond the cap of 90"),
        ("trace?seconds=90.5", "beyond the cap of 90"),
        ("trace?seconds=inf", "beyond the cap of 90"),
        ("heap?seconds=91", "beyond the cap of 90"),
        ("profile?hz=1001", "1 to 1000"),
        ("profile?hz=0", "1 to 1000"),
        ("profile?hz=x", "1 to 1000"),
        ("heap?rate=65536", "needs \"seconds\""),
        ("heap?seconds=1&rate=4095", "4096 bytes or more"),
        ("heap?seconds=1&rate=-1", "4096 bytes or more"),
    ] {
        let answer = get(&format!("{url}/debug/pprof/{path}"));
        assert_eq!((answer.status, answer.header("x-go-pprof")), (400, Some("1")), "{path}");
        assert!(answer.text().contains(words), "{path}: {}", answer.text());
    }
    assert!(streams(&url).is_empty());
}

#[test]
fn a_rate_holds_for_its_difference_and_not_longer() {
    let (_host, url) = serve(HttpSettings::default());
    let before = marple::heap::rate();
    let asking = begin(&url, "heap?seconds=2&rate=4096");
    assert_eq!(marple::heap::rate().get(), 4096);
    assert_eq!(asking.join().unwrap().status, 200);
    assert_eq!(marple::heap::rate(), before);

    let mut client = web::connect(&url);
    let head = b"GET /debug/pprof/heap?seconds=99&rate=8192 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    client.write_all(head).unwrap();
    wait_for("the rate", || (marple::heap::rate().get() == 8192).then_some(()));
    drop(client);
    wait_for("the rate to be put back", || (marple::heap::rate() == before).then_some(()));
}

#[test]
fn an_incident_takes_the_engine_and_the_client_gets_what_there_is() {
    let rule = gauge_rule("queue", [CaptureKind::Cpu], Duration::from_secs(2));
    let (host, url) =
        serve_with(HttpSettings::default(), Settings { rules: vec![rule], ..settings() });
    let asking = begin(&url, "profile?seconds=60");
    let gauge = host.handle().gauge("queue").unwrap();
    gauge.set(100.0);
    let answer = asking.join().unwrap();
    assert_eq!(answer.status, 200);
    let why = answer.header("x-marple-cut-short").unwrap();
    assert!(why.contains("incident") && why.contains("queue"), "{why}");
    let profile = pprof::read(&answer.body).unwrap();
    assert!(profile.duration_nanos < 60_000_000_000);
    assert!(profile.string_table.iter().any(|it| it.contains("cut short")));

    let refused = get(&format!("{url}/debug/pprof/profile?seconds=1"));
    assert!(refused.text().contains("(queue)"), "{}", refused.text());
    gauge.set(0.0);
    let (_, manifest) = host.closed(1).remove(0);
    assert_eq!(manifest.artifacts.len(), 1, "the incident has its profile: {manifest:?}");
}

#[test]
fn snapshots_at_once_are_all_answered() {
    let (_host, url) = serve(HttpSettings::default());
    let asking: Vec<_> = ["heap", "allocs", "goroutine", "threadcreate", "heap", "allocs"]
        .map(|path| {
            let url = format!("{url}/debug/pprof/{path}");
            thread::spawn(move || get(&url).status)
        })
        .into();
    for asking in asking {
        assert_eq!(asking.join().unwrap(), 200);
    }
}

#[test]
fn a_shutdown_does_not_wait_for_a_capture() {
    let (mut host, url): (Host, String) = serve(HttpSettings::default());
    let asking = begin(&url, "profile?seconds=250");
    host.end();
    // The response says that the agent has stopped, or the connection is closed.
    assert!(asking.join().map_or(true, |answer| answer.status == 500));
}

#[test]
fn a_head_costs_nothing_and_changes_nothing() {
    let (_host, url) = serve(HttpSettings::default());
    let head = ask("HEAD", &format!("{url}/debug/pprof/profile?seconds=200"), &[], "");
    assert_eq!(head.status, 200);
    assert_eq!(head.header("content-disposition"), Some("attachment; filename=\"profile\""));
    assert_eq!(ask("HEAD", &format!("{url}/monitor/notify"), &[], "").status, 405);
    assert_eq!(get(&format!("{url}/monitor/notify?action=status")).json()["on"], false);
}

#[test]
fn roles_may_do_what_they_are_for() {
    let http = HttpSettings {
        token: Some(Secret::new("all")),
        capture_token: Some(Secret::new("take")),
        read_token: Some(Secret::new("look")),
        ..HttpSettings::default()
    };
    let (_host, url) = serve(http);
    for (method, path, needs) in [
        ("GET", "/status", 0),
        ("GET", "/metrics", 0),
        ("GET", "/incidents", 0),
        ("GET", "/debug/pprof/", 0),
        ("GET", "/debug/pprof/symbol?0x1", 0),
        ("GET", "/monitor/notify?action=status", 0),
        ("GET", "/debug/pprof/heap", 1),
        ("GET", "/debug/pprof/goroutine", 1),
        ("GET", "/debug/pprof/cmdline", 1),
        ("GET", "/monitor/notify?action=stop", 2),
        ("POST", "/monitor/notify?action=stop", 2),
    ] {
        for (role, token) in ["look", "take", "all"].into_iter().enumerate() {
            let bearer = format!("Bearer {token}");
            let answer = ask(method, &format!("{url}{path}"), &[("Authorization", &bearer)], "");
            let expected = if role >= needs { 200 } else { 403 };
            assert_eq!(answer.status, expected, "{method} {path} with {token}");
        }
    }
}

#[test]
fn a_get_toggles_only_if_no_foreign_page_can_have_sent_it() {
    let (_host, url) = serve(HttpSettings::default());
    for action in ["", "?action=start", "?action=toggle"] {
        let answer = get(&format!("{url}/monitor/notify{action}"));
        assert_eq!((answer.status, answer.header("allow")), (405, Some("POST")), "{action}");
    }
    let from = |site: &str, more: &[(&str, &str)]| {
        let headers = [&[("Sec-Fetch-Site", site)], more].concat();
        ask("GET", &format!("{url}/monitor/notify"), &headers, "")
    };
    assert_eq!(from("cross-site", &[]).status, 403);
    assert_eq!(from("none", &[("Sec-Purpose", "prefetch")]).status, 405);
    assert_eq!(from("none", &[]).json()["on"], true);
    assert_eq!(from("same-origin", &[]).json()["on"], false);
    assert_eq!(get(&format!("{url}/monitor/notify?action=status")).json()["on"], false);
    assert_eq!(ask("POST", &format!("{url}/monitor/notify"), &[], "").json()["on"], true);
}
