//! Stacks are whole, in the build a user makes by default, and say where a block came from.

use std::alloc::System;
use std::hint::black_box;

use jiff::Timestamp;
use marple::base::Bytes;
use marple::heap;
use marple::model::{LabelValue, Profile};

#[global_allocator]
static ALLOCATOR: marple::Allocator<System> = marple::Allocator::new(System);

const SIZE: usize = 123_456;

#[inline(never)]
fn leak() -> Vec<u8> {
    black_box(Vec::with_capacity(black_box(SIZE)))
}

#[inline(never)]
fn middle() -> Vec<u8> {
    black_box(leak())
}

#[inline(never)]
fn grow(block: &mut Vec<u8>) {
    block.reserve_exact(black_box(SIZE * 2));
    black_box(block);
}

/// The addresses of each stack with blocks of `size` bytes in use, innermost first.
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

/// Where in `stack` the first kilobyte of a function is.
fn place(stack: &[u64], function: usize) -> Option<usize> {
    let function = function as u64;
    stack.iter().position(|address| (function..function + 1024).contains(address))
}

#[test]
fn a_block_is_found_under_its_callers_and_reaches_the_threads_start() {
    heap::set_rate(Bytes(1));
    let block = middle();
    let profile = heap::snapshot(Timestamp::now()).unwrap();
    let found = stacks(&profile, SIZE);
    assert_eq!(found.len(), 1);
    let stack = &found[0];
    let test = a_block_is_found_under_its_callers_and_reaches_the_threads_start as fn() as usize;
    let at_leak = place(stack, leak as fn() -> _ as usize);
    let at_middle = place(stack, middle as fn() -> _ as usize);
    let at_test = place(stack, test);
    assert!(at_leak.is_some(), "{stack:x?}");
    assert_eq!(at_middle, at_leak.map(|at| at + 1));
    assert!(at_test > at_middle);
    assert!(stack.len() > at_test.unwrap() + 2, "cut at the test: {stack:x?}");
    // The frames of the profiler are not in it: what is innermost is the allocator's entry.
    assert!(at_leak.unwrap() <= 8, "{stack:x?}");
    let cut = profile.losses.iter().find(|loss| loss.cause.contains("cut"));
    assert_eq!(cut, None, "every stack is whole");

    let executable = std::env::current_exe().unwrap();
    assert_eq!(profile.mappings[0].path, executable);
    let leak = profile.frames.iter().find(|frame| frame.address == stack[at_leak.unwrap()]);
    let mapping = &profile.mappings[leak.unwrap().mapping.unwrap().index()];
    assert_eq!(mapping.path, executable);
    drop(block);
}

#[test]
fn a_block_that_grew_is_found_where_it_grew() {
    heap::set_rate(Bytes(1));
    let mut block: Vec<u8> = Vec::with_capacity(1000);
    grow(&mut block);
    let found = stacks(&heap::snapshot(Timestamp::now()).unwrap(), block.capacity());
    assert_eq!(found.len(), 1);
    assert!(place(&found[0], grow as fn(_) as usize).is_some(), "{found:x?}");
}
