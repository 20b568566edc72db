//! Tests that a steady tick allocates nothing, neither in the reader nor in the runtimes it
//! watches.

use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::Ordering::SeqCst;
use std::time::Duration;

use marple::internals::base::{Clock, ManualClock};
use marple::internals::metrics::Gauges;
use marple::internals::model::Vitals;
use marple::internals::vitals::{Reader, Runtimes};
use tokio::runtime::Builder;

use crate::support::counting::CALLS;

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
    let before = CALLS.load(SeqCst);
    (0..200).for_each(|_| tick());
    assert_eq!(CALLS.load(SeqCst) - before, 0, "allocations in 50 s");
}
