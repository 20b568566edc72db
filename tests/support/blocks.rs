//! The largest heap that a dump has to write: 100,000 blocks under 50,000 stacks. Also measures the
//! memory and CPU time that the process uses meanwhile. The dump bench (`benches/heap_peers`) uses
//! this file, too.

use std::hint::black_box;

use rustix::time::{ClockId, clock_gettime};

/// Number of stacks, with two blocks under each.
pub(crate) const STACKS: usize = 50_000;

/// Size of a block in bytes.
pub(crate) const SIZE: usize = 40;

/// Allocates the blocks.
pub(crate) fn allocate_blocks(blocks: &mut Vec<Vec<u8>>) {
    (0..STACKS).for_each(|path| descend(path, 16, blocks));
}

#[inline(never)]
fn allocate_left(path: usize, depth: usize, blocks: &mut Vec<Vec<u8>>) {
    black_box(&mut *blocks);
    descend(path >> 1, depth - 1, blocks);
    black_box(blocks);
}

#[inline(never)]
fn allocate_right(path: usize, depth: usize, blocks: &mut Vec<Vec<u8>>) {
    black_box(&mut *blocks);
    descend(path >> 1, depth - 1, blocks);
    black_box(blocks);
}

/// Allocates two blocks under a stack that no other `path` has.
fn descend(path: usize, depth: usize, blocks: &mut Vec<Vec<u8>>) {
    match (depth, path % 2) {
        (0, _) => blocks.extend([(); 2].map(|()| black_box(Vec::with_capacity(SIZE)))),
        (_, 0) => allocate_left(path, depth, blocks),
        _ => allocate_right(path, depth, blocks),
    }
}

/// Returns the resident memory of the process in bytes, for pages of 4 KiB.
pub(crate) fn resident_bytes() -> u64 {
    let statm = std::fs::read_to_string("/proc/self/statm").expect("/proc");
    statm.split(' ').nth(1).and_then(|pages| pages.parse::<u64>().ok()).expect("pages") * 4096
}

/// Returns the CPU time of the calling thread in nanoseconds.
pub(crate) fn thread_cpu_nanos() -> i64 {
    let time = clock_gettime(ClockId::ThreadCPUTime);
    time.tv_sec * 1_000_000_000 + time.tv_nsec
}
