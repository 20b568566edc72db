//! Tests of clients that read their response slowly or never, and of the CPU that a capture for a
//! client may use.

use std::fs;
use std::hint::black_box;
use std::io::Write;

use axum::body::Body;
use axum::http::Request;
use marple::config::{HeapSettings, HttpSettings};
use marple::internals::base::Bytes;
use marple::{Settings, http};
use tower_service::Service;

use crate::support::host::{Host, WAIT_TIMEOUT, settings, wait_for};
use crate::support::web::{self, get, serve};

#[test]
fn unread_response_does_not_hold_engine() {
    let host = Host::start(settings());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut routes = http::router(&host.handle());
    let mut kept = Vec::new();
    for path in ["profile?seconds=1", "trace?seconds=0.1", "heap?seconds=1", "heap", "goroutine"] {
        for time in ["first", "second"] {
            let request = Request::get(format!("/debug/pprof/{path}")).body(Body::empty()).unwrap();
            let response = runtime.block_on(routes.call(request)).unwrap();
            assert_eq!(response.status(), 200, "{path} for the {time} time");
            // The head is received, and no byte of the body is read.
            kept.push(response);
        }
    }
    assert_eq!(host.handle().status().wait(WAIT_TIMEOUT).unwrap().on_demand_captures, []);
    drop(kept);
}

/// Allocates a block on each of the `2^left` paths through this function and [`odd`], none of them
/// touched.
#[inline(never)]
fn allocate_even(levels: u32, blocks: &mut Vec<Vec<u8>>) {
    match levels {
        0 => blocks.push(black_box(Vec::with_capacity(32 << 10))),
        left => (allocate_even(left - 1, blocks), allocate_odd(left - 1, blocks)).0,
    }
    black_box(());
}

#[inline(never)]
fn allocate_odd(levels: u32, blocks: &mut Vec<Vec<u8>>) {
    match levels {
        0 => blocks.push(black_box(Vec::with_capacity(32 << 10))),
        left => (allocate_odd(left - 1, blocks), allocate_even(left - 1, blocks)).0,
    }
    black_box(());
}

#[test]
fn captures_are_rejected_while_unread_responses_exceed_limit() {
    let heap = HeapSettings { rate: Bytes::kib(4), ..HeapSettings::default() };
    let host = Host::start(Settings { heap, ..settings() });
    let mut blocks = Vec::new();
    allocate_even(12, &mut blocks);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut routes = http::router(&host.handle());
    let mut ask = || {
        let request = Request::get("/debug/pprof/heap?debug=1").body(Body::empty()).unwrap();
        runtime.block_on(routes.call(request)).unwrap()
    };
    let (mut kept, mut bytes) = (Vec::new(), 0);
    let refused = loop {
        let response = ask();
        if response.status() != 200 {
            break response;
        }
        let length = response.headers()["content-length"].to_str().unwrap();
        bytes += length.parse::<u64>().unwrap();
        assert!(bytes <= 64 << 20, "{bytes} bytes wait");
        kept.push(response);
    };
    assert_eq!(refused.status(), 503);
    let response_bytes = bytes / kept.len() as u64;
    assert!(
        kept.len() > 2 && bytes + 2 * response_bytes > 64 << 20,
        "{} answers, {bytes} bytes",
        kept.len()
    );
    assert_eq!(ask().status(), 503);
    drop(kept.pop());
    assert_eq!(ask().status(), 200, "an answer was taken, or its client is gone");
    drop(blocks);
}

#[test]
fn non_reading_client_does_not_block_profiler() {
    let (host, url) = serve(HttpSettings::default());
    let capture_count =
        || host.handle().status().wait(WAIT_TIMEOUT).unwrap().counters.on_demand_captures;
    let mut clients: Vec<_> = (0..3).map(|_| web::connect(&url)).collect();
    for (before, client) in (0..).zip(&mut clients) {
        let head = "Host: localhost\r\n\r\n";
        write!(client, "GET /debug/pprof/profile?seconds=1 HTTP/1.1\r\n{head}").unwrap();
        wait_for("its capture", || (capture_count() > before).then_some(()));
    }
    assert_eq!(get(&format!("{url}/debug/pprof/profile?seconds=1")).status, 200);
    for client in &mut clients {
        assert_eq!(web::read_status(client), Some(200));
    }
}

/// Returns the nice value of the thread with this name.
fn thread_nice(name: &str) -> Option<i32> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let stat = |task: std::path::PathBuf| fs::read_to_string(task.join("stat")).ok();
    tasks.filter_map(stat).find_map(|stat| {
        let (before, rest) = stat.rsplit_once(") ")?;
        let name_matches = before.split_once('(')?.1 == name;
        // Field 19 of `stat` is the nice value; `rest` starts at field 3, the state.
        name_matches.then(|| rest.split(' ').nth(16)?.parse().ok()).flatten()
    })
}

#[test]
fn response_encoding_runs_at_low_priority() {
    let (_host, url) = serve(HttpSettings::default());
    assert_eq!(thread_nice("marple-encode"), None, "nobody has asked yet");
    assert_eq!(get(&format!("{url}/debug/pprof/profile?seconds=1")).status, 200);
    let ordinary = thread_nice("marple-capture").unwrap();
    assert_eq!(thread_nice("marple-encode"), Some((ordinary + 10).min(19)));
    assert_eq!(thread_nice("marple"), Some(ordinary), "it looks at the vitals and answers");
}

#[test]
fn encoder_thread_ends_with_agent() {
    let (mut host, url) = serve(HttpSettings::default());
    assert_eq!(get(&format!("{url}/debug/pprof/trace?seconds=0.1")).status, 200);
    assert!(thread_nice("marple-encode").is_some());
    host.end();
    assert_eq!(thread_nice("marple-encode"), None);
}
