//! What it takes to write the CPU samples and the polls of an incident into its trace.
#![allow(unsafe_code, reason = "a counting allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use marple::base::{Anchor, Moment};
use marple::codec::perfetto::{self, Stacks};
use marple::model::{
    Profile, RawKind, RawSlice, RawTask, Sample, TaskKey, ThreadSlices, TimedSample, Timeline,
    ValueType,
};

struct Counting;

static LIVE: AtomicIsize = AtomicIsize::new(0);
static PEAK: AtomicIsize = AtomicIsize::new(0);

// SAFETY: every call is handed on to the system's allocator as it is.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        let size = layout.size() as isize;
        PEAK.fetch_max(LIVE.fetch_add(size, Ordering::Relaxed) + size, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        LIVE.fetch_sub(layout.size() as isize, Ordering::Relaxed);
        // SAFETY: the caller's promises are passed on.
        unsafe { System.dealloc(block, layout) }
    }
}

#[global_allocator]
static ALLOCATOR: Counting = Counting;

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

fn timeline() -> Timeline {
    let anchor = Anchor {
        moment: Moment::default(),
        wall: Timestamp::UNIX_EPOCH,
        suspended: Duration::ZERO,
    };
    Timeline::new(anchor, 1, "orders")
}

/// A thread that did nothing but poll, side by side, and as many tasks that came.
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

/// The memory that writing takes at its peak.
fn peak(timeline: &Timeline, stacks: &[Stacks<'_>]) -> isize {
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    perfetto::write_with(timeline, stacks, io::sink()).unwrap();
    PEAK.load(Ordering::Relaxed) - before
}

/// One test, because it counts what the whole process takes.
#[test]
fn the_memory_grows_neither_with_the_samples_nor_with_the_polls() {
    let samples = |samples| peak(&timeline(), &[Stacks::Samples(&profile(samples))]);
    let (few, many) = (samples(STACKS as u32), samples(64 << 10));
    println!("{few} bytes for {STACKS} samples, {many} for {}", 64 << 10);
    // A byte for each frame and stack node, and what the compressor holds whatever it writes.
    assert!(few < 1 << 20, "{few} bytes");
    assert!(many - few < 16 << 10, "{few} bytes, then {many}");

    let (few, many) = (peak(&polls(10), &[]), peak(&polls(100_000), &[]));
    println!("{few} bytes for 10 polls, {many} for 100,000");
    assert!(many - few < 4 << 10, "{few} bytes, then {many}");
}
