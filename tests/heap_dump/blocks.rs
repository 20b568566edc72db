//! As much as a dump of the heap may have to tell: 100,000 blocks under 50,000 stacks, and what the
//! process takes meanwhile. The bench of dumps (`benches/heap_peers`) has them, too.

use std::hint::black_box;

use rustix::time::{ClockId, clock_gettime};

/// How many stacks there are, two blocks under each.
pub(crate) const STACKS: usize = 50_000;

/// The bytes of a block.
pub(crate) const SIZE: usize = 40;

/// Puts the blocks there.
pub(crate) fn fill(kept: &mut Vec<Vec<u8>>) {
    (0..STACKS).for_each(|path| descend(path, 16, kept));
}

#[inline(never)]
fn left(path: usize, depth: usize, kept: &mut Vec<Vec<u8>>) {
    black_box(&mut *kept);
    descend(path >> 1, depth - 1, kept);
    black_box(kept);
}

#[inline(never)]
fn right(path: usize, depth: usize, kept: &mut Vec<Vec<u8>>) {
    black_box(&mut *kept);
    descend(path >> 1, depth - 1, kept);
    black_box(kept);
}

/// Two blocks under a stack that no other `path` has.
fn descend(path: usize, depth: usize, kept: &mut Vec<Vec<u8>>) {
    match (depth, path % 2) {
        (0, _) => kept.extend([(); 2].map(|()| black_box(Vec::with_capacity(SIZE)))),
        (_, 0) => left(path, depth, kept),
        _ => right(path, depth, kept),
    }
}

/// The bytes of the process that are in memory, in pages of 4 KiB.
pub(crate) fn resident() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("/proc");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("pages") * 4096
}

/// Nanoseconds of CPU time the calling thread has had.
pub(crate) fn cpu() -> i64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}
