//! Nothing is kept of a request that is over.
#![cfg(feature = "heap")]

mod host;
mod web;

use std::alloc::System;

use marple::config::HttpSettings;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use web::{ask, get, serve};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn in_use() -> isize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated as isize - stats.bytes_deallocated as isize
}

#[test]
fn memory_is_flat_after_ten_thousand_requests() {
    let (_host, url) = serve(HttpSettings::default());
    let paths = [
        "/status",
        "/metrics",
        "/incidents",
        "/debug/pprof/",
        "/debug/pprof/goroutine?debug=1",
        "/debug/pprof/symbol?0x1",
        "/debug/pprof/profile?seconds=99999",
        "/monitor/notify?action=status",
        "/nowhere",
        "/incidents/00000000000000000000000000.tar.gz",
    ];
    let round = |times: usize| {
        for _ in 0..times {
            for path in paths {
                let _ = get(&format!("{url}{path}"));
            }
            let _ = ask("DELETE", &format!("{url}/status"), &[], "");
        }
    };
    // Tables and buffers that are made once, two minutes' worth of vitals not among them.
    round(100);
    let before = in_use();
    if std::env::var_os("IDLE").is_some() {
        std::thread::sleep(std::time::Duration::from_secs(40));
    } else {
        round(1000);
    }
    println!("grown {}", in_use() - before);
    let grown = in_use() - before;
    // A minute's vitals are some 40 KiB; a leak of one byte a request would be a third of the bound.
    assert!(grown < 128 << 10, "{grown} bytes more after 11,000 requests");
}
