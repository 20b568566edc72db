//! Go's own client, `go tool pprof`, against marple: one test for each path and flag.

use std::fs;
use std::os::unix::process::CommandExt;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

use axum::{Router, routing};
use marple::codec::pprof;
use prost::Message;
use rustix::process::{Pid, Signal};

use crate::host::wait_for;
use crate::peers;
use crate::service::{Service, burn_a_little, grow_in_the_meantime};
use crate::web::{self, ask, get};

/// Runs `go tool pprof ARGS URL`, as a user on another machine would.
fn fetch(args: &[&str], url: &str) -> String {
    peers::go_pprof(&[args, &[url]].concat())
}

fn has(text: &str, words: &[&str]) {
    for word in words {
        assert!(text.contains(word), "{word} in\n{text}");
    }
}

#[test]
fn profile_seconds() {
    let service = Service::start();
    let top = fetch(&["-top", "-seconds=2"], &service.at("profile"));
    has(&top, &["Type: cpu", "Duration: 2", "burn_a_little"]);
}

#[test]
fn profile_hz() {
    let service = Service::start();
    let raw = fetch(&["-raw"], &service.at("profile?seconds=1&hz=250"));
    has(&raw, &["Period: 4000000"]);
}

#[test]
fn profile_mode() {
    let service = Service::start();
    let raw = fetch(&["-raw"], &service.at("profile?seconds=1&mode=wall"));
    has(&raw, &["burner", "state:"]);
}

#[test]
fn heap() {
    let service = Service::start();
    let top = fetch(&["-top"], &service.at("heap"));
    has(&top, &["Type: inuse_space", "keep_sixty_four_mebibytes"]);
}

#[test]
fn heap_gc() {
    let service = Service::start();
    let top = fetch(&["-top"], &service.at("heap?gc=1"));
    has(&top, &["Type: inuse_space", "keep_sixty_four_mebibytes"]);
}

#[test]
fn heap_sample_index() {
    let service = Service::start();
    for index in ["alloc_objects", "alloc_space", "inuse_objects", "inuse_space"] {
        let top = fetch(&["-top", &format!("-sample_index={index}")], &service.at("heap"));
        has(&top, &[&format!("Type: {index}"), "keep_sixty_four_mebibytes"]);
    }
}

#[test]
fn heap_seconds_is_a_difference() {
    let service = Service::start();
    has_grown_only(&fetch_while_growing(&["-top", "-seconds=1"], &service.at("heap")));
}

#[test]
fn heap_rate() {
    let service = Service::start();
    has_grown_only(&fetch_while_growing(&["-top"], &service.at("heap?seconds=1&rate=65536")));
}

#[test]
fn heap_debug_is_not_scaled_again() {
    let service = Service::start();
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("heap.txt");
    let answer = get(&service.at("heap?debug=1"));
    fs::write(&text, &answer.body).unwrap();
    let top = peers::go_pprof(&["-top", "-unit=b", text.to_str().unwrap()]);
    let first = answer.text().lines().next().unwrap().to_owned();
    let in_use = first.split([':', '[']).nth(2).unwrap().trim().to_owned();
    has(&top, &[&format!("of {in_use}B total")]);
}

#[test]
fn heap_base_that_was_fetched_before() {
    let service = Service::start();
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    fs::write(&base, get(&service.at("heap")).body).unwrap();
    let more: Vec<_> = (0..32).map(|_| grow_in_the_meantime()).collect();
    let top = fetch(&["-top", &format!("-base={}", base.display())], &service.at("heap"));
    drop(more);
    has_grown_only(&top);
}

#[test]
fn heap_diff_base_from_the_service_itself() {
    let service = Service::start();
    let base = format!("-diff_base={}", service.at("heap"));
    let top = fetch(&["-top", "-sample_index=inuse_space", &base], &service.at("heap"));
    has(&top, &["Type: inuse_space"]);
    assert!(!top.contains("keep_sixty_four_mebibytes"), "{top}");
}

#[test]
fn allocs() {
    let service = Service::start();
    has(&fetch(&["-top"], &service.at("allocs")), &["Type: alloc_space", "keep_sixty"]);
}

#[test]
fn allocs_seconds() {
    let service = Service::start();
    has_grown_only(&fetch_while_growing(&["-top", "-seconds=1"], &service.at("allocs")));
}

#[test]
fn goroutine() {
    let service = Service::start();
    let raw = fetch(&["-raw"], &service.at("goroutine"));
    has(&raw, &["goroutine/count", "thread:[burner]"]);
    has(&fetch(&["-top", "-cum"], &service.at("goroutine")), &["burn_a_little"]);
}

#[test]
fn goroutine_seconds() {
    let service = Service::start();
    has(&fetch(&["-raw"], &service.at("goroutine?seconds=1")), &["goroutine/count"]);
}

#[test]
fn threadcreate() {
    let service = Service::start();
    has(&fetch(&["-raw"], &service.at("threadcreate")), &["threadcreate/count"]);
}

#[test]
fn block() {
    let service = Service::start();
    has(&fetch(&["-raw"], &service.at("block")), &["contentions/count", "delay/nanoseconds"]);
}

#[test]
fn mutex() {
    let service = Service::start();
    has(&fetch(&["-raw"], &service.at("mutex")), &["contentions/count", "delay/nanoseconds"]);
}

/// The client sends a POST to `/debug/pprof/symbol` by itself if a profile has addresses without
/// symbols. marple's profiles have symbols, so this test strips them in transit.
#[test]
fn symbol_as_the_client_asks_for_it() {
    let service = Service::start();
    let mut profile = pprof::read(&get(&service.at("heap")).body).unwrap();
    profile.function.clear();
    profile.location.iter_mut().for_each(|location| location.line.clear());
    profile.mapping.iter_mut().for_each(|mapping| mapping.has_functions = false);
    let (stripped, symbol) = (profile.encode_to_vec(), service.at("symbol"));
    let look_up = move |body: String| {
        let symbol = symbol.clone();
        async move {
            let asked = move || ask("POST", &symbol, &[], &body).body;
            tokio::task::spawn_blocking(asked).await.unwrap()
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
    assert!(!bare.contains("keep_sixty_four_mebibytes"), "{bare}");
    let top = fetch(&["-symbolize=remote", "-top"], &url);
    has(&top, &["keep_sixty_four_mebibytes"]);
    runtime.shutdown_background();
}

#[test]
fn symbol_by_query_and_by_body() {
    let service = Service::start();
    let address = burn_a_little as *const () as usize;
    let asked = format!("{address:#x}+{:#x}+0x1+zz", address + 1);
    for answer in [
        ask("POST", &service.at("symbol"), &[], &asked),
        get(&service.at(&format!("symbol?{asked}"))),
    ] {
        let text = answer.text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!((answer.status, lines.len(), lines[0]), (200, 3, "num_symbols: 1"), "{text}");
        assert!(lines[1].starts_with(&format!("{address:#x} ")), "{text}");
        assert!(lines[1].ends_with("burn_a_little"), "{text}");
    }
}

#[test]
fn cmdline_is_separated_by_nul() {
    let service = Service::start();
    let arguments: Vec<String> = std::env::args().collect();
    assert_eq!(get(&service.at("cmdline")).text(), arguments.join("\0"));
}

#[test]
fn a_refusal_is_shown_with_its_reason() {
    let service = Service::start();
    let url = service.at("profile?seconds=86400");
    let output = peers::go_pprof_command(&["-top", &url]).output().unwrap();
    let told = String::from_utf8_lossy(&output.stderr).into_owned();
    assert!(!output.status.success());
    has(&told, &["400 Bad Request", "beyond the cap of 300 (http.max_duration)"]);
}

/// `go` and the tool it runs, killed together.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        let group = Pid::from_child(&self.0);
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
        let _ = self.0.wait();
    }
}

#[test]
fn http_pages() {
    let service = Service::start();
    let port = web::free().port();
    let address = format!("-http=127.0.0.1:{port}");
    let mut command = peers::go_pprof_command(&[&address, "-no_browser", &service.at("heap")]);
    let _pages = Group(command.process_group(0).spawn().unwrap());
    let page = wait_for("the pages of go tool pprof", || {
        let agent = ureq::get(format!("http://127.0.0.1:{port}/ui/top"));
        agent.call().ok()?.body_mut().read_to_string().ok()
    });
    has(&page, &["keep_sixty_four_mebibytes"]);
}

/// Returns the client's output for a service whose heap grows during the request.
fn fetch_while_growing(args: &[&str], url: &str) -> String {
    let growing: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(true)));
    let kept = thread::spawn(|| {
        let mut all = Vec::new();
        while growing.load(Ordering::Relaxed) {
            all.push(grow_in_the_meantime());
            thread::sleep(Duration::from_millis(20));
        }
        all
    });
    let shown = fetch(args, url);
    growing.store(false, Ordering::Relaxed);
    drop(kept.join().unwrap());
    shown
}

fn has_grown_only(top: &str) {
    has(top, &["grow_in_the_meantime"]);
    assert!(!top.contains("keep_sixty_four_mebibytes"), "{top}");
}
