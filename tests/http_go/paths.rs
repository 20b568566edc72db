//! Every path with every parameter, one test each, compared with a real Go server: status, headers,
//! file names, error messages and sample types.

use marple::internals::codec::pprof;

use crate::service::Service;
use crate::shape;
use crate::support::peers::GoServer;
use crate::support::web::{Response, get, send_request};

/// Requests `path`, which is under `/debug/pprof`, from both servers and compares.
fn assert_same_as_go(path: &str) {
    let (go, ours) = (GoServer::start(), Service::start());
    let theirs = get(&format!("{}/debug/pprof{path}", go.url));
    let response = get(&format!("{}/debug/pprof{path}", ours.url));
    assert_eq!(shape(&response), shape(&theirs), "{path}: {} / {}", response.text(), theirs.text());
    if theirs.status >= 400 {
        assert_eq!(response.text(), theirs.text(), "{path}");
    }
    let file = theirs.header("content-disposition");
    if theirs.status == 200 && file.is_some_and(|file| !file.contains("\"trace\"")) {
        assert_eq!(sample_types(&response), sample_types(&theirs), "{path}");
    }
}

/// Returns the sample types and the period type of a profile.
fn sample_types(answer: &Response) -> Vec<(String, String)> {
    let profile = pprof::read(&answer.body).unwrap();
    let text = |index: i64| profile.string_table[index as usize].clone();
    let types = profile.sample_type.iter().chain(&profile.period_type);
    types.map(|value_type| (text(value_type.r#type), text(value_type.unit))).collect()
}

macro_rules! are_gos {
    ($($name:ident: $path:literal,)+) => {$(
        #[test]
        fn $name() {
            assert_same_as_go($path);
        }
    )+};
}

are_gos! {
    index: "/",
    index_without_its_slash: "",

    profile_seconds: "/profile?seconds=1",
    profile_debug: "/profile?seconds=1&debug=1",

    trace: "/trace",
    trace_seconds: "/trace?seconds=0.1",
    trace_seconds_with_an_exponent: "/trace?seconds=1e-1",
    trace_seconds_that_are_none: "/trace?seconds=x",
    trace_seconds_below_zero: "/trace?seconds=-1",

    heap: "/heap",
    heap_gc: "/heap?gc=1",
    heap_gc_0: "/heap?gc=0",
    heap_gc_that_is_none: "/heap?gc=x",
    heap_debug: "/heap?debug=1",
    heap_debug_2: "/heap?debug=2",
    heap_debug_0: "/heap?debug=0",
    heap_debug_that_is_none: "/heap?debug=x",
    heap_seconds: "/heap?seconds=1",
    heap_seconds_escaped: "/heap?seconds=%31",
    heap_seconds_badly_escaped: "/heap?seconds=%zz",
    heap_seconds_twice: "/heap?seconds=1&seconds=x",
    heap_seconds_debug_0: "/heap?seconds=1&debug=0",
    heap_seconds_debug: "/heap?seconds=1&debug=1",
    heap_seconds_0: "/heap?seconds=0",
    heap_seconds_below_zero: "/heap?seconds=-1",
    heap_seconds_with_a_fraction: "/heap?seconds=1.5",
    heap_seconds_that_are_none: "/heap?seconds=x",
    heap_seconds_empty: "/heap?seconds=",
    heap_unknown: "/heap?unknown=1",

    allocs: "/allocs",
    allocs_debug: "/allocs?debug=1",
    allocs_gc: "/allocs?gc=1",
    allocs_seconds: "/allocs?seconds=1",
    allocs_seconds_debug: "/allocs?seconds=1&debug=1",
    allocs_seconds_that_are_none: "/allocs?seconds=x",

    goroutine: "/goroutine",
    goroutine_debug: "/goroutine?debug=1",
    goroutine_debug_2: "/goroutine?debug=2",
    goroutine_seconds: "/goroutine?seconds=1",
    goroutine_seconds_debug: "/goroutine?seconds=1&debug=1",
    goroutine_seconds_that_are_none: "/goroutine?seconds=x",

    threadcreate: "/threadcreate",
    threadcreate_debug: "/threadcreate?debug=1",
    threadcreate_seconds: "/threadcreate?seconds=1",
    threadcreate_seconds_debug: "/threadcreate?seconds=1&debug=1",

    block: "/block",
    block_debug: "/block?debug=1",
    block_seconds: "/block?seconds=1",
    block_seconds_0: "/block?seconds=0",
    block_seconds_debug: "/block?seconds=1&debug=1",
    mutex: "/mutex",
    mutex_debug: "/mutex?debug=1",
    mutex_seconds: "/mutex?seconds=1",
    mutex_seconds_debug: "/mutex?seconds=1&debug=1",

    cmdline: "/cmdline",
    cmdline_debug: "/cmdline?debug=1",
    symbol: "/symbol",
    symbol_address: "/symbol?0x1",

    unknown: "/nosuch",
    unknown_debug: "/nosuch?debug=1",
    unknown_seconds: "/nosuch?seconds=1",
    unknown_by_its_case: "/Heap",
    unknown_by_a_space: "/heap%20",
    delta_heap: "/delta_heap",
    delta_block: "/delta_block",
    delta_mutex: "/delta_mutex",
}

#[test]
fn post_is_rejected_where_go_rejects_it() {
    let (go, ours) = (GoServer::start(), Service::start());
    for path in ["heap", "profile", "trace", "goroutine", "nosuch"] {
        let [theirs, answer] = [&go.url, &ours.url]
            .map(|url| send_request("POST", &format!("{url}/debug/pprof/{path}"), &[], ""));
        assert_eq!((theirs.status, answer.status), (405, 405), "{path}");
        assert_eq!(theirs.header("allow"), answer.header("allow"), "{path}");
    }
}

/// Reads the end of each capture from `/status` and disconnects, instead of waiting 30 s.
#[test]
fn profile_defaults_to_thirty_seconds() {
    use std::io::Write;

    let ours = Service::start();
    for query in ["", "?seconds=0", "?seconds=x", "?seconds=-5"] {
        let mut client = crate::support::web::connect(&ours.url);
        let head = "Host: localhost\r\nConnection: close";
        write!(client, "GET /debug/pprof/profile{query} HTTP/1.1\r\n{head}\r\n\r\n").unwrap();
        let requested_at = jiff::Timestamp::now();
        let status = || get(&format!("{}/status", ours.url)).json();
        let until = crate::support::host::wait_for("the capture to run", || {
            status()["on_demand_captures"][0]["until"].as_str()?.parse::<jiff::Timestamp>().ok()
        });
        let seconds = until.duration_since(requested_at).as_secs();
        assert!((29..60).contains(&seconds), "{query}: {seconds}");
        drop(client);
        crate::support::host::wait_for("the capture to be given up", || {
            (status()["on_demand_captures"] == serde_json::json!([])).then_some(())
        });
    }
}
