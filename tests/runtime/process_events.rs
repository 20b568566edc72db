//! Tests of vitals as counters, of process events, and of the lifecycle of a session.

use std::time::Duration;

use marple::internals::base::{Bytes, Clock, Moment, SystemClock};
use marple::internals::model::{TrackKind, Vitals};
use marple::internals::trace::{Error, TraceSession, record_instant, record_vitals};

use crate::support::timeline::*;

#[test]
fn vitals_become_counters_with_given_values_and_times() {
    let _serial = serial_guard();
    let session = start();
    let t0 = SystemClock.now();
    let at = |ms| t0 + Duration::from_millis(ms);
    let full = Vitals {
        at: at(250),
        rss: Some(Bytes(4096)),
        working_set: Some(Bytes(8192)),
        cpu_cores: Some(1.5),
        tasks: Some(3),
        threads: Some(5),
        fds: Some(7),
        lag: Some(Duration::from_micros(2)),
        gauges: vec![("orders".into(), 11.0), ("bad".into(), f64::NAN)],
        ..Vitals::default()
    };
    record_vitals(&full);
    record_vitals(&Vitals { at: at(0), rss: Some(Bytes(1024)), ..Vitals::default() });
    let timeline = stop(session);

    assert_well_formed(&timeline);
    let events = read_events(&timeline);
    let counters: Vec<_> = timeline
        .tracks
        .iter()
        .enumerate()
        .filter_map(|(place, track)| {
            let TrackKind::Counter(unit) = track.kind else { return None };
            // Earlier values were kept from before the session.
            let own = |event: &&ReadEvent| event.track == place && event.at >= t0;
            let values = events.iter().filter(own).map(|event| {
                assert_eq!(event.category, "vitals");
                let Kind::Counter(value) = event.kind else { panic!("{event:?}") };
                (event.at.since(t0).as_millis(), value)
            });
            let text = |handle| timeline.strings.get(handle).to_owned();
            Some((text(track.name), text(unit), values.collect::<Vec<_>>()))
        })
        .collect();
    let expected = [
        ("rss", "bytes", vec![(0, 1024.0), (250, 4096.0)]),
        ("working set", "bytes", vec![(250, 8192.0)]),
        ("cpu", "cores", vec![(250, 1.5)]),
        ("tasks alive", "count", vec![(250, 3.0)]),
        ("threads", "count", vec![(250, 5.0)]),
        ("fds", "count", vec![(250, 7.0)]),
        ("runtime lag", "ns", vec![(250, 2000.0)]),
        ("gauge.orders", "count", vec![(250, 11.0)]),
    ]
    .map(|(name, unit, values)| (name.to_owned(), unit.to_owned(), values));
    assert_eq!(counters, expected);
    assert_eq!(loss_count(&timeline, "counter values omitted"), 1);
}

#[test]
fn instant_has_reason_on_process_track() {
    let _serial = serial_guard();
    record_instant("too early", "no session runs");
    let anchor = anchor();
    let session = TraceSession::start(Bytes::mib(1), anchor).unwrap();
    record_instant("trigger", "memory at 91.0 % of 512.0 MiB, limit 80 %");
    let end = SystemClock.now();
    let timeline = session.stop(end);
    record_instant("too late", "no session runs");

    assert_eq!(timeline.pid, std::process::id());
    let events = process_events(&timeline);
    assert_eq!(outline(&events), "recording(!trigger)");
    assert!(events.iter().all(|event| event.category == "marple"));
    assert_eq!(events[1].arg("text"), Some("memory at 91.0 % of 512.0 MiB, limit 80 %"));
    assert_eq!(events[2].at, end);
    assert_eq!(timeline.started, anchor.wall_at(events[0].at));
    assert!(timeline.losses.is_empty());
}

#[test]
fn only_one_session_records_and_drop_releases_it() {
    let _serial = serial_guard();
    let first = start();
    assert_eq!(TraceSession::start(Bytes::mib(1), anchor()).unwrap_err(), Error::Busy);
    record_instant("kept", "");
    assert_eq!(outline(&process_events(&stop(first))), "recording(!kept)");

    let second = start();
    record_instant("thrown away", "");
    drop(second);
    let third = start();
    assert_eq!(outline(&process_events(&stop(third))), "recording()");
}

#[test]
fn too_small_max_bytes_is_rejected() {
    let _serial = serial_guard();
    let error = TraceSession::start(Bytes::kib(63), anchor()).unwrap_err().to_string();
    assert!(error.contains("63.0 KiB") && error.contains("64.0 KiB"), "{error}");
    TraceSession::start(Bytes::kib(64), anchor()).unwrap().stop(Moment::default());
}

#[test]
fn vitals_beyond_process_event_memory_are_counted_lost() {
    let _serial = serial_guard();
    let session = TraceSession::start(Bytes::kib(64), anchor()).unwrap();
    let began = SystemClock.now();
    for fds in 0..1000 {
        record_vitals(&Vitals { at: SystemClock.now(), fds: Some(fds), ..Vitals::default() });
    }
    let timeline = stop(session);
    let own = |event: &&ReadEvent| matches!(event.kind, Kind::Counter(_)) && event.at >= began;
    let kept = read_events(&timeline).iter().filter(own).count() as u64;
    let loss_count = loss_count(&timeline, "vitals and instants dropped");
    assert!(kept > 0 && loss_count > 0);
    assert_eq!(kept + loss_count, 1000);
}
