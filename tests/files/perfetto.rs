//! Traces as read by Perfetto's own schema and by trace_processor.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use marple::internals::base::{Moment, TimeAnchor};
use marple::internals::codec::perfetto;
use marple::internals::model::{
    ArgValue, EventKind, Timeline, TimelineEvent, TrackHandle, TrackKind,
};
use proptest::prelude::*;
use serde_json::Value;

use crate::support::peers;

const START: u64 = 5_000_000_000;

/// Builds a timeline with these tracks:
///
/// * a nested and a following slice on one thread, and an unfinished slice on another,
/// * a slice on a named track of the process, two counters and an instant,
/// * losses.
fn timeline() -> Timeline {
    let anchor = TimeAnchor {
        moment: Moment::from_nanos(START),
        wall: "2026-11-23T02:57:33.123456789Z".parse().unwrap(),
        suspended: Duration::from_secs(70),
    };
    let mut timeline = Timeline::new(anchor, 4242, "orders");
    let worker = timeline.add_track(TrackKind::Thread(4243), "worker-0");
    let other = timeline.add_track(TrackKind::Thread(4244), "worker-1");
    let agent = timeline.add_track(TrackKind::Process, "incidents");
    let memory = timeline.add_counter("memory.rss", "bytes");
    let lag = timeline.add_counter("runtime.lag", "seconds");
    let mut add = |track, at, kind, category, args: &[(&str, Arg<'_>)]| {
        push(&mut timeline, track, at, kind, category, args);
    };
    add(worker, 100, Kind::Begin("request"), "span", &[("path", Arg::Text("/pay"))]);
    add(worker, 150, Kind::Begin("query"), "span", &[("rows", Arg::Number(0))]);
    add(worker, 300, Kind::End, "", &[]);
    add(worker, 300, Kind::Begin("render"), "span", &[]);
    add(worker, 300, Kind::Instant("retry"), "event", &[("attempt", Arg::Number(u64::MAX))]);
    add(worker, 400, Kind::End, "", &[]);
    add(worker, 500, Kind::End, "", &[]);
    add(worker, 500, Kind::Begin("request"), "span", &[]);
    add(worker, 600, Kind::End, "", &[]);
    add(other, 120, Kind::End, "", &[]);
    add(other, 130, Kind::Begin("park"), "runtime", &[]);
    add(agent, 50, Kind::Begin("rule: memory"), "marple", &[]);
    add(agent, 650, Kind::End, "", &[]);
    add(memory, 90, Kind::Counter(1048576.0), "vitals", &[]);
    add(memory, 590, Kind::Counter(0.0), "vitals", &[]);
    add(lag, 95, Kind::Counter(0.25), "vitals", &[]);
    add(lag, 96, Kind::Counter(f64::NAN), "vitals", &[]);
    timeline.losses.add("events dropped: buffer full", 17);
    timeline
}

enum Kind<'a> {
    Begin(&'a str),
    End,
    Instant(&'a str),
    Counter(f64),
}

enum Arg<'a> {
    Text(&'a str),
    Number(u64),
}

fn push(
    timeline: &mut Timeline,
    track: TrackHandle,
    at: u64,
    kind: Kind<'_>,
    category: &str,
    args: &[(&str, Arg<'_>)],
) {
    let strings = &mut timeline.strings;
    let kind = match kind {
        Kind::Begin(name) => EventKind::Begin(strings.intern(name)),
        Kind::End => EventKind::End,
        Kind::Instant(name) => EventKind::Instant(strings.intern(name)),
        Kind::Counter(value) => EventKind::Counter(value),
    };
    let category = strings.intern(category);
    let mut arg = |(name, value): &(&str, Arg<'_>)| {
        let value = match value {
            Arg::Text(text) => ArgValue::Text(strings.intern(text)),
            Arg::Number(number) => ArgValue::Number(*number),
        };
        (strings.intern(name), value)
    };
    let args = args.iter().map(&mut arg).collect();
    let at = Moment::from_nanos(START + at);
    timeline.events.push(TimelineEvent { at, track, kind, category, args });
}

fn write(dir: &tempfile::TempDir, timeline: &Timeline) -> PathBuf {
    let path = dir.path().join("a.runtime.trace");
    perfetto::write(timeline, File::create(&path).unwrap()).unwrap();
    path
}

fn decode(timeline: &Timeline) -> Vec<Value> {
    let dir = tempfile::tempdir().unwrap();
    let path = write(&dir, timeline);
    let lines = peers::python("perfetto_decode.py", &[path.to_str().unwrap()]);
    lines.lines().map(|line| serde_json::from_str(line).unwrap()).collect()
}

#[test]
fn perfetto_schema_has_every_field() {
    let packets = decode(&timeline());

    let first = &packets[0];
    assert_eq!(first["sequence_flags"], 1);
    assert_eq!(first["first_packet_on_sequence"], true);
    assert_eq!(first["trace_packet_defaults"]["timestamp_clock_id"], 3);
    let snapshot = &first["clock_snapshot"];
    assert_eq!(snapshot["primary_trace_clock"], "BUILTIN_CLOCK_MONOTONIC");
    let clocks: BTreeMap<u64, &str> = snapshot["clocks"]
        .as_array()
        .unwrap()
        .iter()
        .map(|clock| (clock["clock_id"].as_u64().unwrap(), clock["timestamp"].as_str().unwrap()))
        .collect();
    let wall: Timestamp = "2026-11-23T02:57:33.123456789Z".parse().unwrap();
    assert_eq!(clocks[&1], wall.as_nanosecond().to_string());
    assert_eq!(clocks[&3], START.to_string());
    assert_eq!(clocks[&6], (START + 70_000_000_000).to_string());

    assert!(packets.iter().all(|packet| packet["trusted_packet_sequence_id"] == 1));
    assert!(packets[1..].iter().all(|packet| packet["sequence_flags"] == 2));
    let snapshots = packets.iter().filter(|packet| !packet["clock_snapshot"].is_null());
    assert_eq!(snapshots.count(), 1);

    let tracks: Vec<&Value> =
        packets.iter().map(|packet| &packet["track_descriptor"]).filter(|t| !t.is_null()).collect();
    let process = tracks[0];
    assert_eq!(process["process"]["pid"], 4242);
    assert_eq!(process["process"]["process_name"], "orders");
    assert!(tracks[1..].iter().all(|track| track["parent_uuid"] == process["uuid"]));
    assert_eq!(tracks[1]["thread"]["tid"], "4243");
    assert_eq!(tracks[1]["thread"]["pid"], 4242);
    assert_eq!(tracks[1]["thread"]["thread_name"], "worker-0");
    assert_eq!(tracks[3]["name"], "incidents");
    assert_eq!(tracks[4]["counter"]["unit"], "UNIT_SIZE_BYTES");
    assert_eq!(tracks[5]["counter"]["unit_name"], "seconds");
    assert_eq!(tracks.len(), 6);

    let times: Vec<u64> = packets
        .iter()
        .filter_map(|packet| packet["timestamp"].as_str())
        .map(|at| at.parse().unwrap())
        .collect();
    assert!(times.is_sorted());
    assert_eq!((times[0], *times.last().unwrap()), (START + 50, START + 650));
}

#[test]
fn strings_are_interned_once_per_kind() {
    let packets = decode(&timeline());
    let mut sent = BTreeMap::<&str, Vec<&str>>::new();
    for packet in &packets {
        for kind in ["event_categories", "event_names", "debug_annotation_names"] {
            let entries = packet["interned_data"][kind].as_array();
            let names = entries.into_iter().flatten().map(|entry| entry["name"].as_str().unwrap());
            sent.entry(kind).or_default().extend(names);
        }
    }
    assert_eq!(sent["event_categories"], ["marple", "span", "runtime", "event", "marple"]);
    assert_eq!(
        sent["event_names"],
        ["rule: memory", "request", "park", "query", "render", "retry", "lost"]
    );
    assert_eq!(
        sent["debug_annotation_names"],
        [
            "path",
            "rows",
            "attempt",
            "events dropped: buffer full",
            "counter values that are not finite",
            "ends of slices that started before the recording",
        ]
    );
}

#[test]
fn trace_processor_reads_recorded_events() {
    let dir = tempfile::tempdir().unwrap();
    let results = peers::perfetto_query(
        &write(&dir, &timeline()),
        &[
            "select name, value from stats where value > 0 and severity in ('error', 'data_loss')",
            "select t.name, s.name, s.category, s.ts, s.dur, s.depth from slice s
             join thread_track tt on s.track_id = tt.id join thread t using (utid)
             order by t.name, s.ts, s.depth",
            "select p.name, p.pid, t.name, s.name, s.ts, s.dur from slice s
             join process_track t on s.track_id = t.id join process p using (upid)
             where s.name != 'lost'",
            "select t.name, t.unit, c.ts, c.value from counter c
             join process_counter_track t on c.track_id = t.id order by t.name, c.ts",
            "select s.name, a.key, a.display_value from slice s join args a using (arg_set_id)
             where a.key glob 'debug.*' order by s.ts, a.key",
            "select count(*) from slice",
            "select tid, name from thread where tid in (4243, 4244) order by tid",
        ],
    );
    let rows = |result: usize| -> Vec<Vec<&str>> {
        results[result].iter().map(|row| row.iter().map(String::as_str).collect()).collect()
    };
    assert_eq!(rows(0), Vec::<Vec<&str>>::new());
    assert_eq!(
        rows(1),
        [
            ["worker-0", "request", "span", "5000000100", "400", "0"],
            ["worker-0", "query", "span", "5000000150", "150", "1"],
            ["worker-0", "render", "span", "5000000300", "100", "1"],
            ["worker-0", "retry", "event", "5000000300", "0", "2"],
            ["worker-0", "request", "span", "5000000500", "100", "0"],
            ["worker-1", "park", "runtime", "5000000130", "-1", "0"],
        ]
    );
    assert_eq!(rows(2), [["orders", "4242", "incidents", "rule: memory", "5000000050", "600"]]);
    assert_eq!(
        rows(3),
        [
            ["memory.rss", "bytes", "5000000090", "1048576"],
            ["memory.rss", "bytes", "5000000590", "0"],
            ["runtime.lag", "seconds", "5000000095", "0.25"],
        ]
    );
    assert_eq!(
        rows(4),
        [
            ["request", "debug.path", "/pay"],
            ["query", "debug.rows", "0"],
            ["retry", "debug.attempt", "18446744073709551615"],
            ["lost", "debug.counter values that are not finite", "1"],
            ["lost", "debug.ends of slices that started before the recording", "1"],
            ["lost", "debug.events dropped: buffer full", "17"],
        ]
    );
    assert_eq!(rows(5), [["8"]]);
    assert_eq!(rows(6), [["4243", "worker-0"], ["4244", "worker-1"]]);
}

/// Writes 1000 slices on each of eight threads, nested at random and often at the same nanosecond.
/// The threads follow one another in the list. trace_processor must nest the slices of each thread
/// as a stack of open slices does.
#[test]
fn random_nested_slices_round_trip_through_trace_processor() {
    let dir = tempfile::tempdir().unwrap();
    let mut timeline = timeline();
    timeline.events.clear();
    let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
    let mut random = |below: u64| {
        seed ^= seed << 13;
        seed ^= seed >> 7;
        seed ^= seed << 17;
        seed % below
    };
    let mut expected = Vec::new();
    for thread in 0..8 {
        let track =
            timeline.add_track(TrackKind::Thread(5000 + thread), &format!("thread-{thread}"));
        let (mut at, mut begun, mut open) = (0, 0, Vec::new());
        while begun < 1000 || !open.is_empty() {
            at += random(3);
            if begun < 1000 && (open.is_empty() || random(2) == 0) {
                let name = format!("slice {}", random(100));
                push(&mut timeline, track, at, Kind::Begin(&name), "span", &[]);
                open.push((name, at));
                begun += 1;
            } else if let Some((name, since)) = open.pop() {
                push(&mut timeline, track, at, Kind::End, "", &[]);
                let (tid, depth) = (5000 + thread, open.len());
                expected.push(format!("{tid} {} {} {depth} {name}", START + since, at - since));
            }
        }
    }
    let results = peers::perfetto_query(
        &write(&dir, &timeline),
        &[
            "select name, value from stats where value > 0 and severity in ('error', 'data_loss')",
            "select t.tid, s.ts, s.dur, s.depth, s.name from slice s
             join thread_track tt on s.track_id = tt.id join thread t using (utid)",
        ],
    );
    assert_eq!(results[0], Vec::<Vec<String>>::new());
    let mut rows: Vec<String> = results[1].iter().map(|row| row.join(" ")).collect();
    rows.sort();
    expected.sort();
    assert_eq!(rows.len(), 8000);
    let differ = rows.iter().zip(&expected).find(|(seen, expected)| seen != expected);
    assert_eq!(differ, None);
}

#[test]
fn unrepresentable_events_are_counted_as_lost() {
    let mut timeline = timeline();
    timeline.events.clear();
    timeline.losses = Default::default();
    let (worker, memory, nowhere) = (TrackHandle(0), TrackHandle(3), TrackHandle(99));
    for at in 0..3 {
        push(&mut timeline, worker, at, Kind::End, "", &[]);
        push(&mut timeline, worker, at, Kind::Counter(1.0), "", &[]);
        push(&mut timeline, memory, at, Kind::Begin("a"), "", &[]);
        push(&mut timeline, memory, at, Kind::Counter(f64::INFINITY), "", &[]);
        push(&mut timeline, nowhere, at, Kind::Instant("a"), "", &[]);
    }
    let packets = decode(&timeline);
    let events: Vec<&Value> =
        packets.iter().map(|packet| &packet["track_event"]).filter(|e| !e.is_null()).collect();
    let [lost] = events[..] else { panic!("{events:?}") };
    let counts = lost["debug_annotations"].as_array().unwrap();
    assert_eq!(counts.len(), 5);
    assert!(counts.iter().all(|count| count["uint_value"] == "3"), "{counts:?}");
}

#[test]
fn failing_writer_returns_error() {
    /// A writer that accepts this many bytes, then returns 0.
    struct LimitedWriter(usize);
    impl std::io::Write for LimitedWriter {
        fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
            if self.0 == 0 {
                return Err(std::io::ErrorKind::StorageFull.into());
            }
            let accepted = bytes.len().min(self.0);
            self.0 -= accepted;
            Ok(accepted)
        }
        fn flush(&mut self) -> std::io::Result<()> {
            Ok(())
        }
    }
    let mut complete = Vec::new();
    perfetto::write(&timeline(), &mut complete).unwrap();
    for room in 0..complete.len() {
        let error = perfetto::write(&timeline(), LimitedWriter(room)).unwrap_err();
        assert_eq!(error.kind(), std::io::ErrorKind::StorageFull, "{room}");
    }
    perfetto::write(&timeline(), LimitedWriter(complete.len())).unwrap();
}

proptest! {
    #[test]
    fn arbitrary_events_can_be_written(
        events in prop::collection::vec((0..9u32, 0..100u64, 0..4, any::<f64>()), 0..100),
    ) {
        let mut timeline = timeline();
        timeline.events.clear();
        for &(track, at, kind, value) in &events {
            let kind = match kind {
                0 => Kind::Begin("a"),
                1 => Kind::End,
                2 => Kind::Instant("b"),
                _ => Kind::Counter(value),
            };
            push(&mut timeline, TrackHandle(track), at, kind, "c", &[]);
        }
        prop_assert!(perfetto::write(&timeline, std::io::sink()).is_ok());
    }
}

#[test]
fn missing_peer_error_has_install_command() {
    let empty = tempfile::tempdir().unwrap();
    let missing = peers::find(empty.path(), "venv/bin/go").unwrap_err();
    assert!(missing.contains("venv/bin/go") && missing.contains("run tests/peers/install"));
}
