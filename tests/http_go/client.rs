//! Go's own client, `go tool pprof`, against marple: one test for each path and flag.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use axum::{Router, routing};
use marple::internals::codec::pprof;
use prost::Message;
use rustix::process::{Pid, Signal};

use crate::service::{Service, burn_briefly, grow_during_request};
use crate::support::host::wait_for;
use crate::support::peers;
use crate::support::web::{self, get, send_request};

/// Runs `go tool pprof ARGS URL`, as a user on another machine would.
fn fetch(args: &[&str], url: &str) -> String {
    peers::go_pprof(&[args, &[url]].concat())
}

fn assert_contains(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word} in\n{text}");
    }
}

#[test]
fn profile_seconds() {
    let service = Service::start();
    let top = fetch(&["-top", "-seconds=2"], &service.pprof_url("profile"));
    assert_contains(&top, &["Type: cpu", "Duration: 2", "burn_briefly"]);
}

#[test]
fn profile_hz() {
    let service = Service::start();
    let raw = fetch(&["-raw"], &service.pprof_url("profile?seconds=1&hz=250"));
    assert_contains(&raw, &["Period: 4000000"]);
}

#[test]
fn profile_mode() {
    let service = Service::start();
    let raw = fetch(&["-raw"], &service.pprof_url("profile?seconds=1&mode=wall"));
    assert_contains(&raw, &["burner", "state:"]);
}

#[test]
fn heap() {
    let service = Service::start();
    let top = fetch(&["-top"], &service.pprof_url("heap"));
    assert_contains(&top, &["Type: inuse_space", "allocate_64_mib"]);
}

#[test]
fn heap_gc() {
    let service = Service::start();
    let top = fetch(&["-top"], &service.pprof_url("heap?gc=1"));
    assert_contains(&top, &["Type: inuse_space", "allocate_64_mib"]);
}

#[test]
fn heap_sample_index() {
    let service = Service::start();
    for index in ["alloc_objects", "alloc_space", "inuse_objects", "inuse_space"] {
        let top = fetch(&["-top", &format!("-sample_index={index}")], &service.pprof_url("heap"));
        assert_contains(&top, &[&format!("Type: {index}"), "allocate_64_mib"]);
    }
}

#[test]
fn heap_seconds_is_delta_profile() {
    let service = Service::start();
    assert_only_growth(&fetch_while_heap_grows(
        &["-top", "-seconds=1"],
        &service.pprof_url("heap"),
    ));
}

#[test]
fn heap_rate() {
    let service = Service::start();
    assert_only_growth(&fetch_while_heap_grows(
        &["-top"],
        &service.pprof_url("heap?seconds=1&rate=65536"),
    ));
}

#[test]
fn heap_debug_is_not_scaled_again() {
    let service = Service::start();
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("heap.txt");
    let response = get(&service.pprof_url("heap?debug=1"));
    fs::write(&text, &response.body).unwrap();
    let top = peers::go_pprof(&["-top", "-unit=b", text.to_str().unwrap()]);
    let first = response.text().lines().next().unwrap().to_owned();
    let in_use = first.split([':', '[']).nth(2).unwrap().trim().to_owned();
    assert_contains(&top, &[&format!("of {in_use}B total")]);
}

#[test]
fn heap_base_from_file() {
    let service = Service::start();
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    fs::write(&base, get(&service.pprof_url("heap")).body).unwrap();
    let more: Vec<_> = (0..32).map(|_| grow_during_request()).collect();
    let top = fetch(&["-top", &format!("-base={}", base.display())], &service.pprof_url("heap"));
    drop(more);
    assert_only_growth(&top);
}

#[test]
fn heap_diff_base_from_service() {
    let service = Service::start();
    let base = format!("-diff_base={}", service.pprof_url("heap"));
    let top = fetch(&["-top", "-sample_index=inuse_space", &base], &service.pprof_url("heap"));
    assert_contains(&top, &["Type: inuse_space"]);
    assert!(!top.contains("allocate_64_mib"), "{top}");
}

#[test]
fn allocs() {
    let service = Service::start();
    assert_contains(
        &fetch(&["-top"], &service.pprof_url("allocs")),
        &["Type: alloc_space", "allocate_64_mib"],
    );
}

#[test]
fn allocs_seconds() {
    let service = Service::start();
    assert_only_growth(&fetch_while_heap_grows(
        &["-top", "-seconds=1"],
        &service.pprof_url("allocs"),
    ));
}

#[test]
fn goroutine() {
    let service = Service::start();
    let raw = fetch(&["-raw"], &service.pprof_url("goroutine"));
    assert_contains(&raw, &["goroutine/count", "thread:[burner]"]);
    assert_contains(&fetch(&["-top", "-cum"], &service.pprof_url("goroutine")), &["burn_briefly"]);
}

#[test]
fn goroutine_seconds() {
    let service = Service::start();
    assert_contains(
        &fetch(&["-raw"], &service.pprof_url("goroutine?seconds=1")),
        &["goroutine/count"],
    );
}

#[test]
fn threadcreate() {
    let service = Service::start();
    assert_contains(&fetch(&["-raw"], &service.pprof_url("threadcreate")), &["threadcreate/count"]);
}

#[test]
fn block() {
    let service = Service::start();
    assert_contains(
        &fetch(&["-raw"], &service.pprof_url("block")),
        &["contentions/count", "delay/nanoseconds"],
    );
}

#[test]
fn mutex() {
    let service = Service::start();
    assert_contains(
        &fetch(&["-raw"], &service.pprof_url("mutex")),
        &["contentions/count", "delay/nanoseconds"],
    );
}

/// The client sends a POST to `/debug/pprof/symbol` by itself if a profile has addresses without
/// symbols. marple's profiles have symbols, so this test strips them in transit.
#[test]
fn symbol_post_by_pprof_client() {
    let service = Service::start();
    let mut profile = pprof::read(&get(&service.pprof_url("heap")).body).unwrap();
    profile.function.clear();
    profile.location.iter_mut().for_each(|location| location.line.clear());
    profile.mapping.iter_mut().for_each(|mapping| mapping.has_functions = false);
    let (stripped, symbol) = (profile.encode_to_vec(), service.pprof_url("symbol"));
    let look_up = move |body: String| {
        let symbol = symbol.clone();
        async move {
            let symbol_request = move || send_request("POST", &symbol, &[], &body).body;
            tokio::task::spawn_blocking(symbol_request).await.unwrap()
        }
    };
    let routes = Router::new()
        .route("/debug/pprof/heap", routing::get(move || async { stripped }))
        .route("/debug/pprof/symbol", routing::post(look_up));
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().unwrap();
    let listener = runtime.block_on(tokio::net::TcpListener::bind("127.0.0.1:0")).unwrap();
    let url = format!("http://{}/debug/pprof/heap", listener.local_addr().unwrap());
    runtime.spawn(async { axum::serve(listener, routes).await });
    let bare = fetch(&["-top"], &url);
    assert!(!bare.contains("allocate_64_mib"), "{bare}");
    let top = fetch(&["-symbolize=remote", "-top"], &url);
    assert_contains(&top, &["allocate_64_mib"]);
    runtime.shutdown_background();
}

#[test]
fn symbol_by_query_and_body() {
    let service = Service::start();
    let address = burn_briefly as *const () as usize;
    let addresses = format!("{address:#x}+{:#x}+0x1+zz", address + 1);
    for response in [
        send_request("POST", &service.pprof_url("symbol"), &[], &addresses),
        get(&service.pprof_url(&format!("symbol?{addresses}"))),
    ] {
        let text = response.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((response.status, lines.len(), lines[0]), (200, 3, "num_symbols: 1"), "{text}");
        assert!(lines[1].starts_with(&format!("{address:#x} ")), "{text}");
        assert!(lines[1].ends_with("burn_briefly"), "{text}");
    }
}

#[test]
fn cmdline_is_separated_by_nul() {
    let service = Service::start();
    let arguments: Vec<String> = std::env::args().collect();
    assert_eq!(get(&service.pprof_url("cmdline")).text(), arguments.join("\0"));
}

#[test]
fn error_response_is_shown_with_reason() {
    let service = Service::start();
    let url = service.pprof_url("profile?seconds=86400");
    let output = peers::go_pprof_command(&["-top", &url]).output().unwrap();
    let error_text = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    assert_contains(&error_text, &["400 Bad Request", "exceeds 300 (http.max_duration)"]);
}

/// The tool and the programs that it starts, killed together.
struct ProcessGroup(Child);

impl Drop for ProcessGroup {
    fn drop(&mut self) {
        let group = Pid::from_child(&self.0);
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
        let _ = self.0.wait();
    }
}

#[test]
fn http_pages() {
    let service = Service::start();
    let port = web::unused_address().port();
    let address = format!("-http=127.0.0.1:{port}");
    let mut command =
        peers::go_pprof_command(&[&address, "-no_browser", &service.pprof_url("heap")]);
    let _pages = ProcessGroup(command.process_group(0).spawn().unwrap());
    let page = wait_for("the pages of go tool pprof", || {
        let agent = ureq::get(format!("http://127.0.0.1:{port}/ui/top"));
        agent.call().ok()?.body_mut().read_to_string().ok()
    });
    assert_contains(&page, &["allocate_64_mib"]);
}

/// Returns the client's output for a service whose heap grows during the request.
fn fetch_while_heap_grows(args: &[&str], url: &str) -> String {
    let growing: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(true)));
    let kept = thread::spawn(|| {
        let mut all = Vec::new();
        while growing.load(Ordering::Relaxed) {
            all.push(grow_during_request());
            thread::sleep(Duration::from_millis(20));
        }
        all
    });
    let shown = fetch(args, url);
    growing.store(false, Ordering::Relaxed);
    drop(kept.join().unwrap());
    shown
}

fn assert_only_growth(top: &str) {
    assert_contains(top, &["grow_during_request"]);
    assert!(!top.contains("allocate_64_mib"), "{top}");
}
