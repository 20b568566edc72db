use std::time::Duration;

use jiff::Timestamp;

use super::*;
use crate::base::TimeAnchor;
use crate::model::{
    Calibration, LabelValue, OpenSlice, RawSlice, TaskKey, ThreadSlices, TimelineEvent, ValueType,
};

const SAMPLES: ValueType = ValueType { name: "samples", unit: "count" };
const CPU: ValueType = ValueType { name: "cpu", unit: "nanoseconds" };

fn at(nanos: u64) -> Moment {
    Moment::from_nanos(nanos)
}

/// Builds a timeline with ticks of 0.1 ns; all times below are in nanoseconds:
/// - Thread 7 polls `server` from 100 to 500 with `query` inside from 200 to 300. It parks until
///   600, and polls `server` from 700 on with `query` inside from 800.
/// - Its spans are `request` from 150 to 450 with `inner` from 250 to 350, and `late` from 750 on.
/// - Thread 8 has spans only.
fn timeline() -> Timeline {
    let anchor =
        TimeAnchor { moment: at(0), wall: Timestamp::UNIX_EPOCH, suspended: Duration::ZERO };
    let mut timeline = Timeline::new(anchor, 1, "orders");
    let key = |site| TaskKey { site, number: 1 };
    let sites = ["task", "server", "query"].map(|site| timeline.strings.intern(site));
    let name = timeline.strings.intern("worker");
    let slice =
        |kind, start: u64, end: u64, site| RawSlice::new(kind, start * 10, end * 10, key(site));
    timeline.activity.calibration = Calibration::new([(0, at(0)), (100_000, at(10_000))]);
    timeline.activity.sites = sites.to_vec();
    timeline.activity.threads.push(ThreadSlices {
        tid: 7,
        name,
        slices: vec![
            slice(RawKind::WrappedPoll, 200, 300, 2),
            slice(RawKind::HookedPoll, 100, 500, 1),
            slice(RawKind::Park, 500, 600, 0),
        ],
        open: vec![
            OpenSlice { kind: RawKind::HookedPoll, start: 7000, task: key(1) },
            OpenSlice { kind: RawKind::WrappedPoll, start: 8000, task: key(2) },
        ],
    });
    for (tid, events) in [
        (7, vec![(150, "request"), (250, "inner"), (350, ""), (450, ""), (750, "late")]),
        (8, vec![(100, "other"), (900, "")]),
    ] {
        let track = timeline.add_track(TrackKind::Thread(tid), "worker");
        for (moment, name) in events {
            let kind = match name {
                "" => EventKind::End,
                name => EventKind::Begin(timeline.strings.intern(name)),
            };
            let category = StringHandle::EMPTY;
            let args = Vec::new();
            timeline.events.push(TimelineEvent { at: at(moment), track, kind, category, args });
        }
    }
    timeline
}

/// Address, CPU time at the address, and samples as (thread, time, weight).
type Stack<'a> = (u64, i64, &'a [(u32, u64, u32)]);

fn profile(stacks: &[Stack<'_>]) -> Profile {
    let mut profile = Profile::new(&[SAMPLES, CPU], CPU, 10, Timestamp::UNIX_EPOCH);
    for &(address, cpu, seen) in stacks {
        let stack = profile.intern_stack(&[address]);
        let sample = profile.samples.len() as u32;
        let values = vec![seen.len() as i64, cpu];
        let labels = vec![profile.text_label("thread", "worker")];
        profile.samples.push(Sample { stack, values, labels });
        profile.timed_samples.extend(seen.iter().map(|&(tid, moment, weight)| TimedSample {
            tid,
            at: at(moment),
            sample,
            weight,
        }));
    }
    profile.timed_samples.sort_by_key(|timed| timed.at);
    profile
}

/// Formats a profile's samples as address, task, span, samples, CPU time of each sample.
fn format_samples(profile: &Profile) -> Vec<String> {
    let format_sample = |sample: &Sample| {
        let label = |key: &str| {
            let of_key = sample.labels.iter().find(|label| profile.strings.get(label.key) == key);
            of_key.map_or("-", |label| match label.value {
                LabelValue::Text(text) => profile.strings.get(text),
                LabelValue::Number(..) => "a number",
            })
        };
        let frame = profile.stacks.frames(sample.stack).next().unwrap();
        let address = profile.frames.get(frame).address;
        assert_eq!(label("thread"), "worker");
        let [count, cpu] = sample.values[..] else { panic!("two values") };
        format!("{address} {} {} {count} {cpu}", label("task"), label("span"))
    };
    profile.samples.iter().map(format_sample).collect()
}

#[test]
fn sample_is_labeled_by_innermost_poll_and_span() {
    for (tid, moment, task, span) in [
        (7, 50, "-", "-"),
        (7, 99, "-", "-"),
        (7, 100, "server", "-"),
        (7, 150, "server", "request"),
        (7, 199, "server", "request"),
        (7, 200, "query", "request"),
        (7, 250, "query", "inner"),
        (7, 299, "query", "inner"),
        (7, 300, "server", "inner"),
        (7, 350, "server", "request"),
        (7, 450, "server", "-"),
        (7, 499, "server", "-"),
        (7, 500, "-", "-"),
        (7, 650, "-", "-"),
        (7, 700, "server", "-"),
        (7, 750, "server", "late"),
        (7, 800, "query", "late"),
        (7, 5000, "query", "late"),
        (8, 99, "-", "-"),
        (8, 400, "-", "other"),
        (8, 900, "-", "-"),
        (9, 400, "-", "-"),
    ] {
        let mut profile = profile(&[(1, 30, &[(tid, moment, 3)])]);
        label_samples(&mut profile, &timeline());
        assert_eq!(
            format_samples(&profile),
            [format!("1 {task} {span} 1 30")],
            "{tid} at {moment}"
        );
        assert_eq!(profile.timed_samples[0].sample, 0);
    }
}

#[test]
fn sample_is_split_by_task_and_totals_are_unchanged() {
    let seen: &[_] = &[(7, 110, 1), (7, 220, 3), (7, 550, 1), (7, 120, 1), (9, 110, 4)];
    let mut profile = profile(&[(1, 101, seen), (2, 10, &[(7, 510, 1)]), (3, 7, &[(7, 210, 1)])]);
    label_samples(&mut profile, &timeline());
    let expected = [
        "1 server - 2 20",
        "1 query request 1 30",
        "1 - - 2 51",
        "2 - - 1 10",
        "3 query request 1 7",
    ];
    assert_eq!(format_samples(&profile), expected);
    assert_eq!((profile.total("samples"), profile.total("cpu")), (Some(7), Some(118)));
    for timed in &profile.timed_samples {
        let shown = &format_samples(&profile)[timed.sample as usize];
        let is_server = timed.tid == 7 && timed.at < at(200);
        assert_eq!(shown.contains("server"), is_server, "{timed:?} is {shown}");
    }
}

#[test]
fn samples_without_recorded_time_have_no_labels() {
    let mut profile = profile(&[(1, 100, &[(7, 110, 1), (7, 120, 1)])]);
    profile.samples[0].values = vec![10, 100];
    label_samples(&mut profile, &timeline());
    assert_eq!(format_samples(&profile), ["1 server - 2 20", "1 - - 8 80"]);
}

#[test]
fn profile_without_matching_polls_or_spans_is_unchanged() {
    let mut profile = profile(&[(1, 100, &[(9, 110, 1), (7, 520, 1)])]);
    let before = format_samples(&profile);
    label_samples(&mut profile, &timeline());
    assert_eq!(format_samples(&profile), before);
}
