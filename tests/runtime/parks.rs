//! Tests that workers' parks are recorded, and that the host's own hooks are still called.

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use marple::internals::base::thread_start;
use marple::internals::model::RawKind;
use marple::trace::Hooks;
use tokio::runtime::Builder;

use crate::support::timeline;
use crate::support::timeline::*;

/// Sleeps `times` times in a row, so that the runtime runs out of work as often.
async fn sleep_repeatedly(times: usize) {
    for _ in 0..times {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn park_slices_alternate_with_polls() {
    let _serial = serial_guard();
    let runtime = marple::instrument_runtime(&mut Builder::new_multi_thread())
        .worker_threads(2)
        .thread_name("dozer")
        .enable_all()
        .build()
        .unwrap();
    let session = start();
    runtime.block_on(async { tokio::spawn(sleep_repeatedly(20)).await.unwrap() });
    let timeline = stop(session);

    assert_nested(&timeline);
    let slices = all_slices(&timeline);
    assert!(slices.iter().all(|slice| slice.kind == RawKind::Park && slice.name == "parked"));
    let ended = slices.iter().filter(|slice| slice.end.is_some()).count();
    assert!(ended >= 20, "{ended} parks in 20 sleeps");
    for (_, slices) in timeline::slices(&timeline) {
        let mut last = slices[0].start;
        for slice in &slices {
            assert!(slice.start >= last, "parks lie beside each other");
            last = slice.end.unwrap_or(slice.start);
        }
    }
}

#[test]
fn worker_parked_before_session_is_parked_from_session_start() {
    let _serial = serial_guard();
    let (parked, on_park) = std::sync::mpsc::channel();
    let mut builder = Builder::new_multi_thread();
    Hooks::new().on_thread_park(move || parked.send(tid()).unwrap_or(())).apply(&mut builder);
    let runtime = builder.worker_threads(1).build().unwrap();
    let worker = on_park.recv().unwrap();
    wait_until_asleep(worker);

    let session = start();
    runtime.block_on(runtime.spawn(async {})).unwrap();
    let timeline = stop(session);

    let [(tid, slices)] = &slices(&timeline)[..] else { panic!("one worker") };
    assert_eq!(*tid, worker);
    assert!(slices[0].end.is_some());
    assert_eq!(slices[0].start, timeline.activity.start, "parked from the session's start");
}

#[test]
fn host_park_hooks_are_still_called() {
    let _serial = serial_guard();
    let counts: Arc<[AtomicUsize; 4]> = Arc::default();
    let count = |which: usize| {
        let counts = Arc::clone(&counts);
        move || {
            counts[which].fetch_add(1, Ordering::Relaxed);
        }
    };
    let mut builder = Builder::new_multi_thread();
    Hooks::new()
        .on_thread_start(count(0))
        .on_thread_stop(count(1))
        .on_thread_park(count(2))
        .on_thread_unpark(count(3))
        .apply(&mut builder);
    let runtime = builder.worker_threads(3).enable_all().build().unwrap();
    let session = start();
    runtime.block_on(async { tokio::spawn(sleep_repeatedly(5)).await.unwrap() });
    let timeline = stop(session);
    drop(runtime);

    let [started, stopped, parks, unparks] = &*counts;
    assert_eq!(started.load(Ordering::Relaxed), 3);
    assert_eq!(stopped.load(Ordering::Relaxed), 3);
    assert_eq!(parks.load(Ordering::Relaxed), unparks.load(Ordering::Relaxed));
    assert!(parks.load(Ordering::Relaxed) >= 5);
    let slices = all_slices(&timeline).len();
    assert!(slices >= 5, "{slices} slices");
}

#[test]
fn thread_start_is_notified_only_if_enabled() {
    let _serial = serial_guard();
    let (sender, receiver) = std::sync::mpsc::channel();
    let _listening = thread_start::subscribe(move || sender.send(tid()).unwrap_or(()));
    let built = |hooks: Hooks| {
        let mut builder = Builder::new_multi_thread();
        hooks.apply(&mut builder);
        builder.worker_threads(1).build().unwrap()
    };
    let silent = built(Hooks::new());
    thread_start::arm();
    silent.block_on(silent.spawn_blocking(|| {})).unwrap();
    assert!(receiver.try_recv().is_err(), "the builder's slot was to be left alone");
    for hooks in [Hooks::new().notify_thread_starts(), Hooks::new().on_thread_start(|| {})] {
        let runtime = built(hooks);
        // Running a task waits until the worker has started.
        runtime.block_on(runtime.spawn(async {})).unwrap();
        while receiver.try_recv().is_ok() {}
        thread_start::arm();
        let thread = runtime.block_on(runtime.spawn_blocking(tid)).unwrap();
        assert_eq!(receiver.try_iter().collect::<Vec<_>>(), [thread]);
    }
}

#[test]
fn current_thread_runtime_records_parks() {
    let _serial = serial_guard();
    let mut builder = Builder::new_current_thread();
    let runtime = marple::instrument_runtime(&mut builder).enable_all().build().unwrap();
    let session = start();
    runtime.block_on(sleep_repeatedly(3));
    let timeline = stop(session);
    assert_eq!(marple::internals::trace::recorded_sources(), "parks");
    let [(thread, slices)] = &slices(&timeline)[..] else { panic!("one thread") };
    assert_eq!(*thread, tid());
    assert!(slices.len() >= 3 && slices.iter().all(|slice| slice.end.is_some()), "{slices:?}");
}
