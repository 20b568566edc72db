//! Tests that a steady tick allocates nothing, neither in the reader nor in the runtimes it
//! watches.
#![cfg(target_os = "linux")]

use std::alloc::System;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use marple::base::{Clock, ManualClock};
use marple::metrics::Gauges;
use marple::model::Vitals;
use marple::vitals::{Reader, Runtimes};
use stats_alloc::{INSTRUMENTED_SYSTEM, Region, StatsAlloc};
use tokio::runtime::Builder;

#[global_allocator]
static ALLOCATOR: &StatsAlloc<System> = &INSTRUMENTED_SYSTEM;

#[test]
fn steady_tick_allocates_nothing() {
    let runtime = Builder::new_multi_thread().worker_threads(2).build().unwrap();
    let (runtimes, gauges) = (Runtimes::new(), Gauges::new());
    runtimes.observe(runtime.handle().clone()).unwrap();
    gauges.gauge("queue").unwrap();
    let clock = Arc::new(ManualClock::new(jiff::Timestamp::UNIX_EPOCH));
    let mut reader = Reader::with_root(runtimes, gauges, Path::new("/"), clock.clone());
    let mut vitals = Vitals::default();
    let mut tick = || {
        clock.advance(Duration::from_millis(250));
        reader.read_into(clock.now(), &mut vitals);
        std::thread::sleep(Duration::from_millis(5));
        // Waits until a probe sent at this tick has run.
        while vitals.lag != Some(Duration::ZERO) {
            reader.read_into(clock.now(), &mut vitals);
        }
        assert_eq!((vitals.tasks, vitals.gauges.len()), (Some(0), 1));
    };
    // The first ticks fill the buffers.
    (0..10).for_each(|_| tick());
    let region = Region::new(ALLOCATOR);
    (0..200).for_each(|_| tick());
    let change = region.change();
    assert_eq!((change.allocations, change.reallocations), (0, 0), "in 50 s");
}
