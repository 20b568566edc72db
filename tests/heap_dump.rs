//! A dump allocates nothing from the allocator and next to nothing from the system. The test is a
//! binary by itself because it installs a counting allocator.

#![cfg(feature = "heap")]
// A counting allocator needs unsafe code.
#![allow(unsafe_code)]

#[path = "heap_dump/blocks.rs"]
mod blocks;

use std::alloc::{GlobalAlloc, Layout, System};
use std::fs::{self, File};
use std::io;
use std::sync::atomic::{AtomicUsize, Ordering::SeqCst};

use blocks::{SIZE, STACKS, allocate_blocks, resident_bytes, thread_cpu_nanos};
use jiff::Timestamp;
use marple::agent::{HeapWriter, ProcessMemory};
use marple::base::Bytes;
use marple::{codec::pprof, heap};

struct Counting;

static ALLOC_CALLS: AtomicUsize = AtomicUsize::new(0);
static ALLOC_BYTES: AtomicUsize = AtomicUsize::new(0);

fn count(size: usize) {
    ALLOC_CALLS.fetch_add(1, SeqCst);
    ALLOC_BYTES.fetch_add(size, SeqCst);
}

// SAFETY: every call is forwarded to `System`; counting touches two atomics.
unsafe impl GlobalAlloc for Counting {
    unsafe fn alloc(&self, layout: Layout) -> *mut u8 {
        count(layout.size());
        // SAFETY: forwards the caller's arguments.
        unsafe { System.alloc(layout) }
    }

    unsafe fn dealloc(&self, block: *mut u8, layout: Layout) {
        // SAFETY: forwards the caller's arguments.
        unsafe { System.dealloc(block, layout) }
    }

    unsafe fn realloc(&self, block: *mut u8, layout: Layout, size: usize) -> *mut u8 {
        count(size);
        // SAFETY: forwards the caller's arguments.
        unsafe { System.realloc(block, layout, size) }
    }
}

#[global_allocator]
static ALLOCATOR: marple::Allocator<Counting> = marple::Allocator::new(Counting);

#[test]
fn dump_of_100_000_samples_allocates_nothing() {
    let mut writer = HeapWriter::reserve();
    let process = ProcessMemory::default();
    // The agent also writes once when it starts.
    writer.write(Timestamp::now(), process, io::sink()).unwrap();

    let mut kept = Vec::with_capacity(2 * STACKS);
    heap::set_rate(Bytes(1));
    allocate_blocks(&mut kept);
    heap::set_rate(Bytes(0));

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("memory.pprof");
    let mut file = File::create(&path).unwrap();
    let now = Timestamp::now();
    let (resident_before, cpu_before) = (resident_bytes(), thread_cpu_nanos());
    let before = (ALLOC_CALLS.load(SeqCst), ALLOC_BYTES.load(SeqCst));
    let written = writer.write(now, process, &mut file);
    let after = (ALLOC_CALLS.load(SeqCst), ALLOC_BYTES.load(SeqCst));
    let millis = (thread_cpu_nanos() - cpu_before) as f64 / 1e6;
    let grown = resident_bytes().saturating_sub(resident_before);
    written.unwrap();
    println!(
        "heap bytes: {}, resident growth: {} KiB, CPU: {millis:.1} ms, file: {} KiB",
        after.1 - before.1,
        grown >> 10,
        file.metadata().unwrap().len() >> 10,
    );
    assert_eq!(after, before, "calls of the allocator, and bytes");
    assert!(grown <= 1 << 20, "resident growth {grown}");

    let profile = pprof::read(&fs::read(&path).unwrap()).unwrap();
    let ours = |sample: &&pprof::proto::Sample| {
        sample.label.iter().any(|label| label.num == SIZE as i64) && sample.value[2] == 2
    };
    assert_eq!(profile.sample.iter().filter(ours).count(), STACKS);
    let names: Vec<&str> = profile.function.iter().map(|f| profile.text(f.name)).collect();
    for name in ["allocate_left", "allocate_right", "descend"]
        .map(|name| format!("heap_dump::blocks::{name}"))
    {
        assert!(names.contains(&name.as_str()), "no {name} in {names:?}");
    }
    drop(kept);
}
