//! Polls recorded by tokio's hooks. Built with `RUSTFLAGS="--cfg tokio_unstable"`, and empty
//! without it; that is why these tests have a binary of their own.
//!
//! What can be tested on stable tokio belongs to `tests/runtime`. The allocator is the system's.
#![cfg(tokio_unstable)]

#[path = "../support/mod.rs"]
mod support;

use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::time::Duration;

use marple::internals::base::Bytes;
use marple::internals::model::{RawKind, Timeline, TraceMode};
use marple::internals::trace::{configure, recorded_sources};
use marple::task::{self, JoinSet, Trace};
use marple::trace::Hooks;
use tokio::runtime::Builder;

use crate::support::timeline::*;

async fn yield_times(times: usize) {
    for _ in 0..times {
        tokio::task::yield_now().await;
    }
}

fn record_session(work: impl AsyncFnOnce()) -> Timeline {
    configure(TraceMode::OnDemand, Bytes::mib(16), Duration::from_secs(30));
    let runtime = marple::instrument_runtime(&mut Builder::new_multi_thread())
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    let session = start();
    runtime.block_on(work());
    drop(runtime);
    let timeline = stop(session);
    assert_nested(&timeline);
    assert!(timeline.losses.is_empty(), "{:?}", timeline.losses);
    timeline
}

fn polls(timeline: &Timeline) -> Vec<Slice> {
    let slices = all_slices(timeline).into_iter();
    slices.filter(|slice| slice.kind != RawKind::Park).collect()
}

#[test]
fn hooks_record_every_task_with_spawn_location_and_id() {
    let _serial = serial_guard();
    let line = line!() + 3;
    let mut id = String::new();
    let timeline = record_session(async || {
        let task = tokio::spawn(yield_times(10));
        id = task.id().to_string();
        task.await.unwrap();
    });
    let polls = polls(&timeline);
    assert_eq!(polls.len(), 11);
    for poll in &polls {
        assert_eq!(poll.kind, RawKind::HookedPoll);
        assert_eq!(poll.name, format!("{}:{line}", file!()));
        assert_eq!(poll.number.to_string(), id);
    }
    let tasks = |kind| {
        let tasks = timeline.activity.tasks.iter().filter(|task| task.kind() == Some(kind));
        tasks.map(|task| task.task().number.to_string()).collect::<Vec<_>>()
    };
    assert_eq!(tasks(RawKind::Spawned), [&*id]);
    // tokio also reports the ends of blocking tasks, and its workers are such tasks.
    assert_eq!(tasks(RawKind::Ended).iter().filter(|ended| **ended == id).count(), 1);
    assert!(recorded_sources().starts_with("polls from tokio's hooks"));
}

#[test]
fn wrapped_task_is_recorded_once_under_wrapper_name() {
    let _serial = serial_guard();
    let line = line!() + 2;
    let timeline = record_session(async || {
        task::spawn(yield_times(10)).await.unwrap();
        tokio::spawn(yield_times(20).traced("named")).await.unwrap();
    });
    let polls = polls(&timeline);
    assert!(polls.iter().all(|poll| poll.kind == RawKind::HookedPoll));
    let count = |name: &str| polls.iter().filter(|poll| poll.name == name).count();
    assert_eq!(count("named"), 21);
    assert_eq!(count(&format!("{}:{line}", file!())), 11);
    assert_eq!(polls.len(), 32);
    let tasks = timeline.activity.tasks.iter();
    assert_eq!(tasks.filter(|task| task.kind() == Some(RawKind::Spawned)).count(), 2);
}

/// Both tokio's hooks and the wrapper see the tasks of a set; only one of them records.
#[test]
fn join_set_task_is_recorded_once() {
    let _serial = serial_guard();
    let line = line!() + 5;
    let mut ids = Vec::new();
    let timeline = record_session(async || {
        let mut set = JoinSet::new();
        for times in [3, 5, 7] {
            ids.push(set.spawn(yield_times(times)).id().to_string());
        }
        while let Some(joined) = set.join_next().await {
            joined.unwrap();
        }
        // One more task, which ends before its future does.
        ids.push(set.spawn(std::future::pending()).id().to_string());
        tokio::task::yield_now().await;
        set.shutdown().await;
    });
    let polls = polls(&timeline);
    assert!(polls.iter().all(|poll| poll.kind == RawKind::HookedPoll), "by the hooks alone");
    let of_set = format!("{}:{line}", file!());
    for (id, times) in ids.iter().zip([4, 6, 8]) {
        let of_task: Vec<_> =
            polls.iter().filter(|slice| slice.number.to_string() == *id).collect();
        assert_eq!(of_task.len(), times, "polls of {id}");
        assert!(of_task.iter().all(|poll| poll.name == of_set), "under its place");
    }
    for kind in [RawKind::Spawned, RawKind::Ended] {
        let of_kind = timeline.activity.tasks.iter().filter(|task| task.kind() == Some(kind));
        let numbers: Vec<String> = of_kind.map(|task| task.task().number.to_string()).collect();
        for id in &ids {
            assert_eq!(numbers.iter().filter(|number| *number == id).count(), 1, "{kind:?} {id}");
        }
        // The ends include those of tokio's own blocking tasks. A second record by the wrapper,
        // with marple's number, would add to the spawned tasks.
        assert!(kind == RawKind::Ended || numbers.len() == ids.len(), "{numbers:?}");
    }
}

#[test]
fn host_task_hooks_are_still_called() {
    let _serial = serial_guard();
    let counts: Arc<[AtomicUsize; 4]> = Arc::default();
    let count = |which: usize| {
        let counts = Arc::clone(&counts);
        move |_: &tokio::runtime::TaskMeta<'_>| {
            counts[which].fetch_add(1, Ordering::Relaxed);
        }
    };
    let mut builder = Builder::new_current_thread();
    Hooks::new()
        .on_before_task_poll(count(0))
        .on_after_task_poll(count(1))
        .on_task_spawn(count(2))
        .on_task_terminate(count(3))
        .apply(&mut builder);
    let runtime = builder.build().unwrap();
    runtime.block_on(async { tokio::spawn(yield_times(4)).await.unwrap() });
    drop(runtime);
    let counts: Vec<usize> = counts.iter().map(|count| count.load(Ordering::Relaxed)).collect();
    assert_eq!(counts, [5, 5, 1, 1]);
}
