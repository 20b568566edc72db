//! What it takes to write the CPU samples of an incident into its trace.
#![allow(unsafe_code, reason = "a counting allocator")]

use std::alloc::{GlobalAlloc, Layout, System};
use std::io;
use std::sync::atomic::{AtomicIsize, Ordering};
use std::time::Duration;

use jiff::Timestamp;
use marple::base::{Anchor, Moment};
use marple::codec::perfetto::{self, Stacks};
use marple::model::{Profile, Sample, TimedSample, Timeline, ValueType};

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

/// The memory that writing takes at its peak.
fn peak(samples: u32) -> isize {
    let anchor = Anchor {
        moment: Moment::default(),
        wall: Timestamp::UNIX_EPOCH,
        suspended: Duration::ZERO,
    };
    let (timeline, profile) = (Timeline::new(anchor, 1, "orders"), profile(samples));
    let before = LIVE.load(Ordering::Relaxed);
    PEAK.store(before, Ordering::Relaxed);
    perfetto::write_with(&timeline, &[Stacks::Samples(&profile)], io::sink()).unwrap();
    PEAK.load(Ordering::Relaxed) - before
}

#[test]
fn the_memory_does_not_grow_with_the_samples() {
    let (few, many) = (peak(STACKS as u32), peak(64 << 10));
    println!("{few} bytes for {STACKS} samples, {many} for {}", 64 << 10);
    // A byte for each frame and stack node, and what the compressor holds whatever it writes.
    assert!(few < 1 << 20, "{few} bytes");
    assert!(many - few < 16 << 10, "{few} bytes, then {many}");
}
