//! Stacks in a trace as read by Perfetto's own schema and by trace_processor.

use std::fs::File;
use std::path::PathBuf;
use std::time::Duration;

use jiff::Timestamp;
use marple::internals::base::{Moment, TimeAnchor};
use marple::internals::codec::perfetto::{self, Stacks};
use marple::internals::model::{
    Activity, Calibration, EventKind, Function, Line, Mapping, Profile, RawKind, RawSlice, Sample,
    TaskKey, ThreadDump, ThreadRow, ThreadSlices, TimedSample, Timeline, TimelineEvent, TrackKind,
    ValueType,
};

use crate::support::peers;

const STATS: &str =
    "select name, value from stats where value > 0 and severity in ('error', 'data_loss')";

const CPU: ValueType = ValueType { name: "cpu", unit: "nanoseconds" };

const START: u64 = 1_000_000_000;

fn moment(nanos: u64) -> Moment {
    Moment::from_nanos(START + nanos)
}

/// Builds a timeline of a worker with polls and a thread with a span. A third thread has no events.
fn timeline() -> Timeline {
    let anchor =
        TimeAnchor { moment: moment(0), wall: Timestamp::UNIX_EPOCH, suspended: Duration::ZERO };
    let mut timeline = Timeline::new(anchor, 4242, "orders");
    let [site, name] = ["server", "worker #0"].map(|text| timeline.strings.intern(text));
    let key = TaskKey { site: 0, number: 1 };
    timeline.activity = Activity {
        calibration: Calibration::new([0, START].map(|at| (at, moment(at)))),
        start: moment(0),
        threads: vec![ThreadSlices {
            tid: 4243,
            name,
            slices: vec![RawSlice::new(RawKind::WrappedPoll, 100, 900, key)],
            open: Vec::new(),
        }],
        tasks: Vec::new(),
        sites: vec![site],
    };
    let track = timeline.add_track(TrackKind::Thread(4244), "batch");
    let [name, category] = ["import", "span"].map(|text| timeline.strings.intern(text));
    for (at, kind) in [(200, EventKind::Begin(name)), (800, EventKind::End)] {
        let event = TimelineEvent { at: moment(at), track, kind, category, args: Vec::new() };
        timeline.events.push(event);
    }
    timeline
}

/// Builds a profile in which `main` calls `burn` twice in a row, and a library. One stack has no
/// mapping, and one is unknown.
fn profile(samples: &[(u32, &str, &[u64], u64)]) -> Profile {
    let mut profile = Profile::new(&[CPU], CPU, 1, Timestamp::UNIX_EPOCH);
    for &(tid, thread, addresses, at) in samples {
        let stack = profile.intern_stack(addresses);
        let sample = profile.samples.len() as u32;
        let labels = vec![profile.text_label("thread", thread)];
        profile.samples.push(Sample { stack, values: vec![1], labels });
        profile.timed_samples.push(TimedSample { tid, at: moment(at), sample, weight: 1 });
    }
    let mapping = |start, path: &str, build_id: &str| Mapping {
        start,
        end: start + 0x1000,
        file_offset: 0x200,
        path: path.into(),
        build_id: build_id.into(),
        has_functions: false,
        file: None,
    };
    profile.attach_mappings(vec![
        mapping(0x10_000, "/srv/orders", "00ff1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b"),
        mapping(0x20_000, "/lib/libz.so", ""),
    ]);
    for (address, name) in [(0x10_010, "main"), (0x10_020, "orders::burn")] {
        let name = profile.strings.intern(name);
        let function = marple::internals::model::FunctionHandle(profile.functions.len() as u32);
        let file = profile.strings.intern("");
        profile.functions.push(Function { name, system_name: name, file });
        for frame in profile.frames.iter_mut().filter(|frame| frame.address == address) {
            frame.lines.push(Line { function, line: 0 });
        }
    }
    profile
}

fn lookback_profile() -> Profile {
    profile(&[(4243, "worker", &[0x10_020, 0x10_010], 150)])
}

fn session_profile() -> Profile {
    profile(&[
        (4243, "worker", &[0x10_020, 0x10_010], 300),
        (4243, "worker", &[0x10_020, 0x10_010], 310),
        (4244, "batch", &[0x20_040, 0x10_010], 400),
        (4245, "candle", &[0x99_000, 0x10_010], 500),
        (4245, "candle", &[], 600),
    ])
}

fn thread_dump() -> ThreadDump {
    let mut profile = profile(&[(4243, "worker", &[0x10_020, 0x10_010], 0)]);
    profile.timed_samples.clear();
    profile.started = Timestamp::from_nanosecond(350).unwrap();
    let stack = profile.samples[0].stack;
    let row = |tid, name: &str, stack, wait_channel: &str| ThreadRow {
        tid,
        name: name.to_owned(),
        state: 'S',
        wait_channel: wait_channel.to_owned(),
        cpu_time: Duration::ZERO,
        stack,
        remark: "",
    };
    let threads = vec![
        row(4243, "worker", stack, "futex_wait"),
        row(4246, "sleeper", stack, ""),
        row(4247, "silent", None, ""),
    ];
    ThreadDump { profile, threads }
}

fn write(dir: &tempfile::TempDir) -> PathBuf {
    let path = dir.path().join("a.runtime.trace");
    let (before, during, dump) = (lookback_profile(), session_profile(), thread_dump());
    let stacks = [Stacks::Samples(&before), Stacks::Threads(&dump), Stacks::Samples(&during)];
    perfetto::write_with_stacks(&timeline(), &stacks, File::create(&path).unwrap()).unwrap();
    path
}

#[test]
fn samples_appear_on_named_threads_with_stacks() {
    let dir = tempfile::tempdir().unwrap();
    let results = peers::perfetto_query(
        &write(&dir),
        &[
            STATS,
            "select p.ts, t.tid, t.name, f.name, m.name, up.name
             from perf_sample p join thread t using (utid)
             join stack_profile_callsite c on p.callsite_id = c.id
             join stack_profile_frame f on c.frame_id = f.id
             join stack_profile_mapping m on f.mapping = m.id
             left join stack_profile_callsite u on c.parent_id = u.id
             left join stack_profile_frame up on u.frame_id = up.id order by p.ts",
            "select distinct name, build_id from stack_profile_mapping where name != '' order by name",
            "select distinct rel_pc from stack_profile_frame where name = 'orders::burn'",
            "select s.ts, t.tid, t.name, s.name, s.depth from slice s
             join thread_track tt on s.track_id = tt.id join thread t using (utid)
             where s.name = 'thread stack' order by t.tid",
            "select key, display_value from slice s join thread_track tt on s.track_id = tt.id
             join args a using (arg_set_id)
             where s.name = 'thread stack' and key glob 'debug.*' order by tt.id, s.id, key",
            "select s.ts, s.dur, s.name from slice s where name in ('server', 'import') order by ts",
        ],
    );
    let rows = |result: usize| -> Vec<String> {
        results[result].iter().map(|row| row.join("|")).collect()
    };
    assert_eq!(rows(0), [""; 0]);
    let at = |nanos| START + nanos;
    let expected = [
        (150, "4243|worker #0|orders::burn|/srv/orders|main"),
        (300, "4243|worker #0|orders::burn|/srv/orders|main"),
        (310, "4243|worker #0|orders::burn|/srv/orders|main"),
        (400, "4244|batch|NULL|/lib/libz.so|main"),
        (500, "4245|candle|NULL||main"),
        (600, "4245|candle|[stack unknown]||NULL"),
    ];
    assert_eq!(rows(1), expected.map(|(nanos, rest)| format!("{}|{rest}", at(nanos))));
    assert_eq!(rows(2), ["/lib/libz.so|", "/srv/orders|00ff1a2b3c4d5e6f708192a3b4c5d6e7f8091a2b"]);
    assert_eq!(rows(3), [(0x20 + 0x200).to_string()]);
    assert_eq!(
        rows(4),
        [
            format!("{}|4243|worker #0|thread stack|1", at(350)),
            format!("{}|4246|sleeper|thread stack|0", at(350)),
        ]
    );
    assert_eq!(
        rows(5),
        [
            "debug.stack[0]|orders::burn",
            "debug.stack[1]|main",
            "debug.state|S",
            "debug.waits in|futex_wait",
            "debug.stack[0]|orders::burn",
            "debug.stack[1]|main",
            "debug.state|S",
        ]
    );
    assert_eq!(
        rows(6),
        [format!("{}|800|server", at(100)), format!("{}|600|import", at(200))],
        "what else there is stays as it is"
    );
}

#[test]
fn perfetto_schema_has_every_sample_field() {
    let dir = tempfile::tempdir().unwrap();
    let packets = peers::python("perfetto_decode.py", &[write(&dir).to_str().unwrap()]);
    let with = |what: &str| packets.lines().filter(|packet| packet.contains(what)).count();
    assert_eq!((with("\"perf_sample\""), with("\"array_values\"")), (6, 2));
}

#[test]
fn trace_bytes_are_unchanged_without_stacks() {
    let (mut plain, mut with) = (Vec::new(), Vec::new());
    perfetto::write(&timeline(), &mut plain).unwrap();
    perfetto::write_with_stacks(&timeline(), &[], &mut with).unwrap();
    assert!(plain == with);
}
