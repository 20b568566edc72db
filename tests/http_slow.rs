//! Clients that take what they asked for slowly or never, and what a capture for a client may take of the
//! service's cores.
#![cfg(all(feature = "cpu", feature = "heap", feature = "trace"))]
#![cfg(target_os = "linux")]

mod host;
mod web;

use std::alloc::System;
use std::fs;
use std::io::Write;

use axum::body::Body;
use axum::http::Request;
use host::{Host, PATIENCE, settings, wait_for};
use marple::config::HttpSettings;
use marple::http;
use tower_service::Service;
use web::{get, serve};

#[global_allocator]
static ALLOCATOR: marple::Allocator<System> = marple::Allocator::new(System);

#[test]
fn an_answer_that_nobody_takes_holds_no_engine() {
    let host = Host::start(settings());
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let mut routes = http::router(&host.handle());
    let mut kept = Vec::new();
    for path in ["profile?seconds=1", "trace?seconds=0.1", "heap?seconds=1", "heap", "goroutine"] {
        for time in ["first", "second"] {
            let request = Request::get(format!("/debug/pprof/{path}")).body(Body::empty()).unwrap();
            let answer = runtime.block_on(routes.call(request)).unwrap();
            assert_eq!(answer.status(), 200, "{path} for the {time} time");
            // Its head is there, and not a byte of its body is taken.
            kept.push(answer);
        }
    }
    assert_eq!(host.handle().status().wait(PATIENCE).unwrap().streams, []);
    drop(kept);
}

#[test]
fn a_client_that_takes_nothing_keeps_nobody_from_the_profiler() {
    let (host, url) = serve(HttpSettings::default());
    let taken = || host.handle().status().wait(PATIENCE).unwrap().counters.streams;
    let mut clients: Vec<_> = (0..3).map(|_| web::connect(&url)).collect();
    for (before, client) in (0..).zip(&mut clients) {
        let head = "Host: localhost\r\n\r\n";
        write!(client, "GET /debug/pprof/profile?seconds=1 HTTP/1.1\r\n{head}").unwrap();
        wait_for("its capture", || (taken() > before).then_some(()));
    }
    assert_eq!(get(&format!("{url}/debug/pprof/profile?seconds=1")).status, 200);
    for client in &mut clients {
        assert_eq!(web::status_of(client), Some(200));
    }
}

/// Nice values of threads by their names; the process' own is the main thread's.
fn nice_of(name: &str) -> Option<i32> {
    let tasks = fs::read_dir("/proc/self/task").unwrap().map(|task| task.unwrap().path());
    let stat = |task: std::path::PathBuf| fs::read_to_string(task.join("stat")).ok();
    tasks.filter_map(stat).find_map(|stat| {
        let (before, rest) = stat.rsplit_once(") ")?;
        let named = before.split_once('(')?.1 == name;
        // The nineteenth field; the state, which is first here, is the third.
        named.then(|| rest.split(' ').nth(16)?.parse().ok()).flatten()
    })
}

#[test]
fn what_is_encoded_for_clients_comes_after_the_service() {
    let (_host, url) = serve(HttpSettings::default());
    assert_eq!(nice_of("marple-encode"), None, "nobody has asked yet");
    assert_eq!(get(&format!("{url}/debug/pprof/profile?seconds=1")).status, 200);
    let ordinary = nice_of("marple-capture").unwrap();
    assert_eq!(nice_of("marple-encode"), Some((ordinary + 10).min(19)));
    assert_eq!(nice_of("marple"), Some(ordinary), "it looks at the vitals and answers");
}

#[test]
fn the_thread_that_encodes_ends_with_the_agent() {
    let (mut host, url) = serve(HttpSettings::default());
    assert_eq!(get(&format!("{url}/debug/pprof/trace?seconds=0.1")).status, 200);
    assert!(nice_of("marple-encode").is_some());
    host.end();
    assert_eq!(nice_of("marple-encode"), None);
}
