//! Nothing is kept of a request that is over.
#![cfg(feature = "heap")]

mod host;
mod web;

use std::alloc::System;
use std::io::{ErrorKind, Read, Write};
use std::net::TcpStream;
use std::thread;
use std::time::Duration;

use marple::config::HttpSettings;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use web::serve_with;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

const CLIENTS: usize = 4;
const REQUESTS: [(&str, &str); 11] = [
    ("GET", "/status"),
    ("GET", "/metrics"),
    ("GET", "/incidents"),
    ("GET", "/debug/pprof/"),
    ("GET", "/debug/pprof/goroutine?debug=1"),
    ("GET", "/debug/pprof/symbol?0x1"),
    ("GET", "/debug/pprof/profile?seconds=99999"),
    ("GET", "/monitor/notify?action=status"),
    ("GET", "/nowhere"),
    ("GET", "/incidents/00000000000000000000000000.tar.gz"),
    ("DELETE", "/status"),
];

fn in_use() -> isize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated as isize - stats.bytes_deallocated as isize
}

#[test]
fn memory_is_flat_after_ten_thousand_requests() {
    // The look-back keeps samples of whatever runs, and here the requests are all that does.
    let mut settings = host::settings();
    settings.cpu.lookback_frequency = marple::base::Hertz(0);
    // Nor are two minutes' worth of vitals what this is about, and on a busy machine this takes longer.
    settings.interval = Duration::from_secs(3600);
    let (_host, url) = serve_with(HttpSettings::default(), settings);
    // Each client keeps its connection for ten rounds, as scrapers do.
    let rounds = |times: usize| {
        let client = || {
            for round in 0..times {
                let mut kept = web::connect(&url);
                for (at, &(method, path)) in REQUESTS.iter().cycle().take(110).enumerate() {
                    // Naming every frame of every thread takes a while: 230 times, for 140 bytes each.
                    let dear = path.contains("goroutine") && at > 33;
                    let path = if dear { "/debug/pprof/threadcreate" } else { path };
                    assert!(exchange(&mut kept, method, path), "{round} {at} {method} {path}");
                }
            }
        };
        thread::scope(|scope| (0..CLIENTS).for_each(|_| drop(scope.spawn(client))));
    };
    // Tables and buffers that are made once.
    rounds(3);
    let before = in_use();
    rounds(23);
    let grown = in_use() - before;
    // Four bytes a request are beyond it.
    assert!(grown < 32 << 10, "{grown} bytes more after 10,120 requests");
}

/// Asks, and reads the answer to its end.
fn exchange(client: &mut TcpStream, method: &str, path: &str) -> bool {
    let head = format!("{method} {path} HTTP/1.1\r\nHost: localhost\r\n\r\n");
    client.write_all(head.as_bytes()).unwrap();
    let mut got = Vec::new();
    let mut buffer = [0; 16 << 10];
    loop {
        let n = match client.read(&mut buffer) {
            // The dump of threads sends each a signal, and a read with a timeout is not taken up again.
            Err(error) if error.kind() == ErrorKind::Interrupted => continue,
            Ok(n @ 1..) => n,
            _ => return false,
        };
        got.extend_from_slice(&buffer[..n]);
        let Some(end) = got.windows(4).position(|window| window == b"\r\n\r\n") else { continue };
        let head = String::from_utf8_lossy(&got[..end]).to_ascii_lowercase();
        let length = head.lines().find_map(|line| line.strip_prefix("content-length: "));
        if got.len() - end - 4 >= length.map_or(0, |length| length.parse().unwrap()) {
            return true;
        }
    }
}
