//! Nothing is kept of a request that is over.
#![cfg(feature = "heap")]

mod host;
mod web;

use std::alloc::System;

use marple::config::HttpSettings;
use stats_alloc::{INSTRUMENTED_SYSTEM, StatsAlloc};
use web::{ask, get, serve_with};

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

fn in_use() -> isize {
    let stats = ALLOCATOR.stats();
    stats.bytes_allocated as isize - stats.bytes_deallocated as isize
}

#[test]
fn memory_is_flat_after_ten_thousand_requests() {
    // The look-back keeps samples of whatever runs, and here the requests are all that does.
    let mut settings = host::settings();
    settings.cpu.lookback_frequency = marple::base::Hertz(0);
    let (_host, url) = serve_with(HttpSettings::default(), settings);
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
    round(900);
    let grown = in_use() - before;
    // A minute's vitals are some 40 KiB; a leak of one byte a request would be a third of the bound.
    assert!(grown < 128 << 10, "{grown} bytes more after 10,000 requests");
}
