//! Tests that workers' parks are recorded, and that the host's own hooks are still called.

mod trace_support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use marple::model::RawKind;
use marple::os::thread_start;
use marple::trace::Hooks;
use tokio::runtime::Builder;
use trace_support::*;

/// Sleeps `times` times in a row, so that the runtime runs out of work as often.
async fn doze(times: usize) {
    for _ in 0..times {
        tokio::time::sleep(Duration::from_millis(1)).await;
    }
}

#[test]
fn the_slices_of_a_worker_alternate_with_its_work() {
    let _turn = turn();
    let runtime = marple::instrument(&mut Builder::new_multi_thread())
        .worker_threads(2)
        .thread_name("dozer")
        .enable_all()
        .build()
        .unwrap();
    let session = start();
    runtime.block_on(async { tokio::spawn(doze(20)).await.unwrap() });
    let timeline = stop(session);

    assert_nested(&timeline);
    let slices = all_slices(&timeline);
    assert!(slices.iter().all(|slice| slice.kind == RawKind::Park && slice.name == "parked"));
    let ended = slices.iter().filter(|slice| slice.end.is_some()).count();
    assert!(ended >= 20, "{ended} parks in 20 sleeps");
    for (_, slices) in trace_support::slices(&timeline) {
        let mut last = slices[0].start;
        for slice in &slices {
            assert!(slice.start >= last, "parks lie beside each other");
            last = slice.end.unwrap_or(slice.start);
        }
    }
}

#[test]
fn a_worker_parked_since_before_the_session_is_parked_from_its_start() {
    let _turn = turn();
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
    assert_eq!(slices[0].start, timeline.activity.from, "parked from the session's start");
}

#[test]
fn the_hosts_hooks_are_called_as_well() {
    let _turn = turn();
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
    runtime.block_on(async { tokio::spawn(doze(5)).await.unwrap() });
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
fn a_thread_tells_that_it_begins_where_the_host_wants_it() {
    let _turn = turn();
    let (hear, heard) = std::sync::mpsc::channel();
    let _listening = thread_start::listen(move || hear.send(tid()).unwrap_or(()));
    let built = |hooks: Hooks| {
        let mut builder = Builder::new_multi_thread();
        hooks.apply(&mut builder);
        builder.worker_threads(1).build().unwrap()
    };
    let silent = built(Hooks::new());
    thread_start::want();
    silent.block_on(silent.spawn_blocking(|| {})).unwrap();
    assert!(heard.try_recv().is_err(), "the builder's slot was to be left alone");
    for hooks in [Hooks::new().tell_of_threads(), Hooks::new().on_thread_start(|| {})] {
        let runtime = built(hooks);
        // Running a task waits until the worker has started.
        runtime.block_on(runtime.spawn(async {})).unwrap();
        while heard.try_recv().is_ok() {}
        thread_start::want();
        let thread = runtime.block_on(runtime.spawn_blocking(tid)).unwrap();
        assert_eq!(heard.try_iter().collect::<Vec<_>>(), [thread]);
    }
}

#[test]
fn a_current_thread_runtime_parks_too() {
    let _turn = turn();
    let mut builder = Builder::new_current_thread();
    let runtime = marple::instrument(&mut builder).enable_all().build().unwrap();
    let session = start();
    runtime.block_on(doze(3));
    let timeline = stop(session);
    assert_eq!(marple::trace::engine(), "parks");
    let [(thread, slices)] = &slices(&timeline)[..] else { panic!("one thread") };
    assert_eq!(*thread, tid());
    assert!(slices.len() >= 3 && slices.iter().all(|slice| slice.end.is_some()), "{slices:?}");
}
