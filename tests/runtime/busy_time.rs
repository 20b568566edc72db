//! Compares the trace's polls with the busy time that tokio reports for its workers.

use std::sync::{Arc, Barrier};
use std::thread;
use std::time::Duration;

use marple::internals::model::RawKind;
use marple::task::Trace;

use crate::support::timeline::*;

const WORKERS: usize = 2;

/// One long poll per worker: any other load on the machine falls into it, in both measurements.
const POLL: Duration = Duration::from_secs(1);

#[test]
fn poll_durations_match_tokio_worker_busy_time() {
    let session = start();
    let mut builder = tokio::runtime::Builder::new_multi_thread();
    let runtime = marple::instrument_runtime(builder.worker_threads(WORKERS)).build().unwrap();
    let metrics = runtime.metrics();
    let parked = |worker| metrics.worker_park_unpark_count(worker) % 2 == 1;
    let wait_until_parked = || {
        while !(0..WORKERS).all(parked) {
            thread::yield_now();
        }
    };
    wait_until_parked();
    let busy = || [0, 1].map(|worker| metrics.worker_total_busy_duration(worker));
    let before = busy();
    let barrier = Arc::new(Barrier::new(WORKERS));
    let tasks: Vec<_> = (0..WORKERS)
        .map(|_| {
            let barrier = barrier.clone();
            let work = async move {
                barrier.wait();
                thread::sleep(POLL);
            };
            runtime.spawn(work.traced("work"))
        })
        .collect();
    for task in tasks {
        runtime.block_on(task).unwrap();
    }
    wait_until_parked();
    let after = busy();
    let timeline = stop(session);

    for worker in 0..WORKERS {
        let mark = format!(" #{worker}");
        let of_worker = timeline
            .activity
            .threads
            .iter()
            .find(|thread| timeline.strings.get(thread.name).ends_with(&mark));
        let tid = of_worker.expect("a track for each worker").tid;
        let slices = slices(&timeline).into_iter().filter(|(known, _)| *known == tid);
        let polls =
            slices.flat_map(|(_, slices)| slices).filter(|slice| slice.kind != RawKind::Park);
        let polled: Duration = polls.map(|poll| poll.end.unwrap().since(poll.start)).sum();
        let busy = after[worker] - before[worker];
        let share = polled.as_secs_f64() / busy.as_secs_f64();
        assert!((share - 1.0).abs() <= 0.02, "worker {worker}: {polled:?} of {busy:?}");
    }
}
