//! Stacks are complete in a user's default build, and show the source of a block.

use std::hint::black_box;

use jiff::Timestamp;
use marple::internals::base::Bytes;
use marple::internals::heap;
use marple::internals::model::{LabelValue, Profile};

const SIZE: usize = 123_456;

#[inline(never)]
fn allocate_leak() -> Vec<u8> {
    black_box(Vec::with_capacity(black_box(SIZE)))
}

#[inline(never)]
fn allocate_middle() -> Vec<u8> {
    black_box(allocate_leak())
}

#[inline(never)]
fn grow_block(block: &mut Vec<u8>) {
    block.reserve_exact(black_box(SIZE * 2));
    black_box(block);
}

/// Returns the addresses of each stack with blocks of `size` bytes in use, innermost first.
fn stacks(profile: &Profile, size: usize) -> Vec<Vec<u64>> {
    let is_size = |value| matches!(value, LabelValue::Number(n, _) if n == size as i64);
    profile
        .samples
        .iter()
        .filter(|sample| sample.values[3] > 0)
        .filter(|sample| sample.labels.iter().any(|label| is_size(label.value)))
        .map(|sample| {
            let frames = profile.stacks.frames(sample.stack);
            frames.map(|frame| profile.frames.get(frame).address).collect()
        })
        .collect()
}

/// Returns the index in `stack` of the first address within 1 KiB of the start of `function`.
fn index_of_function(stack: &[u64], function: usize) -> Option<usize> {
    let function = function as u64;
    stack.iter().position(|address| (function..function + 1024).contains(address))
}

#[test]
fn block_stack_reaches_from_callers_to_thread_start() {
    heap::set_rate(Bytes(1));
    let block = allocate_middle();
    let profile = heap::snapshot(Timestamp::now()).unwrap();
    let found = stacks(&profile, SIZE);
    assert_eq!(found.len(), 1);
    let stack = &found[0];
    let test = block_stack_reaches_from_callers_to_thread_start as fn() as usize;
    let at_leak = index_of_function(stack, allocate_leak as fn() -> _ as usize);
    let at_middle = index_of_function(stack, allocate_middle as fn() -> _ as usize);
    let at_test = index_of_function(stack, test);
    assert!(at_leak.is_some(), "{stack:x?}");
    assert_eq!(at_middle, at_leak.map(|at| at + 1));
    assert!(at_test > at_middle);
    assert!(stack.len() > at_test.unwrap() + 2, "cut at the test: {stack:x?}");
    // Frames of the profiler are not included: the innermost one is the entry of the allocator.
    assert!(at_leak.unwrap() <= 8, "{stack:x?}");
    let cut = profile.losses.iter().find(|loss| loss.cause.contains("truncated"));
    assert_eq!(cut, None, "every stack is whole");

    let executable = std::env::current_exe().unwrap();
    assert_eq!(profile.mappings[0].path, executable);
    let leak = profile.frames.iter().find(|frame| frame.address == stack[at_leak.unwrap()]);
    let mapping = &profile.mappings[leak.unwrap().mapping.unwrap().index()];
    assert_eq!(mapping.path, executable);
    drop(block);
}

#[test]
fn grown_block_is_attributed_to_realloc() {
    heap::set_rate(Bytes(1));
    let mut block: Vec<u8> = Vec::with_capacity(1000);
    grow_block(&mut block);
    let found = stacks(&heap::snapshot(Timestamp::now()).unwrap(), block.capacity());
    assert_eq!(found.len(), 1);
    assert!(index_of_function(&found[0], grow_block as fn(_) as usize).is_some(), "{found:x?}");
}

macro_rules! keep_on {
    ($($name:ident $size:literal)*) => { $(#[inline(never)] fn $name() -> Vec<u8> {
        black_box(Vec::with_capacity(black_box($size)))
    })* };
}
keep_on! { keep_on_2m 300_001 keep_on_256k 300_002 keep_on_128k_of_which_70k_are_used 300_003 keep_on_64k 300_004 }
#[cfg(not(debug_assertions))]
keep_on! { keep_on_32k 300_005 }

#[inline(never)]
fn run_with_70k_stack_used(keep: fn() -> Vec<u8>) -> Vec<u8> {
    let mut used = [0u8; 70 << 10];
    black_box(&mut used);
    let kept = keep();
    black_box(&mut used);
    kept
}

/// All threads live at once: otherwise a small one could reuse the stack of an ended thread.
#[test]
fn blocks_of_threads_with_small_stacks_have_stacks() {
    type AllocateFn = fn() -> Vec<u8>;
    heap::set_rate(Bytes(1));
    // The agent also does this. Threads with too little stack to load unwind tables use those
    // loaded by others.
    heap::snapshot(Timestamp::now()).unwrap();
    let threads: &[(usize, usize, AllocateFn, AllocateFn)] = &[
        (2048, 300_001, keep_on_2m, keep_on_2m),
        (256, 300_002, keep_on_256k, keep_on_256k),
        (128, 300_003, keep_on_128k_of_which_70k_are_used, || {
            run_with_70k_stack_used(keep_on_128k_of_which_70k_are_used)
        }),
        (64, 300_004, keep_on_64k, keep_on_64k),
        #[cfg(not(debug_assertions))]
        (32, 300_005, keep_on_32k, keep_on_32k),
    ];
    let barrier = std::sync::Barrier::new(threads.len() + 1);
    std::thread::scope(|scope| {
        for &(kib, _, _, run) in threads {
            let barrier = &barrier;
            let small = std::thread::Builder::new().stack_size(kib << 10);
            let run = move || {
                let kept = run();
                barrier.wait();
                barrier.wait();
                drop(kept);
            };
            small.spawn_scoped(scope, run).unwrap();
        }
        barrier.wait();
        let profile = heap::snapshot(Timestamp::now()).unwrap();
        for &(kib, size, keep, _) in threads {
            let found = stacks(&profile, size);
            let at = found.iter().find_map(|stack| index_of_function(stack, keep as usize));
            assert!(at.is_some(), "{kib} KiB: {found:x?}, lost: {:?}", profile.losses);
        }
        barrier.wait();
    });
}

#[inline(never)]
fn recurse(levels: usize, size: usize) -> Vec<u8> {
    let kept = match levels {
        0 => Vec::with_capacity(black_box(size)),
        _ => recurse(levels - 1, size),
    };
    black_box(kept)
}

/// The outermost frames name the caller that caused the allocation, so they must be kept.
#[test]
fn deep_recursion_keeps_callers_and_one_row_for_omitted_frames() {
    heap::set_rate(Bytes(1));
    let test = deep_recursion_keeps_callers_and_one_row_for_omitted_frames as fn() as usize;
    let kept = [recurse(400, 400_001), recurse(3000, 400_002)];
    let profile = heap::snapshot(Timestamp::now()).unwrap();
    for size in [400_001, 400_002] {
        let found = stacks(&profile, size);
        let [stack] = &found[..] else { panic!("{size}: {found:x?}") };
        assert!(index_of_function(stack, test).is_some(), "{size}: {stack:x?}");
        let marker = marple::internals::model::Marker::Omitted.address();
        assert_eq!(stack.iter().filter(|&&frame| frame == marker).count(), 1);
        assert_eq!(stack.len(), 128);
    }
    drop(kept);
}
