//! Tests of polls of wrapped tasks on stable tokio: in the rings, in the timeline, and in the
//! look-back.

use std::collections::{HashMap, HashSet};
use std::future;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc;
use std::task::Poll;
use std::thread;
use std::time::Duration;

use marple::internals::base::{Bytes, Clock, SystemClock};
use marple::internals::model::{RawKind, Timeline, TraceMode};
use marple::internals::trace::{TraceSession, configure};
use marple::task::{self, JoinSet, Trace};
use tokio::runtime::{Builder, Runtime};

use crate::support::timeline::*;

const MIB: Bytes = Bytes::mib(1);
const WINDOW: Duration = Duration::from_secs(30);

fn runtime(workers: usize) -> Runtime {
    marple::instrument_runtime(&mut Builder::new_multi_thread())
        .worker_threads(workers)
        .enable_all()
        .build()
        .unwrap()
}

/// Completes at poll `times + 1`.
async fn yield_times(times: usize) {
    for _ in 0..times {
        tokio::task::yield_now().await;
    }
}

fn polls(timeline: &Timeline) -> Vec<Slice> {
    let slices = all_slices(timeline).into_iter();
    slices.filter(|slice| slice.kind == RawKind::WrappedPoll).collect()
}

fn poll_count(timeline: &Timeline, name: &str) -> usize {
    polls(timeline).iter().filter(|poll| poll.name == name).count()
}

#[test]
fn every_poll_is_recorded_once_under_task_name() {
    let _serial = serial_guard();
    configure(TraceMode::OnDemand, MIB, WINDOW);
    let runtime = runtime(2);
    let session = start();
    let line = line!() + 2;
    runtime.block_on(async {
        let plain = task::spawn(yield_times(10));
        let named = tokio::spawn(yield_times(20).traced("named"));
        let mut set = JoinSet::new();
        for _ in 0..3 {
            set.spawn(yield_times(5));
        }
        plain.await.unwrap();
        named.await.unwrap();
        while set.join_next().await.is_some() {}
    });
    let timeline = stop(session);

    assert_nested(&timeline);
    assert!(timeline.losses.is_empty(), "{:?}", timeline.losses);
    let site = |line: u32| format!("{}:{line}", file!());
    assert_eq!(poll_count(&timeline, &site(line)), 11);
    assert_eq!(poll_count(&timeline, "named"), 21);
    assert_eq!(poll_count(&timeline, &site(line + 4)), 3 * 6);
    assert_eq!(polls(&timeline).len(), 11 + 21 + 18);
    let mut by_task = HashMap::new();
    for poll in polls(&timeline) {
        *by_task.entry(poll.number).or_insert(0) += 1;
    }
    let mut counts: Vec<usize> = by_task.into_values().collect();
    counts.sort_unstable();
    assert_eq!(counts, [6, 6, 6, 11, 21]);
    let tasks = |kind| timeline.activity.tasks.iter().filter(|t| t.kind() == Some(kind)).count();
    assert_eq!((tasks(RawKind::Spawned), tasks(RawKind::Ended)), (5, 5));
}

#[test]
fn trace_includes_lookback_before_session() {
    let _serial = serial_guard();
    configure(TraceMode::Always, MIB, WINDOW);
    let runtime = runtime(1);
    let before = SystemClock.now();
    runtime.block_on(async { task::spawn(yield_times(50).traced("before")).await.unwrap() });
    let session = start();
    let started = SystemClock.now();
    runtime.block_on(async { task::spawn(yield_times(50).traced("after")).await.unwrap() });
    let timeline = stop(session);
    configure(TraceMode::OnDemand, MIB, WINDOW);

    assert_nested(&timeline);
    // Each task is a future in a future: the wrapper of `spawn` and the named one.
    assert_eq!((poll_count(&timeline, "before"), poll_count(&timeline, "after")), (51, 51));
    for poll in polls(&timeline) {
        let (start, end) = (poll.start, poll.end.unwrap());
        // The two clocks agree within the time that reading them takes.
        let slack = Duration::from_micros(100);
        match &*poll.name {
            "before" => assert!(start + slack >= before && end <= started + slack),
            "after" => assert!(start + slack >= started),
            _ => {}
        }
    }
    assert_eq!(outline(&process_events(&timeline)), "before the capture()recording()");
    assert!(timeline.activity.start < before);
}

#[test]
fn nothing_is_recorded_while_off() {
    let _serial = serial_guard();
    configure(TraceMode::Off, MIB, WINDOW);
    let runtime = runtime(1);
    let session = start();
    runtime.block_on(async { task::spawn(yield_times(50)).await.unwrap() });
    let timeline = stop(session);
    configure(TraceMode::OnDemand, MIB, WINDOW);
    assert!(timeline.activity.threads.is_empty() && timeline.activity.tasks.is_empty());
}

#[test]
fn running_poll_is_open_and_earlier_start_is_seen_at_end() {
    let _serial = serial_guard();
    configure(TraceMode::OnDemand, MIB, WINDOW);
    let runtime = runtime(1);
    let (entered, on_entry) = mpsc::channel();
    let (go, on_go) = mpsc::channel::<()>();
    let blocked = runtime.spawn(
        async move {
            for _ in 0..2 {
                entered.send(()).unwrap();
                on_go.recv().unwrap();
                tokio::task::yield_now().await;
            }
        }
        .traced("blocked"),
    );
    on_entry.recv().unwrap();
    let session = start();
    go.send(()).unwrap();
    on_entry.recv().unwrap();
    let timeline = stop(session);
    go.send(()).unwrap();
    runtime.block_on(blocked).unwrap();

    let polls = polls(&timeline);
    let [first, second] = &polls[..] else { panic!("{polls:?}") };
    assert_eq!((&*first.name, &*second.name), ("blocked", "blocked"));
    // The rounding of a long slice delays its start.
    let rounding = first.end.unwrap().since(first.start) / (1 << 22);
    let late = first.start.since(timeline.activity.start);
    assert!(first.start >= timeline.activity.start, "it began before the session");
    assert!(late <= rounding + Duration::from_nanos(1), "{late:?} after the session's start");
    assert!(first.end.is_some_and(|end| end <= second.start) && second.end.is_none());
}

#[test]
fn wrapped_ring_keeps_latest_complete_polls() {
    let _serial = serial_guard();
    let small = Bytes::kib(64);
    configure(TraceMode::Always, small, WINDOW);
    // A new thread, so that its ring is created with these settings.
    let timeline = thread::spawn(move || {
        let runtime = Builder::new_current_thread().build().unwrap();
        let flood = || async {
            task::spawn(yield_times(100_000).traced("flood")).await.unwrap();
        };
        runtime.block_on(flood());
        let session = TraceSession::start(small, anchor()).unwrap();
        let window = TraceSession::stop(session, SystemClock.now());
        let session = TraceSession::start(small, anchor()).unwrap();
        runtime.block_on(flood());
        (window, stop(session))
    });
    let (before, during) = timeline.join().unwrap();
    configure(TraceMode::OnDemand, MIB, WINDOW);

    assert_nested(&before);
    assert_nested(&during);
    let kept = polls(&before).len() as u64;
    assert!(kept > 50 && kept < 100_000, "{kept}");
    assert_eq!(loss_count(&before, "polls and parks dropped"), 0, "what went before is no loss");
    let [told] = &process_events(&before)
        .into_iter()
        .filter(|e| e.name == "before the capture")
        .collect::<Vec<_>>()[..]
    else {
        panic!("no look-back")
    };
    let complete = told.arg("complete for").unwrap();
    assert!(complete.ends_with("ms") || complete.ends_with("µs"), "{complete}");

    // Two wrappers per poll; the main future is not wrapped.
    let kept =
        polls(&during).iter().filter(|poll| poll.start >= during.activity.start).count() as u64;
    let loss_count = loss_count(&during, "polls and parks dropped: overwritten");
    assert!(loss_count > 0 && kept > 50);
    let copied = polls(&before).len() as u64;
    assert_eq!(kept + loss_count, 2 * 100_001 + copied, "every poll is there or counted");
}

#[test]
fn short_lived_threads_reuse_rings() {
    let _serial = serial_guard();
    configure(TraceMode::Always, Bytes::kib(256), Duration::from_secs(1));
    let work = || {
        let runtime = Builder::new_current_thread().build().unwrap();
        runtime.block_on(yield_times(10).traced("brief"));
    };
    for _ in 0..200 {
        thread::spawn(work).join().unwrap();
    }
    let timeline = stop(start());
    configure(TraceMode::OnDemand, MIB, WINDOW);
    let loss_count = loss_count(&timeline, "polls and parks dropped: no memory");
    assert_eq!(loss_count, 0, "a ring was found for every thread");
    assert!(poll_count(&timeline, "brief") >= 11);
    assert_nested(&timeline);
}

#[test]
fn snapshots_of_busy_workers_are_properly_nested() {
    let _serial = serial_guard();
    configure(TraceMode::Always, MIB, WINDOW);
    let runtime = runtime(2);
    let done = std::sync::Arc::new(AtomicBool::new(false));
    for _ in 0..4 {
        let done = std::sync::Arc::clone(&done);
        let inner = future::poll_fn(move |cx| {
            cx.waker().wake_by_ref();
            if done.load(Ordering::Relaxed) { Poll::Ready(()) } else { Poll::Pending }
        });
        runtime.spawn(inner.traced("inner").traced("outer"));
    }
    for _ in 0..50 {
        let timeline = stop(start());
        assert_nested(&timeline);
        let polls = polls(&timeline);
        let (inner, outer) = (poll_count(&timeline, "inner"), poll_count(&timeline, "outer"));
        // Per worker: one poll cut by the start of the window, one by overwriting, and one in
        // progress.
        assert!(inner.abs_diff(outer) <= 3 * 2, "{inner} in {outer} of {}", polls.len());
    }
    done.store(true, Ordering::Relaxed);
    configure(TraceMode::OnDemand, MIB, WINDOW);
}

#[test]
fn workers_of_several_runtimes_are_distinguished() {
    let _serial = serial_guard();
    configure(TraceMode::OnDemand, MIB, WINDOW);
    let runtimes = [runtime(1), runtime(1)];
    let session = start();
    for (runtime, name) in runtimes.iter().zip(["of the first", "of the second"]) {
        let work = async {
            for _ in 0..5 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        };
        runtime.block_on(runtime.spawn(work.traced(name))).unwrap();
    }
    let timeline = stop(session);
    let polled_on = |name: &str| {
        let threads = timeline.activity.threads.iter().zip(slices(&timeline));
        let on: Vec<_> = threads
            .filter(|(_, (_, slices))| slices.iter().any(|slice| slice.name == name))
            .map(|(thread, _)| timeline.strings.get(thread.name))
            .collect();
        assert_eq!(on.len(), 1, "{name}: {on:?}");
        on[0].to_owned()
    };
    let [first, second] = ["of the first", "of the second"].map(polled_on);
    let runtime = |thread: &str| thread.split_once(" (runtime ").map(|(_, n)| n.to_owned());
    assert!(runtime(&first).is_some() && runtime(&second).is_some(), "{first}, {second}");
    assert_ne!(runtime(&first), runtime(&second));
}

/// An executor as libraries such as hyper define it.
trait Executor<F> {
    fn execute(&self, future: F);
}

struct Wrapping;

impl<F: Future<Output = ()> + Send + 'static> Executor<F> for Wrapping {
    fn execute(&self, future: F) {
        drop(task::spawn(future));
    }
}

#[test]
fn library_tasks_are_recorded_with_wrapping_executor() {
    let _serial = serial_guard();
    configure(TraceMode::OnDemand, MIB, WINDOW);
    let runtime = runtime(2);
    let session = start();
    runtime.block_on(async {
        let (done, mut all_done) = tokio::sync::mpsc::channel::<()>(1);
        for _ in 0..3 {
            let done = done.clone();
            Wrapping.execute(async move {
                yield_times(4).await;
                drop(done);
            });
        }
        drop(done);
        assert!(all_done.recv().await.is_none());
    });
    drop(runtime);
    let timeline = stop(session);
    assert_eq!(polls(&timeline).len(), 3 * 5);
    let names: HashSet<String> = polls(&timeline).into_iter().map(|poll| poll.name).collect();
    assert_eq!(names.len(), 1, "{names:?}");
}
