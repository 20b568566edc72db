//! Peak memory of writing the CPU samples and the polls of an incident into its trace.

use std::io;
use std::time::Duration;

use jiff::Timestamp;
use marple::internals::base::{Moment, TimeAnchor};
use marple::internals::codec::perfetto::{self, Stacks};
use marple::internals::model::{
    Profile, RawKind, RawSlice, RawTask, Sample, TaskKey, ThreadSlices, TimedSample, Timeline,
    ValueType,
};

use crate::support::counting::peak_bytes;

const STACKS: u64 = 5000;

/// Builds a profile of `samples` samples, spread over stacks of 30 frames that share no frame.
fn profile(samples: u32) -> Profile {
    let cpu = ValueType { name: "cpu", unit: "nanoseconds" };
    let mut profile = Profile::new(&[cpu], cpu, 1, Timestamp::UNIX_EPOCH);
    for stack in 0..STACKS {
        let addresses: Vec<u64> = (0..30).map(|frame| 1 + stack * 30 + frame).collect();
        let stack = profile.intern_stack(&addresses);
        profile.samples.push(Sample { stack, values: vec![1], labels: Vec::new() });
    }
    profile.timed_samples.extend((0..samples).map(|n| TimedSample {
        tid: n % 8,
        at: Moment::from_nanos(n.into()),
        sample: n % STACKS as u32,
        weight: 1,
    }));
    profile
}

fn timeline() -> Timeline {
    let anchor = TimeAnchor {
        moment: Moment::default(),
        wall: Timestamp::UNIX_EPOCH,
        suspended: Duration::ZERO,
    };
    Timeline::new(anchor, 1, "orders")
}

/// Builds a timeline of one thread with `count` consecutive polls, and as many spawned tasks.
fn polls(count: u64) -> Timeline {
    let mut timeline = timeline();
    let key = |number| TaskKey { site: 0, number };
    let slice = |n| RawSlice::new(RawKind::HookedPoll, 10 * n, 10 * n + 7, key(n));
    timeline.activity.threads.push(ThreadSlices {
        tid: 2,
        name: timeline.strings.intern("worker"),
        slices: (0..count).map(slice).collect(),
        open: Vec::new(),
    });
    let task = |n| RawTask::new(RawKind::Spawned, 10 * n, key(n));
    timeline.activity.tasks = (0..count).map(task).collect();
    timeline
}

/// Returns the peak memory of writing, in bytes.
fn peak_of_writing(timeline: &Timeline, stacks: &[Stacks<'_>]) -> isize {
    peak_bytes(|| perfetto::write_with_stacks(timeline, stacks, io::sink()).unwrap())
}

/// Counts the allocations of the whole process, in which nothing else may run (nextest).
#[test]
fn memory_is_independent_of_sample_and_poll_count() {
    let samples = |samples| peak_of_writing(&timeline(), &[Stacks::Samples(&profile(samples))]);
    let (few, many) = (samples(STACKS as u32), samples(64 << 10));
    println!("{few} bytes for {STACKS} samples, {many} for {}", 64 << 10);
    // One byte for each frame and stack node, plus the fixed memory of the compressor.
    assert!(few > 0, "the count counts");
    assert!(few < 1 << 20, "{few} bytes");
    assert!(many - few < 16 << 10, "{few} bytes, then {many}");

    let (few, many) = (peak_of_writing(&polls(10), &[]), peak_of_writing(&polls(100_000), &[]));
    println!("{few} bytes for 10 polls, {many} for 100,000");
    assert!(many - few < 4 << 10, "{few} bytes, then {many}");
}
