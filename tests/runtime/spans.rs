//! Tests that spans and events become slices and instants.

use std::future::poll_fn;
use std::sync::Once;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::task::Poll;

use marple::internals::base::Clock;
use marple::internals::model::{Timeline, TrackKind};
use tracing::{Instrument, info, info_span};
use tracing_subscriber::prelude::*;

use crate::support::timeline::*;

fn subscribe() {
    static SUBSCRIBED: Once = Once::new();
    SUBSCRIBED.call_once(|| tracing_subscriber::registry().with(marple::trace::layer()).init());
}

/// Returns the events of the calling thread in a session around `work`.
fn record_session(work: impl FnOnce()) -> (Timeline, Vec<ReadEvent>) {
    subscribe();
    let session = start();
    work();
    let timeline = stop(session);
    assert_well_formed(&timeline);
    let events = current_thread_events(&timeline);
    (timeline, events)
}

#[test]
fn task_spans_nest_with_fields_on_polling_workers() {
    const TASKS: usize = 64;
    const POLLS: usize = 5;
    let _serial = serial_guard();
    subscribe();
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(4)
        .thread_name("weaver")
        .build()
        .unwrap();
    let polls = AtomicUsize::new(0);
    let polls: &'static AtomicUsize = Box::leak(Box::new(polls));

    let session = start();
    runtime.block_on(async {
        let tasks = (0..TASKS).map(|task| {
            let mut remaining = POLLS;
            let work = poll_fn(move |cx| {
                polls.fetch_add(1, Ordering::Relaxed);
                remaining -= 1;
                info_span!("step", remaining).in_scope(|| info!(task, "stepping"));
                if remaining == 0 {
                    return Poll::Ready(());
                }
                cx.waker().wake_by_ref();
                Poll::Pending
            });
            tokio::spawn(work.instrument(info_span!("request", task, path = %"/orders")))
        });
        for task in tasks.collect::<Vec<_>>() {
            task.await.unwrap();
        }
    });
    let timeline = stop(session);
    drop(runtime);

    assert_well_formed(&timeline);
    assert!(timeline.losses.is_empty(), "{:?}", timeline.losses);
    assert_eq!(polls.load(Ordering::Relaxed), TASKS * POLLS);
    let mut steps = vec![Vec::new(); TASKS];
    for events in thread_events(&timeline) {
        let track = timeline.events.iter().find(|e| e.track.index() == events[0].track).unwrap();
        assert!(
            matches!(timeline.tracks[track.track.index()].kind, TrackKind::Thread(tid) if tid != 0)
        );
        assert_eq!(track_name(&timeline, track.track), "weaver");
        let mut open: Vec<ReadEvent> = Vec::new();
        for event in events {
            match event.kind {
                Kind::Begin => {
                    assert_eq!(event.category, "span");
                    assert_eq!(event.arg("level"), Some("INFO"));
                    assert_eq!(event.arg("target"), Some(module_path!()));
                    if event.name == "request" {
                        assert!(open.is_empty());
                        assert_eq!(event.arg("path"), Some("/orders"));
                    }
                    open.push(event);
                }
                Kind::End => drop(open.pop()),
                Kind::Instant => {
                    let [request, step] = &open[..] else { panic!("{event:?} lies in {open:?}") };
                    assert_eq!((&*request.name, &*step.name), ("request", "step"));
                    assert_eq!((&*event.name, &*event.category), ("stepping", "event"));
                    assert_eq!(event.arg("task"), request.arg("task"));
                    let task: usize = request.arg("task").unwrap().parse().unwrap();
                    let remaining: usize = step.arg("remaining").unwrap().parse().unwrap();
                    steps[task].push((event.at, remaining));
                }
                Kind::Counter(_) => panic!("a counter on a thread: {event:?}"),
            }
        }
        assert!(open.is_empty());
    }
    for mut steps in steps {
        steps.sort();
        let remaining: Vec<_> = steps.into_iter().map(|(_, left)| left).collect();
        assert_eq!(
            remaining,
            (0..POLLS).rev().collect::<Vec<_>>(),
            "a task's steps, in time, on any worker"
        );
    }
}

#[test]
fn spans_open_at_session_start_begin_there() {
    let _serial = serial_guard();
    subscribe();
    let (outer, inner) = (info_span!("outer", n = 1), info_span!("inner"));
    let outer = outer.enter();
    let inner = inner.enter();
    let (timeline, events) = record_session(|| {
        info!("within");
        drop(inner);
        info_span!("second").in_scope(|| ());
        drop(outer);
        info!("after");
    });
    assert_eq!(outline(&events), "outer(inner(!within)second())!after");
    let started = timeline.events[0].at;
    assert_eq!([events[0].at, events[1].at], [started; 2]);
    assert_eq!(
        events[0].arg("n"),
        None,
        "fields of a span made while nothing records are not kept"
    );
    assert_eq!(events[0].arg("target"), Some(module_path!()));
}

#[test]
fn spans_open_at_stop_have_no_end() {
    let _serial = serial_guard();
    subscribe();
    let span = info_span!("going on");
    let mut entered = None;
    let (_, events) = record_session(|| {
        entered = Some(span.enter());
        info!("within");
    });
    assert_eq!(outline(&events), "going on(!within");
}

#[test]
fn spans_exited_out_of_order_keep_their_times() {
    let _serial = serial_guard();
    let (_, events) = record_session(|| {
        let (a, b, c) = (info_span!("a"), info_span!("b"), info_span!("c"));
        let a = a.enter();
        let b = b.enter();
        let c = c.enter();
        drop(a);
        info!("without a");
        drop(c);
        drop(b);
    });
    assert_eq!(outline(&events), "a(b(c()))b(c(!without a))");
}

#[test]
fn fields_recorded_later_apply_onward_and_in_next_session() {
    let _serial = serial_guard();
    subscribe();
    let mut span = None;
    let (_, events) = record_session(|| {
        let made = info_span!("request", path = "/", status = tracing::field::Empty);
        made.in_scope(|| ());
        made.record("status", 200);
        made.in_scope(|| ());
        span = Some(made);
    });
    let status: Vec<_> = events.iter().filter(|event| event.kind == Kind::Begin).collect();
    assert_eq!(
        status.iter().map(|event| event.arg("status")).collect::<Vec<_>>(),
        [None, Some("200")]
    );
    assert!(status.iter().all(|event| event.arg("path") == Some("/")));

    let (_, events) = record_session(|| span.unwrap().in_scope(|| ()));
    assert_eq!((events[0].arg("path"), events[0].arg("status")), (Some("/"), Some("200")));
}

#[test]
fn panicking_or_tracing_debug_field_does_no_harm() {
    struct PanickingDebug;
    impl std::fmt::Debug for PanickingDebug {
        fn fmt(&self, _: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            std::panic::resume_unwind(Box::new("a bad Debug"))
        }
    }
    struct TracingDebug;
    impl std::fmt::Debug for TracingDebug {
        fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
            info!("formatting");
            f.write_str("chatty")
        }
    }
    let _serial = serial_guard();
    let (_, events) = record_session(|| {
        info!(bad = ?PanickingDebug, fine = 7, "one");
        info!(chatty = ?TracingDebug, "two");
    });
    assert_eq!(outline(&events), "!one!formatting!two");
    assert_eq!(events[0].arg("bad"), Some("(formatting panicked)"));
    assert_eq!(events[0].arg("fine"), Some("7"));
    assert_eq!(events[2].arg("chatty"), Some("chatty"));
}

#[test]
fn slices_beyond_max_depth_are_counted() {
    fn descend(levels: usize) {
        if levels > 0 {
            info_span!("level").in_scope(|| descend(levels - 1));
        }
    }
    const DEPTH: usize = 128;
    let _serial = serial_guard();
    for (levels, lost_levels) in [(DEPTH - 1, 0), (DEPTH, 0), (DEPTH + 1, 1)] {
        let (timeline, events) = record_session(|| descend(levels));
        let kept = levels - lost_levels;
        assert_eq!(outline(&events), "level(".repeat(kept) + &")".repeat(kept));
        assert_eq!(
            loss_count(&timeline, "trace events dropped: slices nested"),
            2 * lost_levels as u64
        );
    }
}

#[test]
fn session_has_only_its_own_events() {
    let _serial = serial_guard();
    subscribe();
    info!("before");
    let before = marple::internals::base::SystemClock.now();
    let (timeline, events) = record_session(|| info!("during"));
    info!("after");
    assert_eq!(outline(&events), "!during");
    assert!(timeline.events.iter().all(|event| event.at >= before));
}
