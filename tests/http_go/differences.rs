//! Tests of every difference listed in the header of `marple::http`, one each, compared with a real
//! Go server. Tests that need special settings are elsewhere: disabled and exhausted captures in
//! `http_budget.rs`, caps and captures ended early in `http_captures.rs`.

use std::thread;

use marple::internals::codec::pprof;
use serde_json::Value;

use crate::service::Service;
use crate::shape;
use crate::support::host::wait_for;
use crate::support::peers::{self, GoServer};
use crate::support::web::{Response, get, send_request};

/// Returns the responses of Go and of marple.
fn request_both(method: &str, path: &str, body: &str) -> [Response; 2] {
    let (go, ours) = (GoServer::start(), Service::start());
    [&go.url, &ours.url]
        .map(|url| send_request(method, &format!("{url}/debug/pprof/{path}"), &[], body))
}

fn status(service: &Service) -> Value {
    get(&format!("{}/status", service.url)).json()
}

#[test]
fn response_has_content_length_and_is_not_chunked() {
    // Go sends bodies below 2 KiB with their length; a trace is never that small.
    let [theirs, answer] = request_both("GET", "trace?seconds=0.5", "");
    assert_eq!(theirs.header("transfer-encoding"), Some("chunked"));
    let length = answer.body.len().to_string();
    assert_eq!(answer.header("content-length"), Some(length.as_str()));
    assert_eq!(answer.header("transfer-encoding"), None);
}

#[test]
fn trace_is_readable_by_perfetto() {
    let [theirs, answer] = request_both("GET", "trace?seconds=0.5", "");
    assert!(theirs.body.starts_with(b"go 1."));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace");
    std::fs::write(&file, answer.body).unwrap();
    let rows = peers::perfetto_query(&file, &["select count(*) from counter"]);
    assert_ne!(rows[0][0][0], "0", "the vitals are in it");
}

#[test]
fn seconds_beyond_cap_are_rejected() {
    let ours = Service::start();
    for path in
        ["profile", "trace", "heap", "allocs", "goroutine", "threadcreate", "block", "mutex"]
    {
        let response = get(&ours.pprof_url(&format!("{path}?seconds=86400")));
        assert_eq!((response.status, response.header("x-go-pprof")), (400, Some("1")), "{path}");
        let text = response.text();
        assert!(text.contains("exceeds 300 (http.max_duration)"), "{path}: {text}");
    }
    assert_eq!(status(&ours)["on_demand_captures"], serde_json::json!([]));
}

#[test]
fn overflowing_seconds_are_rejected() {
    let [theirs, answer] = request_both("GET", "profile?seconds=9223372036854775807", "");
    assert_eq!((theirs.status, answer.status), (200, 400), "{}", answer.text());
}

#[test]
fn infinite_seconds_are_rejected() {
    let [theirs, answer] = request_both("GET", "trace?seconds=inf", "");
    assert_eq!((theirs.status, answer.status), (200, 400), "{}", answer.text());
}

#[test]
fn block_and_mutex_respond_without_waiting() {
    let ours = Service::start();
    for path in ["block", "mutex"] {
        // Longer than this client's timeout.
        let response = get(&ours.pprof_url(&format!("{path}?seconds=290")));
        assert_eq!(response.status, 200);
        assert!(pprof::read(&response.body).unwrap().sample.is_empty());
    }
}

#[test]
fn goroutine_lists_threads() {
    let [theirs, answer] = request_both("GET", "goroutine?debug=1", "");
    assert!(theirs.text().starts_with("goroutine profile: total "));
    let text = answer.text();
    assert!(text.contains("burner") && text.contains("burn_briefly"), "{text}");
}

#[test]
fn goroutine_debug_2_includes_tasks() {
    let [theirs, answer] = request_both("GET", "goroutine?debug=2", "");
    assert!(theirs.text().starts_with("goroutine "), "{}", theirs.text());
    let text = answer.text();
    assert!(text.contains("burn_briefly") && text.contains("task"), "{text}");
}

#[test]
fn threadcreate_is_count_without_stacks() {
    let [_, answer] = request_both("GET", "threadcreate", "");
    let profile = pprof::read(&answer.body).unwrap();
    assert_eq!(profile.sample.len(), 1);
    assert!(profile.sample[0].value[0] > 1 && profile.mapping.is_empty(), "{profile:?}");
}

#[test]
fn busy_response_names_client_and_end_time() {
    let (go, ours) = (GoServer::start(), Service::start());
    let ask_twice = |url: &str, begun: &dyn Fn() -> Option<()>| {
        let first = format!("{url}/debug/pprof/profile?seconds=4");
        let first = thread::spawn(move || get(&first).status);
        wait_for("the first capture", begun);
        let second = get(&format!("{url}/debug/pprof/profile?seconds=1"));
        assert_eq!(first.join().unwrap(), 200);
        second
    };
    let runs = || status(&ours)["on_demand_captures"][0]["until"].is_string().then_some(());
    let response = ask_twice(&ours.url, &runs);
    // Go does not report that a capture runs, so the test sends two requests at once: one is
    // refused.
    let url = format!("{}/debug/pprof/profile?seconds=1", go.url);
    let theirs = wait_for("the refusal of Go", || {
        let other = thread::spawn({
            let url = url.clone();
            move || get(&url)
        });
        let responses = [get(&url), other.join().unwrap()];
        responses.into_iter().find(|response| response.status == 500)
    });
    assert_eq!(shape(&response), shape(&theirs));
    assert_eq!(theirs.text(), "Could not enable CPU profiling: cpu profiling already in use\n");
    let text = response.text();
    assert!(text.starts_with("Could not enable CPU profiling: in use by 127.0.0.1:"), "{text}");
    assert!(text.contains(" until 2") && response.header("retry-after").is_some(), "{text}");
    assert_eq!(theirs.header("retry-after"), None);
}

#[test]
fn head_request_starts_no_capture() {
    let (go, ours) = (GoServer::start(), Service::start());
    for path in ["heap", "profile?seconds=1", "trace?seconds=0.1", "goroutine"] {
        let [theirs, answer] = [&go.url, &ours.url]
            .map(|url| send_request("HEAD", &format!("{url}/debug/pprof/{path}"), &[], ""));
        assert_eq!(shape(&theirs), shape(&answer), "{path}");
    }
    assert_eq!(status(&ours)["budget"]["on_demand_captures_24h"], 0);
}

#[test]
fn symbol_accepts_post() {
    let [theirs, answer] = request_both("POST", "symbol", "0x1");
    assert_eq!((theirs.status, answer.status), (405, 200));
}

#[test]
fn heap_debug_has_process_vitals_and_unscaled_sampling_rate() {
    let (go, ours) = (GoServer::start(), Service::start());
    let theirs = get(&format!("{}/debug/pprof/heap?debug=1", go.url));
    assert!(theirs.text().contains("# runtime.MemStats"));
    // CPU usage is measured between two ticks, so the first has none.
    let text = wait_for("the CPU, which a second tick tells", || {
        let text = get(&ours.pprof_url("heap?debug=1")).text();
        text.contains("# cpu = ").then_some(text)
    });
    let first = text.lines().next().unwrap();
    assert!(first.starts_with("heap profile: ") && first.ends_with("@ heapprofile"), "{first}");
    for total in ["# memory.rss = ", "# threads = "] {
        assert!(text.contains(total), "{total}: {text}");
    }
    assert!(text.contains("allocate_64_mib"), "{text}");
}

#[test]
fn gc_parameter_returns_header() {
    let ours = Service::start();
    let gc_header =
        |path: &str| get(&ours.pprof_url(path)).header("x-marple-gc").map(str::to_owned);
    assert_eq!(
        gc_header("heap?gc=1").as_deref(),
        Some("none; freed memory leaves the profile at once")
    );
    assert_eq!(gc_header("heap?gc=1&debug=1"), gc_header("heap?gc=1"));
    assert_eq!((gc_header("heap"), gc_header("heap?gc=0")), (None, None));
}

#[test]
fn goroutineleak_is_not_found() {
    let [theirs, answer] = request_both("GET", "goroutineleak", "");
    assert_eq!((theirs.status, answer.status), (200, 404));
}

#[test]
fn hz_and_mode_parameters_are_supported() {
    let ours = Service::start();
    let period = |query: &str| {
        let response = get(&ours.pprof_url(&format!("profile?seconds=1&{query}")));
        pprof::read(&response.body).unwrap().period
    };
    assert_eq!(period("hz=250"), 4_000_000);
    assert_eq!(period("mode=wall&hz=50"), 20_000_000);
    for (path, words) in [
        ("profile?hz=1001", "must be 1 to 1000"),
        ("profile?mode=x", r#"must be "cpu" or "wall""#),
        ("heap?seconds=1&rate=4095", "must be 4096 bytes or more"),
        ("heap?rate=4096", r#"needs "seconds""#),
    ] {
        let response = get(&ours.pprof_url(path));
        assert_eq!((response.status, response.header("x-go-pprof")), (400, Some("1")), "{path}");
        assert!(response.text().contains(words), "{path}: {}", response.text());
    }
}

#[test]
fn rate_parameter_is_supported() {
    let ours = Service::start();
    let rate = marple::internals::heap::rate();
    let url = ours.pprof_url("heap?seconds=2&rate=65536");
    let request = thread::spawn(move || get(&url));
    wait_for("the rate", || (marple::internals::heap::rate().get() == 65536).then_some(()));
    assert_eq!(request.join().unwrap().status, 200);
    assert_eq!(marple::internals::heap::rate(), rate);
}
