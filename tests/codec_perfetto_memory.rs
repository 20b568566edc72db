//! What it takes to write the CPU samples of an incident into its trace.

mod counting;

use std::io;
use std::time::Duration;

use counting::peak;
use jiff::Timestamp;
use marple::base::{Anchor, Moment};
use marple::codec::perfetto::{self, Stacks};
use marple::model::{Profile, Sample, TimedSample, Timeline, ValueType};

const STACKS: u64 = 5000;

/// Stacks of 30 frames that share none, and `samples` samples of them all.
fn profile(samples: u32) -> Profile {
    let cpu = ValueType { name: "cpu", unit: "nanoseconds" };
    let mut profile = Profile::new(&[cpu], cpu, 1, Timestamp::UNIX_EPOCH);
    for stack in 0..STACKS {
        let addresses: Vec<u64> = (0..30).map(|frame| 1 + stack * 30 + frame).collect();
        let stack = profile.intern_stack(&addresses);
        profile.samples.push(Sample { stack, values: vec![1], labels: Vec::new() });
    }
    profile.timed.extend((0..samples).map(|n| TimedSample {
        tid: n % 8,
        at: Moment::from_nanos(n.into()),
        sample: n % STACKS as u32,
        weight: 1,
    }));
    profile
}

/// The memory that writing takes at its peak.
fn taken(samples: u32) -> isize {
    let anchor = Anchor {
        moment: Moment::default(),
        wall: Timestamp::UNIX_EPOCH,
        suspended: Duration::ZERO,
    };
    let (timeline, profile) = (Timeline::new(anchor, 1, "orders"), profile(samples));
    let stacks = [Stacks::Samples(&profile)];
    peak(|| perfetto::write_with(&timeline, &stacks, io::sink()).unwrap())
}

#[test]
fn the_memory_does_not_grow_with_the_samples() {
    let (few, many) = (taken(STACKS as u32), taken(64 << 10));
    println!("{few} bytes for {STACKS} samples, {many} for {}", 64 << 10);
    // A byte for each frame and stack node, and what the compressor holds whatever it writes.
    assert!(few > 0, "the count counts");
    assert!(few < 1 << 20, "{few} bytes");
    assert!(many - few < 16 << 10, "{few} bytes, then {many}");
}
