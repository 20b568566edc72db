//! Polls and parks as read by Perfetto's own schema and by trace_processor.

use std::collections::BTreeMap;
use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use marple::internals::base::{Bytes, Moment, TimeAnchor};
use marple::internals::codec::perfetto;
use marple::internals::model::{
    Activity, Calibration, OpenSlice, RawKind, RawSlice, RawTask, TaskKey, ThreadSlices, Timeline,
    TraceMode, TrackKind,
};
use marple::internals::trace::configure;
use marple::task::{self, Trace};
use tokio::runtime::Builder;

use crate::support::peers;
use crate::support::timeline::*;

const NO_ROWS: Vec<Vec<String>> = Vec::new();

const STATS: &str =
    "select name, value from stats where value > 0 and severity in ('error', 'data_loss')";

const SLICES: &str = "select t.tid, s.ts, s.dur, s.depth, s.name, s.category, s.parent_id is null
    from slice s join thread_track tt on s.track_id = tt.id join thread t using (utid)
    where s.category in ('task', 'runtime')";

fn write(dir: &tempfile::TempDir, timeline: &Timeline) -> PathBuf {
    let path = dir.path().join("a.runtime.trace");
    perfetto::write(timeline, File::create(&path).unwrap()).unwrap();
    path
}

/// Builds a timeline of a thread whose ticks are nanoseconds, and whose trace begins at 1000:
///
/// * a park from before the trace,
/// * a poll with another in it, one that touches it, two that overlap, and two still in progress,
/// * a task that is spawned and ends.
fn handmade_timeline() -> Timeline {
    let anchor = TimeAnchor {
        moment: Moment::from_nanos(5000),
        wall: Timestamp::UNIX_EPOCH,
        suspended: Duration::ZERO,
    };
    let mut timeline = Timeline::new(anchor, 4242, "orders");
    let key = |site, number| TaskKey { site, number };
    let slice = |kind, start, end, task| RawSlice::new(kind, start, end, task);
    let sites = ["task", "src/main.rs:7", "reader"].map(|site| timeline.strings.intern(site));
    let name = timeline.strings.intern("worker #0");
    timeline.activity = Activity {
        calibration: Calibration::new([0, 10_000].map(|at| (at, Moment::from_nanos(at)))),
        start: Moment::from_nanos(1000),
        threads: vec![ThreadSlices {
            tid: 4243,
            name,
            slices: vec![
                slice(RawKind::HookedPoll, 500, 900, key(1, 3)),
                slice(RawKind::Park, 900, 1200, TaskKey::default()),
                slice(RawKind::WrappedPoll, 1300, 1400, key(2, 8)),
                slice(RawKind::HookedPoll, 1200, 1500, key(1, 5)),
                slice(RawKind::HookedPoll, 1500, 1500, key(1, 6)),
                slice(RawKind::HookedPoll, 1500, 1700, key(0, 7)),
                // Overlapping polls, as the unsynchronized counters of two cores can produce.
                slice(RawKind::HookedPoll, 1700, 1750, key(0, 7)),
                slice(RawKind::HookedPoll, 1745, 1790, key(0, 7)),
            ],
            open: vec![
                OpenSlice { kind: RawKind::HookedPoll, start: 1800, task: key(1, 5) },
                OpenSlice { kind: RawKind::WrappedPoll, start: 1900, task: key(2, 8) },
            ],
        }],
        tasks: vec![
            RawTask::new(RawKind::Spawned, 1150, key(2, 8)),
            RawTask::new(RawKind::Ended, 1950, key(2, 8)),
        ],
        sites: sites.to_vec(),
    };
    let spans = timeline.add_track(TrackKind::Thread(4243), "worker");
    let [name, category] = ["request", "span"].map(|text| timeline.strings.intern(text));
    for (at, kind) in [
        (1250, marple::internals::model::EventKind::Begin(name)),
        (1600, marple::internals::model::EventKind::End),
    ] {
        let at = Moment::from_nanos(at);
        let args = Vec::new();
        timeline.events.push(marple::internals::model::TimelineEvent {
            at,
            track: spans,
            kind,
            category,
            args,
        });
    }
    timeline
}

#[test]
fn polls_and_parks_appear_on_thread_track() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(&dir, &handmade_timeline());
    let results = peers::perfetto_query(
        &path,
        &[
            STATS,
            &format!("{SLICES} order by s.ts, s.depth, s.dur"),
            "select s.name, a.key, a.display_value from slice s join args a using (arg_set_id)
             where a.key glob 'debug.*' and a.key != 'debug.task' order by s.ts, a.key",
            "select t.name, s.name, s.ts, a.display_value from slice s join process_track t
             on s.track_id = t.id join args a using (arg_set_id)
             where a.key = 'debug.task' order by s.ts",
            "select t.name, p.name, s.name, s.ts, s.dur from slice s join track t
             on s.track_id = t.id left join track p on t.parent_id = p.id where s.category = 'span'",
            "select name, tid from thread where tid = 4243",
        ],
    );
    let rows = |result: usize| -> Vec<String> {
        results[result].iter().map(|row| row.join(" ")).collect()
    };
    assert_eq!(results[0], NO_ROWS);
    assert_eq!(
        rows(1),
        [
            "4243 1000 200 0 parked runtime 1",
            "4243 1200 300 0 src/main.rs:7 task 1",
            "4243 1300 100 1 reader task 0",
            // A poll of zero duration may sort before or inside a slice that starts at the same
            // time.
            "4243 1500 200 0 task task 1",
            "4243 1500 0 1 src/main.rs:7 task 0",
            "4243 1700 50 0 task task 1",
            "4243 1750 40 0 task task 1",
            "4243 1800 -1 0 src/main.rs:7 task 1",
            "4243 1900 -1 1 reader task 0",
        ]
    );
    assert_eq!(
        rows(2),
        [
            "parked debug.ns before the trace 100",
            "src/main.rs:7 debug.in progress at the end of the trace 1",
            "reader debug.in progress at the end of the trace 1",
        ]
    );
    assert_eq!(rows(3), ["tasks spawned reader 1150 8", "tasks ended reader 1950 8"]);
    assert_eq!(rows(4).len(), 1);
    assert!(
        rows(4)[0].starts_with("spans ") && rows(4)[0].ends_with(" request 1250 350"),
        "{:?}",
        rows(4)
    );
    assert_eq!(rows(5), ["worker #0 4243"]);
}

/// Rounding the duration of a 1000 s poll removes a quarter of a millisecond.
#[test]
fn long_poll_encloses_its_spans() {
    let dir = tempfile::tempdir().unwrap();
    let mut timeline = handmade_timeline();
    let key = |number| TaskKey { site: 1, number };
    let end = 2001 + (1 << 40) + (1 << 18) - 1;
    let long = RawSlice::new(RawKind::HookedPoll, 2001, end, key(1));
    let start = long.start();
    assert!(start > 200_000);
    timeline.activity.threads[0].open.clear();
    timeline.activity.threads[0].slices = vec![
        RawSlice::new(RawKind::WrappedPoll, 2050, 2060, key(2)),
        RawSlice::new(RawKind::WrappedPoll, 2040, start + 5, key(2)),
        RawSlice::new(RawKind::WrappedPoll, start + 100, start + 300, key(2)),
        long,
    ];
    let query = format!("{SLICES} order by s.ts, s.depth, s.dur");
    let results = peers::perfetto_query(&write(&dir, &timeline), &[STATS, &query]);
    assert_eq!(results[0], NO_ROWS);
    let rows: Vec<String> = results[1].iter().map(|row| row[1..4].join(" ")).collect();
    // Inner slices that start before the rounded start of the poll are moved to it.
    assert_eq!(
        rows,
        [
            format!("{start} {} 0", end - start),
            format!("{start} 5 1"),
            format!("{start} 0 2"),
            format!("{} 200 1", start + 100),
        ]
    );
}

#[test]
fn perfetto_schema_has_every_poll_field() {
    let dir = tempfile::tempdir().unwrap();
    let path = write(&dir, &handmade_timeline());
    let packets = peers::python("perfetto_decode.py", &[path.to_str().unwrap()]);
    let polls =
        packets.lines().filter(|packet| packet.contains("\"trusted_packet_sequence_id\": 2"));
    // Expected packets: one descriptor, nine begins and seven ends.
    assert_eq!(polls.count(), 17);
}

/// Two workers poll tasks that yield and sleep, and the rings are read meanwhile.
#[test]
fn slices_match_polls_and_parks_of_window() {
    let dir = tempfile::tempdir().unwrap();
    configure(TraceMode::Always, Bytes::mib(16), Duration::from_secs(30));
    let runtime = marple::instrument_runtime(&mut Builder::new_multi_thread())
        .worker_threads(2)
        .enable_all()
        .build()
        .unwrap();
    async fn work() {
        for round in 0..200 {
            tokio::task::yield_now().traced("yield").await;
            if round % 20 == 0 {
                tokio::time::sleep(Duration::from_millis(1)).await;
            }
        }
    }
    let all = || async {
        let tasks: Vec<_> = (0..8).map(|_| task::spawn(work())).collect();
        for task in tasks {
            task.await.unwrap();
        }
    };
    runtime.block_on(all());
    let session = start();
    runtime.block_on(all());
    let timeline = stop(session);
    drop(runtime);

    let results = peers::perfetto_query(&write(&dir, &timeline), &[STATS, SLICES]);
    assert_eq!(results[0], NO_ROWS);
    let mut expected: Vec<String> = Vec::new();
    let from = timeline.activity.start;
    for (tid, slices) in slices(&timeline) {
        for slice in slices {
            let Some(end) = slice.end else { continue };
            let start = slice.start.max(from);
            let duration = end.since(start).as_nanos();
            expected.push(format!("{tid} {} {duration} {}", start.as_nanos(), slice.name));
        }
    }
    let ended = results[1].iter().filter(|row| row[2] != "-1");
    let mut rows: Vec<String> =
        ended.map(|row| [&row[..3], &row[4..5]].concat().join(" ")).collect();
    rows.sort();
    expected.sort();
    assert_eq!(rows.len(), expected.len());
    assert_eq!(rows.iter().zip(&expected).find(|(seen, expected)| seen != expected), None);

    let mut names: BTreeMap<&str, usize> = BTreeMap::new();
    for row in &results[1] {
        *names.entry(&row[4]).or_default() += 1;
    }
    assert!(names["parked"] > 0);
    assert_eq!(names["yield"], 2 * 8 * 200 * 2, "polled twice each, in two rounds");
    let inner = results[1].iter().filter(|row| row[4] == "yield");
    assert!(inner.clone().all(|row| row[3] == "1" && row[6] == "0"), "inside their tasks' polls");
}
