//! Allocations of recording: none while no session runs, and at most `max_bytes` while one does.

use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::thread;

use marple::internals::base::{Bytes, Clock, SystemClock};
use marple::internals::model::Vitals;
use marple::internals::trace::{TraceSession, record_instant, record_vitals};
use tracing::{info, info_span};
use tracing_subscriber::prelude::*;

use crate::support::counting::{allocations, peak_bytes};
use crate::support::timeline::*;

fn subscribe() {
    static SUBSCRIBED: Once = Once::new();
    SUBSCRIBED.call_once(|| tracing_subscriber::registry().with(marple::trace::layer()).init());
}

fn request(round: usize) {
    static REQUESTS: AtomicUsize = AtomicUsize::new(0);
    let n = REQUESTS.fetch_add(1, Ordering::Relaxed);
    info_span!("request", n, path = "/orders/with/a/path/of/some/length").in_scope(|| {
        info!(status = 200, "answered {n} in round {round} in a sentence of some length");
    });
}

/// Records as many events with as few strings as possible.
fn bare_request(_: usize) {
    info_span!("request").in_scope(|| info!("answered"));
}

#[test]
fn no_allocation_without_session() {
    let _serial = serial_guard();
    subscribe();
    let vitals = Vitals { gauges: vec![("orders".into(), 1.0)], ..Vitals::default() };
    // Fills the registry's own pools and the interest of the call sites.
    (0..100).for_each(request);
    // One row per second is kept for later sessions.
    record_vitals(&vitals);
    let before = allocations();
    (0..1000).for_each(|round| {
        request(round);
        record_vitals(&vitals);
        record_instant("trigger", "none");
    });
    assert_eq!(allocations() - before, 0);

    let session = start();
    let before = allocations();
    (0..1000).for_each(request);
    assert!(allocations() > before, "the count counts");
    drop(session);
}

#[test]
fn recording_and_timeline_stay_within_max_bytes() {
    const THREADS: usize = 4;
    let _serial = serial_guard();
    subscribe();
    let sizes = [Bytes::kib(256), Bytes::mib(2), Bytes::mib(5)];
    let kinds: [fn(usize); 2] = [request, bare_request];
    for (max_bytes, request) in sizes.into_iter().flat_map(|size| kinds.map(|kind| (size, kind))) {
        let flood = || {
            for round in 0..10_000 {
                request(round);
                if round % 10 == 0 {
                    record_vitals(&Vitals {
                        at: SystemClock.now(),
                        fds: Some(1),
                        gauges: vec![("orders".into(), 1.0)],
                        ..Vitals::default()
                    });
                }
            }
        };
        let flood_by_all = || {
            thread::scope(|scope| (0..THREADS).for_each(|_| drop(scope.spawn(flood))));
        };
        flood_by_all();
        let without = peak_bytes(flood_by_all) as u64;
        let with = peak_bytes(|| {
            let session = TraceSession::start(max_bytes, anchor()).unwrap();
            flood_by_all();
            let timeline = stop(session);
            assert!(loss_count(&timeline, "trace events dropped") > 0);
        }) as u64;
        let used = with.saturating_sub(without);
        assert!(used <= max_bytes.get(), "{used} bytes of {max_bytes}");
        assert!(used >= max_bytes.get() / 4, "{used} bytes of {max_bytes}: the test is no flood");
        println!("{max_bytes}: {used} bytes at the peak, {without} without");
    }
}
