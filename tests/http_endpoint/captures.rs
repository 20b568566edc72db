//! Tests of on-demand captures: which request gets the engine, for how long, and when it is
//! released.

use std::io::Write;
use std::thread;
use std::time::Duration;

use marple::config::{HttpSettings, Secret};
use marple::internals::codec::pprof;
use marple::{CaptureKind, Settings};
use serde_json::Value;

use crate::support::host::{Host, gauge_rule, settings, wait_for};
use crate::support::web::{self, Response, get, send_request, serve, serve_with};

fn running_captures(url: &str) -> Vec<Value> {
    get(&format!("{url}/status")).json()["on_demand_captures"].as_array().unwrap().clone()
}

/// Sends a request in the background and returns once its capture runs.
fn start_capture(url: &str, path: &str) -> thread::JoinHandle<Response> {
    let capture_url = format!("{url}/debug/pprof/{path}");
    let request = thread::spawn(move || get(&capture_url));
    wait_for("the capture to run", || {
        running_captures(url).iter().any(|stream| stream["until"].is_string()).then_some(())
    });
    request
}

#[test]
fn second_request_is_rejected_with_holder_and_end_time() {
    let (_host, url) = serve(HttpSettings::default());
    let first = start_capture(&url, "profile?seconds=3");
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
    assert!(running_captures(&url).is_empty());
}

#[test]
fn disconnected_client_releases_engine() {
    let (_host, url) = serve(HttpSettings::default());
    let mut client = web::connect(&url);
    client
        .write_all(b"GET /debug/pprof/profile?seconds=250 HTTP/1.1\r\nHost: localhost\r\n\r\n")
        .unwrap();
    wait_for("the capture to run", || (!running_captures(&url).is_empty()).then_some(()));
    drop(client);
    wait_for("the capture to be given up", || running_captures(&url).is_empty().then_some(()));
    assert_eq!(get(&format!("{url}/debug/pprof/profile?seconds=1")).status, 200);
}

#[test]
fn hundred_concurrent_requests_run_one_capture() {
    let (_host, url) = serve(HttpSettings::default());
    let first = start_capture(&url, "trace?seconds=4");
    let requests: Vec<_> = (0..100)
        .map(|_| {
            let url = url.clone();
            thread::spawn(move || get(&format!("{url}/debug/pprof/trace?seconds=1")))
        })
        .collect();
    for request in requests {
        let response = request.join().unwrap();
        assert_eq!(response.status, 500, "{}", response.text());
        assert!(response.text().starts_with("Could not enable tracing: in use by 127.0.0.1:"));
    }
    assert_eq!(first.join().unwrap().status, 200);
}

#[test]
fn request_beyond_cap_is_rejected_and_names_cap() {
    let http = HttpSettings { max_duration: Duration::from_secs(90), ..HttpSettings::default() };
    let (_host, url) = serve(http);
    for (path, words) in [
        ("profile?seconds=91", "exceeds 90 (http.max_duration)"),
        ("profile?seconds=9223372036854775807", "exceeds 90"),
        ("trace?seconds=90.5", "exceeds 90"),
        ("trace?seconds=inf", "exceeds 90"),
        ("heap?seconds=91", "exceeds 90"),
        ("profile?hz=1001", "1 to 1000"),
        ("profile?hz=0", "1 to 1000"),
        ("profile?hz=x", "1 to 1000"),
        ("heap?rate=65536", "needs \"seconds\""),
        ("heap?seconds=1&rate=4095", "4096 bytes or more"),
        ("heap?seconds=1&rate=-1", "4096 bytes or more"),
    ] {
        let response = get(&format!("{url}/debug/pprof/{path}"));
        assert_eq!((response.status, response.header("x-go-pprof")), (400, Some("1")), "{path}");
        assert!(response.text().contains(words), "{path}: {}", response.text());
    }
    assert!(running_captures(&url).is_empty());
}

#[test]
fn heap_rate_is_restored_after_delta_or_disconnect() {
    let (_host, url) = serve(HttpSettings::default());
    let before = marple::internals::heap::rate();
    let request = start_capture(&url, "heap?seconds=2&rate=4096");
    assert_eq!(marple::internals::heap::rate().get(), 4096);
    assert_eq!(request.join().unwrap().status, 200);
    assert_eq!(marple::internals::heap::rate(), before);

    let mut client = web::connect(&url);
    let head = b"GET /debug/pprof/heap?seconds=99&rate=8192 HTTP/1.1\r\nHost: localhost\r\n\r\n";
    client.write_all(head).unwrap();
    wait_for("the rate", || (marple::internals::heap::rate().get() == 8192).then_some(()));
    drop(client);
    wait_for("the rate to be put back", || {
        (marple::internals::heap::rate() == before).then_some(())
    });
}

#[test]
fn incident_preempts_capture_and_client_gets_partial_profile() {
    let rule = gauge_rule("queue", [CaptureKind::Cpu], Duration::from_secs(2));
    let (host, url) =
        serve_with(HttpSettings::default(), Settings { rules: vec![rule], ..settings() });
    let request = start_capture(&url, "profile?seconds=60");
    let gauge = host.handle().gauge("queue").unwrap();
    gauge.set(100.0);
    let response = request.join().unwrap();
    assert_eq!(response.status, 200);
    let why = response.header("x-marple-cut-short").unwrap();
    assert!(why.contains("incident") && why.contains("queue"), "{why}");
    let profile = pprof::read(&response.body).unwrap();
    assert!(profile.duration_nanos < 60_000_000_000);
    assert!(profile.string_table.iter().any(|string| string.contains("cut short")));

    let refused = get(&format!("{url}/debug/pprof/profile?seconds=1"));
    assert!(refused.text().contains("(queue)"), "{}", refused.text());
    gauge.set(0.0);
    let (_, manifest) = host.wait_for_closed(1).remove(0);
    assert_eq!(manifest.artifacts.len(), 1, "the incident has its profile: {manifest:?}");
}

#[test]
fn concurrent_snapshots_all_succeed() {
    let (_host, url) = serve(HttpSettings::default());
    let requests: Vec<_> = ["heap", "allocs", "goroutine", "threadcreate", "heap", "allocs"]
        .map(|path| {
            let url = format!("{url}/debug/pprof/{path}");
            thread::spawn(move || get(&url).status)
        })
        .into();
    for request in requests {
        assert_eq!(request.join().unwrap(), 200);
    }
}

#[test]
fn shutdown_does_not_wait_for_capture() {
    let (mut host, url): (Host, String) = serve(HttpSettings::default());
    let request = start_capture(&url, "profile?seconds=250");
    host.end();
    // The response says that the agent has stopped, or the connection is closed.
    assert!(request.join().map_or(true, |response| response.status == 500));
}

#[test]
fn head_request_starts_no_capture() {
    let (_host, url) = serve(HttpSettings::default());
    let head = send_request("HEAD", &format!("{url}/debug/pprof/profile?seconds=200"), &[], "");
    assert_eq!(head.status, 200);
    assert_eq!(head.header("content-disposition"), Some("attachment; filename=\"profile\""));
    assert_eq!(send_request("HEAD", &format!("{url}/monitor/notify"), &[], "").status, 405);
    assert_eq!(get(&format!("{url}/monitor/notify?action=status")).json()["on"], false);
}

#[test]
fn roles_limit_permitted_requests() {
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
            let response =
                send_request(method, &format!("{url}{path}"), &[("Authorization", &bearer)], "");
            let expected = if role >= needs { 200 } else { 403 };
            assert_eq!(response.status, expected, "{method} {path} with {token}");
        }
    }
}

#[test]
fn cross_site_get_cannot_toggle() {
    let (_host, url) = serve(HttpSettings::default());
    for action in ["", "?action=start", "?action=toggle"] {
        let response = get(&format!("{url}/monitor/notify{action}"));
        assert_eq!((response.status, response.header("allow")), (405, Some("POST")), "{action}");
    }
    let from = |site: &str, more: &[(&str, &str)]| {
        let headers = [&[("Sec-Fetch-Site", site)], more].concat();
        send_request("GET", &format!("{url}/monitor/notify"), &headers, "")
    };
    assert_eq!(from("cross-site", &[]).status, 403);
    assert_eq!(from("none", &[("Sec-Purpose", "prefetch")]).status, 405);
    assert_eq!(from("none", &[]).json()["on"], true);
    assert_eq!(from("same-origin", &[]).json()["on"], false);
    assert_eq!(get(&format!("{url}/monitor/notify?action=status")).json()["on"], false);
    assert_eq!(send_request("POST", &format!("{url}/monitor/notify"), &[], "").json()["on"], true);
}
