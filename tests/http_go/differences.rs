//! Tests of every difference listed in the header of `marple::http`, one each, compared with a real
//! Go server. Tests that need special settings are elsewhere: disabled and exhausted captures in
//! `http_budget.rs`, caps and captures ended early in `http_captures.rs`.

use std::thread;

use marple::codec::pprof;
use serde_json::Value;

use crate::host::wait_for;
use crate::peers::{self, GoServer};
use crate::service::Service;
use crate::shape;
use crate::web::{Answer, ask, get};

/// Returns the responses of Go and of marple.
fn both(method: &str, path: &str, body: &str) -> [Answer; 2] {
    let (go, ours) = (GoServer::start(), Service::start());
    [&go.url, &ours.url].map(|url| ask(method, &format!("{url}/debug/pprof/{path}"), &[], body))
}

fn status(service: &Service) -> Value {
    get(&format!("{}/status", service.url)).json()
}

#[test]
fn it_is_sent_whole_and_not_in_chunks() {
    // Go sends bodies below 2 KiB with their length; a trace is never that small.
    let [theirs, answer] = both("GET", "trace?seconds=0.5", "");
    assert_eq!(theirs.header("transfer-encoding"), Some("chunked"));
    let length = answer.body.len().to_string();
    assert_eq!(answer.header("content-length"), Some(length.as_str()));
    assert_eq!(answer.header("transfer-encoding"), None);
}

#[test]
fn a_trace_is_one_that_perfetto_reads() {
    let [theirs, answer] = both("GET", "trace?seconds=0.5", "");
    assert!(theirs.body.starts_with(b"go 1."));
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace");
    std::fs::write(&file, answer.body).unwrap();
    let rows = peers::perfetto_query(&file, &["select count(*) from counter"]);
    assert_ne!(rows[0][0][0], "0", "the vitals are in it");
}

#[test]
fn seconds_beyond_the_cap_are_refused() {
    let ours = Service::start();
    for path in
        ["profile", "trace", "heap", "allocs", "goroutine", "threadcreate", "block", "mutex"]
    {
        let answer = get(&ours.at(&format!("{path}?seconds=86400")));
        assert_eq!((answer.status, answer.header("x-go-pprof")), (400, Some("1")), "{path}");
        let text = answer.text();
        assert!(text.contains("beyond the cap of 300 (http.max_duration)"), "{path}: {text}");
    }
    assert_eq!(status(&ours)["streams"], serde_json::json!([]));
}

#[test]
fn seconds_that_overflow_are_refused() {
    let [theirs, answer] = both("GET", "profile?seconds=9223372036854775807", "");
    assert_eq!((theirs.status, answer.status), (200, 400), "{}", answer.text());
}

#[test]
fn seconds_without_end_are_refused() {
    let [theirs, answer] = both("GET", "trace?seconds=inf", "");
    assert_eq!((theirs.status, answer.status), (200, 400), "{}", answer.text());
}

#[test]
fn what_is_not_recorded_is_not_waited_for() {
    let ours = Service::start();
    for path in ["block", "mutex"] {
        // Longer than this client's timeout.
        let answer = get(&ours.at(&format!("{path}?seconds=290")));
        assert_eq!(answer.status, 200);
        assert!(pprof::read(&answer.body).unwrap().sample.is_empty());
    }
}

#[test]
fn goroutine_is_the_threads() {
    let [theirs, answer] = both("GET", "goroutine?debug=1", "");
    assert!(theirs.text().starts_with("goroutine profile: total "));
    let text = answer.text();
    assert!(text.contains("burner") && text.contains("burn_a_little"), "{text}");
}

#[test]
fn goroutine_debug_2_has_the_tasks_too() {
    let [theirs, answer] = both("GET", "goroutine?debug=2", "");
    assert!(theirs.text().starts_with("goroutine "), "{}", theirs.text());
    let text = answer.text();
    assert!(text.contains("burn_a_little") && text.contains("task"), "{text}");
}

#[test]
fn threadcreate_is_a_number_without_stacks() {
    let [_, answer] = both("GET", "threadcreate", "");
    let profile = pprof::read(&answer.body).unwrap();
    assert_eq!(profile.sample.len(), 1);
    assert!(profile.sample[0].value[0] > 1 && profile.mapping.is_empty(), "{profile:?}");
}

#[test]
fn who_is_busy_and_until_when() {
    let (go, ours) = (GoServer::start(), Service::start());
    let ask_twice = |url: &str, begun: &dyn Fn() -> Option<()>| {
        let first = format!("{url}/debug/pprof/profile?seconds=4");
        let first = thread::spawn(move || get(&first).status);
        wait_for("the first capture", begun);
        let second = get(&format!("{url}/debug/pprof/profile?seconds=1"));
        assert_eq!(first.join().unwrap(), 200);
        second
    };
    let runs = || status(&ours)["streams"][0]["until"].is_string().then_some(());
    let answer = ask_twice(&ours.url, &runs);
    // Go does not report that a capture runs, so the test sends two requests at once: one is
    // refused.
    let url = format!("{}/debug/pprof/profile?seconds=1", go.url);
    let theirs = wait_for("the refusal of Go", || {
        let other = thread::spawn({
            let url = url.clone();
            move || get(&url)
        });
        let answers = [get(&url), other.join().unwrap()];
        answers.into_iter().find(|answer| answer.status == 500)
    });
    assert_eq!(shape(&answer), shape(&theirs));
    assert_eq!(theirs.text(), "Could not enable CPU profiling: cpu profiling already in use\n");
    let text = answer.text();
    assert!(text.starts_with("Could not enable CPU profiling: in use by 127.0.0.1:"), "{text}");
    assert!(text.contains(" until 2") && answer.header("retry-after").is_some(), "{text}");
    assert_eq!(theirs.header("retry-after"), None);
}

#[test]
fn a_head_takes_no_capture() {
    let (go, ours) = (GoServer::start(), Service::start());
    for path in ["heap", "profile?seconds=1", "trace?seconds=0.1", "goroutine"] {
        let [theirs, answer] = [&go.url, &ours.url]
            .map(|url| ask("HEAD", &format!("{url}/debug/pprof/{path}"), &[], ""));
        assert_eq!(shape(&theirs), shape(&answer), "{path}");
    }
    assert_eq!(status(&ours)["budget"]["streams_in_a_day"], 0);
}

#[test]
fn symbol_takes_a_post() {
    let [theirs, answer] = both("POST", "symbol", "0x1");
    assert_eq!((theirs.status, answer.status), (405, 200));
}

#[test]
fn heap_debug_has_the_process_vitals_and_is_not_to_be_scaled() {
    let (go, ours) = (GoServer::start(), Service::start());
    let theirs = get(&format!("{}/debug/pprof/heap?debug=1", go.url));
    assert!(theirs.text().contains("# runtime.MemStats"));
    // CPU usage is measured between two ticks, so the first has none.
    let text = wait_for("the CPU, which a second tick tells", || {
        let text = get(&ours.at("heap?debug=1")).text();
        text.contains("# cpu = ").then_some(text)
    });
    let first = text.lines().next().unwrap();
    assert!(first.starts_with("heap profile: ") && first.ends_with("@ heapprofile"), "{first}");
    for total in ["# memory.rss = ", "# threads = "] {
        assert!(text.contains(total), "{total}: {text}");
    }
    assert!(text.contains("keep_sixty_four_mebibytes"), "{text}");
}

#[test]
fn gc_is_answered_with_a_header() {
    let ours = Service::start();
    let told = |path: &str| get(&ours.at(path)).header("x-marple-gc").map(str::to_owned);
    assert_eq!(told("heap?gc=1").as_deref(), Some("none; freed memory leaves the profile at once"));
    assert_eq!(told("heap?gc=1&debug=1"), told("heap?gc=1"));
    assert_eq!((told("heap"), told("heap?gc=0")), (None, None));
}

#[test]
fn there_is_no_goroutineleak() {
    let [theirs, answer] = both("GET", "goroutineleak", "");
    assert_eq!((theirs.status, answer.status), (200, 404));
}

#[test]
fn hz_and_mode_are_ours() {
    let ours = Service::start();
    let period = |query: &str| {
        let answer = get(&ours.at(&format!("profile?seconds=1&{query}")));
        pprof::read(&answer.body).unwrap().period
    };
    assert_eq!(period("hz=250"), 4_000_000);
    assert_eq!(period("mode=wall&hz=50"), 20_000_000);
    for (path, words) in [
        ("profile?hz=1001", "must be 1 to 1000"),
        ("profile?mode=x", r#"must be "cpu" or "wall""#),
        ("heap?seconds=1&rate=4095", "must be 4096 bytes or more"),
        ("heap?rate=4096", r#"needs "seconds""#),
    ] {
        let answer = get(&ours.at(path));
        assert_eq!((answer.status, answer.header("x-go-pprof")), (400, Some("1")), "{path}");
        assert!(answer.text().contains(words), "{path}: {}", answer.text());
    }
}

#[test]
fn rate_is_ours() {
    let ours = Service::start();
    let rate = marple::heap::rate();
    let url = ours.at("heap?seconds=2&rate=65536");
    let asking = thread::spawn(move || get(&url));
    wait_for("the rate", || (marple::heap::rate().get() == 65536).then_some(()));
    assert_eq!(asking.join().unwrap().status, 200);
    assert_eq!(marple::heap::rate(), rate);
}
