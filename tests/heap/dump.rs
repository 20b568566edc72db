//! A dump allocates nothing from the allocator and next to nothing from the system.

use std::fs::{self, File};
use std::io;
use std::sync::atomic::Ordering::SeqCst;

use jiff::Timestamp;
use marple::internals::agent::{HeapWriter, ProcessMemory};
use marple::internals::base::Bytes;
use marple::internals::{codec::pprof, heap};

use crate::support::blocks::{SIZE, STACKS, allocate_blocks, resident_bytes, thread_cpu_nanos};
use crate::support::counting::{ALLOCATED_BYTES, CALLS};

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
    let before = (CALLS.load(SeqCst), ALLOCATED_BYTES.load(SeqCst));
    let written = writer.write(now, process, &mut file);
    let after = (CALLS.load(SeqCst), ALLOCATED_BYTES.load(SeqCst));
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
        .map(|name| format!("heap::support::blocks::{name}"))
    {
        assert!(names.contains(&name.as_str()), "no {name} in {names:?}");
    }
    drop(kept);
}
