//! What clients of Go's `net/http/pprof` get here: the same questions to a real one and to ours, and Go's own
//! client against ours.
#![cfg(all(feature = "cpu", feature = "heap", feature = "trace"))]
#![cfg(all(target_os = "linux", target_env = "gnu"))]

mod host;
mod peers;
mod web;

use std::alloc::System;
use std::hint::black_box;
use std::os::unix::process::CommandExt;
use std::process::Child;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};
use std::{fs, thread};

use host::{Host, settings, wait_for};
use marple::Settings;
use marple::config::HttpSettings;
use peers::GoServer;
use rustix::process::{Pid, Signal};
use web::{Answer, ask, get};

#[global_allocator]
static ALLOCATOR: marple::Allocator<System> = marple::Allocator::new(System);

/// A service that keeps 64 MiB and burns a core's share.
struct Service {
    url: String,
    burning: &'static AtomicBool,
    _kept: Vec<Vec<u8>>,
    _host: Host,
}

#[inline(never)]
fn keep_sixty_four_mebibytes() -> Vec<Vec<u8>> {
    let kept: Vec<_> = (0..64).map(|_| black_box(vec![1; 1 << 20])).collect();
    // Without something left to do, a release build jumps into `collect` and leaves no frame of this.
    black_box(&kept);
    kept
}

#[inline(never)]
fn burn_a_little(until: Instant) -> u64 {
    let mut n = 1_u64;
    while Instant::now() < until {
        for _ in 0..20_000 {
            n = black_box(n.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1));
        }
    }
    n
}

impl Service {
    fn start() -> Self {
        Self::with(HttpSettings::default(), settings())
    }

    fn with(http: HttpSettings, settings: Settings) -> Self {
        let (host, url) = web::serve_with(http, settings);
        let kept = keep_sixty_four_mebibytes();
        let burning: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(true)));
        thread::Builder::new()
            .name("burner".into())
            .spawn(|| {
                while burning.load(Ordering::Relaxed) {
                    black_box(burn_a_little(Instant::now() + Duration::from_millis(20)));
                }
            })
            .unwrap();
        Self { url, burning, _kept: kept, _host: host }
    }

    fn at(&self, path: &str) -> String {
        format!("{}/debug/pprof/{path}", self.url)
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        self.burning.store(false, Ordering::Relaxed);
    }
}

/// What a client goes by.
fn shape(answer: &Answer) -> (u16, Vec<(&'static str, Option<String>)>) {
    let headers = ["content-type", "content-disposition", "x-content-type-options", "x-go-pprof"];
    let value = |name| (name, answer.header(name).map(str::to_owned));
    (answer.status, headers.into_iter().map(value).collect())
}

#[test]
fn status_headers_and_file_names_are_gos() {
    let (go, ours) = (GoServer::start(), Service::start());
    for path in [
        "",
        "heap",
        "heap?gc=1",
        "heap?gc=0",
        "heap?gc=x",
        "heap?debug=1",
        "heap?debug=2",
        "heap?debug=0",
        "heap?debug=x",
        "heap?seconds=1",
        "heap?seconds=1&debug=0",
        "heap?seconds=1&debug=1",
        "heap?seconds=0",
        "heap?seconds=-1",
        "heap?seconds=1.5",
        "heap?seconds=x",
        "heap?seconds=",
        "heap?seconds=%31",
        "heap?seconds=%zz",
        "heap?seconds=1&seconds=x",
        "heap?unknown=1",
        "allocs",
        "allocs?debug=1",
        "allocs?seconds=1",
        "allocs?seconds=x",
        "profile?seconds=1",
        "profile?seconds=1&debug=1",
        "trace?seconds=0.1",
        "trace?seconds=1e-1",
        "trace",
        "trace?seconds=x",
        "goroutine",
        "goroutine?debug=1",
        "goroutine?debug=2",
        "threadcreate",
        "goroutine?seconds=1",
        "goroutine?seconds=x",
        "goroutine?seconds=1&debug=1",
        "threadcreate?debug=1",
        "threadcreate?seconds=1",
        "block?seconds=1",
        "block?seconds=0",
        "mutex?seconds=1",
        "mutex?seconds=1&debug=1",
        "delta_heap",
        "delta_block",
        "delta_mutex",
        "block",
        "block?debug=1",
        "mutex",
        "mutex?debug=1",
        "cmdline",
        "symbol",
        "symbol?0x1",
        "nosuch",
        "Heap",
        "heap%20",
        "nosuch?debug=1",
        "nosuch?seconds=1",
    ] {
        let theirs = get(&format!("{}/debug/pprof/{path}", go.url));
        let answer = get(&ours.at(path));
        assert_eq!(shape(&answer), shape(&theirs), "{path}: {} / {}", answer.text(), theirs.text());
        if theirs.status >= 400 {
            assert_eq!(answer.text(), theirs.text(), "{path}");
        }
    }
    let (theirs, answer) =
        (get(&format!("{}/debug/pprof", go.url)), get(&format!("{}/debug/pprof", ours.url)));
    assert_eq!(answer.header("location"), theirs.header("location"));
    assert_eq!(answer.status, theirs.status);
}

/// Every difference that the header of `http` lists and that shows in a status or a header.
#[test]
fn what_differs_is_what_the_documentation_lists() {
    let (go, ours) = (GoServer::start(), Service::start());
    let both = |method: &str, path: &str, body: &str| {
        [&go.url, &ours.url].map(|url| ask(method, &format!("{url}/debug/pprof/{path}"), &[], body))
    };
    let [theirs, answer] = both("GET", "goroutineleak", "");
    assert_eq!((theirs.status, answer.status), (200, 404));
    let [theirs, answer] = both("POST", "symbol", "0x1");
    assert_eq!((theirs.status, answer.status), (405, 200));
    let [theirs, answer] = both("POST", "heap", "");
    assert_eq!((theirs.status, answer.status), (405, 405));
    assert_eq!(theirs.header("allow"), answer.header("allow"));
    let [theirs, answer] = both("HEAD", "heap", "");
    assert_eq!(shape(&theirs), shape(&answer));
    let answer = get(&ours.at("heap?gc=1"));
    assert!(answer.header("x-marple-gc").is_some());
    assert!(get(&ours.at("heap")).header("x-marple-gc").is_none());
    assert!(get(&ours.at("heap?debug=1")).text().contains("@ heapprofile"));
}

/// `go tool pprof ARGS URL`, as somebody on another machine runs it.
fn fetch(args: &[&str], url: &str) -> String {
    peers::go_pprof(&[args, &[url]].concat())
}

#[test]
fn go_tool_pprof_reads_a_cpu_profile() {
    let service = Service::start();
    let top = fetch(&["-top", "-seconds=2"], &service.at("profile"));
    assert!(top.contains("Type: cpu") && top.contains("Duration: 2"), "{top}");
    assert!(top.contains("burn_a_little"), "{top}");
    // The frequency is what was asked for.
    let raw = fetch(&["-raw"], &service.at("profile?seconds=1&hz=250"));
    assert!(raw.contains("Period: 4000000"), "{raw}");
}

#[test]
fn go_tool_pprof_reads_the_heap_and_its_difference() {
    let service = Service::start();
    let top = fetch(&["-top"], &service.at("heap"));
    assert!(top.contains("Type: inuse_space"), "{top}");
    assert!(top.contains("keep_sixty_four_mebibytes"), "{top}");
    let top = fetch(&["-top"], &service.at("allocs"));
    assert!(top.contains("Type: alloc_space"), "{top}");

    let kept: &'static AtomicBool = Box::leak(Box::new(AtomicBool::new(true)));
    let growing = thread::spawn(|| {
        let mut all = Vec::new();
        while kept.load(Ordering::Relaxed) {
            all.push(grow_in_the_meantime());
            thread::sleep(Duration::from_millis(20));
        }
        all
    });
    let delta = fetch(&["-top", "-seconds=1"], &service.at("heap"));
    kept.store(false, Ordering::Relaxed);
    drop(growing.join().unwrap());
    assert!(delta.contains("grow_in_the_meantime"), "{delta}");
    assert!(!delta.contains("keep_sixty_four_mebibytes"), "{delta}");
}

#[inline(never)]
fn grow_in_the_meantime() -> Vec<u8> {
    black_box(vec![2; 1 << 20])
}

#[test]
fn go_tool_pprof_subtracts_a_base_that_was_fetched_before() {
    let service = Service::start();
    let dir = tempfile::tempdir().unwrap();
    let base = dir.path().join("base");
    fs::write(&base, get(&service.at("heap")).body).unwrap();
    let more: Vec<_> = (0..32).map(|_| grow_in_the_meantime()).collect();
    let flag = format!("-base={}", base.display());
    let top = fetch(&["-top", &flag], &service.at("heap"));
    drop(more);
    assert!(top.contains("grow_in_the_meantime"), "{top}");
    assert!(!top.contains("keep_sixty_four_mebibytes"), "{top}");
}

#[test]
fn go_tool_pprof_reads_the_text_without_scaling_it_again() {
    let service = Service::start();
    let dir = tempfile::tempdir().unwrap();
    let text = dir.path().join("heap.txt");
    let answer = get(&service.at("heap?debug=1"));
    fs::write(&text, &answer.body).unwrap();
    let top = peers::go_pprof(&["-top", "-unit=b", text.to_str().unwrap()]);
    let first = answer.text().lines().next().unwrap().to_owned();
    let in_use = first.split([':', '[']).nth(2).unwrap().trim().to_owned();
    assert!(top.contains(&format!("of {in_use}B total")), "{first}\n{top}");
    assert!(answer.text().contains("# memory.rss = "), "{}", answer.text());
    assert!(answer.text().contains("keep_sixty_four_mebibytes"));
}

#[test]
fn go_tool_pprof_reads_threads_and_what_holds_no_stacks() {
    let service = Service::start();
    for (path, total) in [("goroutine", "goroutine"), ("threadcreate", "threadcreate")] {
        let raw = fetch(&["-raw"], &service.at(path));
        assert!(raw.contains(&format!("{total}/count")), "{raw}");
    }
    let raw = fetch(&["-raw"], &service.at("goroutine"));
    assert!(raw.contains("thread:[burner]"), "{raw}");
    for path in ["block", "mutex"] {
        let raw = fetch(&["-raw"], &service.at(path));
        assert!(raw.contains("contentions/count"), "{raw}");
    }
    let text = get(&service.at("goroutine?debug=2")).text();
    assert!(text.contains("burner") && text.contains("burn_a_little"), "{text}");
    let top = fetch(&["-top", "-cum"], &service.at("goroutine"));
    assert!(top.contains("burn_a_little"), "{top}");
}

/// `go` and the tool it runs, ended together.
struct Group(Child);

impl Drop for Group {
    fn drop(&mut self) {
        let group = Pid::from_child(&self.0);
        let _ = rustix::process::kill_process_group(group, Signal::KILL);
        let _ = self.0.wait();
    }
}

#[test]
fn go_tool_pprof_serves_its_pages_from_a_profile_of_ours() {
    let service = Service::start();
    let port = web::free().port();
    let address = format!("-http=127.0.0.1:{port}");
    let mut command = peers::go_pprof_command(&[&address, "-no_browser", &service.at("heap")]);
    let _pages = Group(command.process_group(0).spawn().unwrap());
    let page = wait_for("the pages of go tool pprof", || {
        let agent = ureq::get(format!("http://127.0.0.1:{port}/ui/top"));
        agent.call().ok()?.body_mut().read_to_string().ok()
    });
    assert!(page.contains("keep_sixty_four_mebibytes"), "{page}");
}

#[test]
fn addresses_are_named_as_go_names_them() {
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
fn the_command_line_is_separated_by_nul() {
    let service = Service::start();
    let arguments: Vec<String> = std::env::args().collect();
    assert_eq!(get(&service.at("cmdline")).text(), arguments.join("\0"));
}

#[test]
fn a_trace_is_one_that_perfetto_reads() {
    let service = Service::start();
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("trace");
    fs::write(&file, get(&service.at("trace?seconds=0.5")).body).unwrap();
    let rows = peers::perfetto_query(&file, &["select count(*) from counter"]);
    assert_ne!(rows[0][0][0], "0", "the vitals are in it");
}
