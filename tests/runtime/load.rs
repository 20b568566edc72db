//! Tests under load: event floods, many threads, sessions that start and stop, and threads that
//! exit.

use std::cell::RefCell;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Barrier, Once};
use std::thread;

use marple::internals::base::{Bytes, Clock, SystemClock};
use marple::internals::model::{Timeline, TrackKind, Vitals};
use marple::internals::trace::{TraceSession, record_vitals};
use tracing::{info, info_span};
use tracing_subscriber::prelude::*;

use crate::support::timeline::*;

const DROPPED: &str = "trace events dropped";

fn subscribe() {
    static SUBSCRIBED: Once = Once::new();
    SUBSCRIBED.call_once(|| tracing_subscriber::registry().with(marple::trace::layer()).init());
}

/// Returns the number of events on thread tracks.
fn recorded_event_count(timeline: &Timeline) -> u64 {
    let on_thread = |track: usize| matches!(timeline.tracks[track].kind, TrackKind::Thread(_));
    timeline.events.iter().filter(|event| on_thread(event.track.index())).count() as u64
}

#[test]
fn event_flood_counts_losses_exactly_and_keeps_vitals() {
    const THREADS: u64 = 8;
    const ROUNDS: u64 = 5_000;
    const TICKS: u64 = 100;
    let _serial = serial_guard();
    subscribe();
    for max_bytes in [Bytes::kib(64), Bytes::mib(1), Bytes::mib(64)] {
        let session = TraceSession::start(max_bytes, anchor()).unwrap();
        let began = SystemClock.now();
        thread::scope(|scope| {
            for _ in 0..THREADS {
                scope.spawn(|| {
                    for round in 0..ROUNDS {
                        info_span!("flood", round).in_scope(|| info!("drop {}", round % 7));
                    }
                });
            }
        });
        let ticks = if max_bytes == Bytes::kib(64) { 0 } else { TICKS };
        for tick in 0..ticks {
            record_vitals(&Vitals { at: SystemClock.now(), fds: Some(tick), ..Vitals::default() });
        }
        let timeline = stop(session);

        assert_well_formed(&timeline);
        let (recorded, loss_count) =
            (recorded_event_count(&timeline), loss_count(&timeline, DROPPED));
        assert_eq!(
            recorded + loss_count,
            3 * THREADS * ROUNDS,
            "{max_bytes}: {:?}",
            timeline.losses
        );
        assert_eq!(loss_count == 0, max_bytes == Bytes::mib(64), "{max_bytes} lost {loss_count}");
        assert!(recorded > 0);
        let own = |event: &&ReadEvent| matches!(event.kind, Kind::Counter(_)) && event.at >= began;
        let counted = read_events(&timeline).iter().filter(own).count();
        assert_eq!(counted as u64, ticks);
        for events in thread_events(&timeline) {
            let outline = outline(&events);
            let complete_part = outline.trim_end_matches("flood()");
            let depth = complete_part.matches('(').count() - complete_part.matches(')').count();
            assert_eq!(depth, 0, "a recorded slice that ended is seen to end");
        }
    }
}

#[test]
fn thousand_ended_threads_keep_their_tracks() {
    const THREADS: usize = 1000;
    let _serial = serial_guard();
    subscribe();
    let session = start();
    for thread in 0..THREADS {
        let name = format!("brief-{thread}");
        let work = move || info_span!("brief", thread).in_scope(|| info!("hello"));
        thread::Builder::new().name(name).spawn(work).unwrap().join().unwrap();
    }
    let timeline = stop(session);

    assert!(timeline.losses.is_empty(), "{:?}", timeline.losses);
    let tracks = thread_events(&timeline);
    assert_eq!(tracks.len(), THREADS);
    for (thread, events) in tracks.iter().enumerate() {
        assert_eq!(outline(events), "brief(!hello)");
        assert_eq!(events[0].arg("thread"), Some(&*thread.to_string()));
        let track = &timeline.tracks[events[0].track];
        assert_eq!(timeline.strings.get(track.name), format!("brief-{thread}"));
    }
}

#[test]
fn threads_beyond_memory_limit_are_counted() {
    const THREADS: u64 = 100;
    let _serial = serial_guard();
    subscribe();
    let session = TraceSession::start(Bytes::kib(64), anchor()).unwrap();
    for _ in 0..THREADS {
        thread::spawn(|| info_span!("brief").in_scope(|| info!("hello"))).join().unwrap();
    }
    let timeline = stop(session);
    assert!(loss_count(&timeline, DROPPED) > 0 && recorded_event_count(&timeline) > 0);
    assert_eq!(recorded_event_count(&timeline) + loss_count(&timeline, DROPPED), 3 * THREADS);
}

/// Sets the flag on drop, so that a failing assertion ends the other threads too.
struct SetOnDrop<'a>(&'a AtomicBool);

impl Drop for SetOnDrop<'_> {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
    }
}

#[test]
fn consecutive_sessions_under_load_are_each_complete() {
    const SESSIONS: usize = 100;
    const THREADS: usize = 4;
    const ROUND: &str = "outer(inner(!work))";
    let _serial = serial_guard();
    subscribe();
    let done = AtomicBool::new(false);
    let rounds: [AtomicU64; THREADS] = Default::default();
    let started = Barrier::new(THREADS + 1);
    thread::scope(|scope| {
        for rounds in &rounds {
            let (done, started) = (&done, &started);
            scope.spawn(move || {
                started.wait();
                while !done.load(Ordering::Relaxed) {
                    info_span!("outer").in_scope(|| {
                        info_span!("inner").in_scope(|| info!("work"));
                    });
                    rounds.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        let _done = SetOnDrop(&done);
        started.wait();
        let mut tracks = 0;
        for n in 0..SESSIONS {
            let session = TraceSession::start(Bytes::mib(1), anchor()).unwrap();
            let before = rounds.each_ref().map(|rounds| rounds.load(Ordering::Relaxed));
            let worked = || {
                let now = rounds.iter().map(|rounds| rounds.load(Ordering::Relaxed));
                now.zip(before).any(|(now, before)| now >= before + 2)
            };
            while !worked() {
                thread::yield_now();
            }
            if n % 10 == 9 {
                drop(session);
                continue;
            }
            let timeline = stop(session);
            assert_well_formed(&timeline);
            for events in thread_events(&timeline) {
                tracks += 1;
                let outline = outline(&events);
                // The remaining events were cut by the start of the session, by its stop, or by the
                // end of its memory.
                let cut = outline.replace(ROUND, "");
                assert!(cut.len() <= 2 * ROUND.len(), "session {n}: {cut}");
            }
        }
        assert!(tracks >= SESSIONS * 9 / 10, "{tracks} tracks in {SESSIONS} sessions");
    });
}

/// Emits an event when its thread's local storage is destroyed.
struct EventOnThreadExit;

impl Drop for EventOnThreadExit {
    fn drop(&mut self) {
        info!("last words");
    }
}

thread_local! {
    static EVENT_ON_EXIT: RefCell<Option<EventOnThreadExit>> = const { RefCell::new(None) };
}

#[test]
fn events_from_thread_local_destructors_are_recorded_or_counted() {
    let _serial = serial_guard();
    subscribe();
    let arm = || EVENT_ON_EXIT.with(|words| *words.borrow_mut() = Some(EventOnThreadExit));
    let session = start();
    // Destructors run in the reverse order of first use: armed first, this value outlives the log.
    thread::spawn(move || {
        arm();
        info!("armed");
    })
    .join()
    .unwrap();
    thread::spawn(move || {
        info!("arming");
        arm();
    })
    .join()
    .unwrap();
    let timeline = stop(session);

    let outlines: Vec<_> = thread_events(&timeline).iter().map(|events| outline(events)).collect();
    let recorded_events = outlines.concat().matches("!last words").count() as u64;
    let loss_count =
        loss_count(&timeline, "trace events dropped: emitted after the thread's local storage");
    assert_eq!(recorded_events + loss_count, 2, "{outlines:?} {:?}", timeline.losses);
    assert_eq!(loss_count, 1, "the test means to see both: {outlines:?}");
}
