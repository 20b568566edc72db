#![allow(unsafe_code)]

use super::*;
use crate::unwind::{Walk, Walker};

// Functions without tables, but for one, at known distances from each other. None of them ever runs: a walk
// reads their bytes.
std::arch::global_asm!(
    ".pushsection .text.marple_walk, \"ax\", @progbits",
    ".p2align 4",
    "marple_walk_far: push rbp",
    "mov rbp, rsp",
    "ret",
    ".skip 4096, 0x90",
    "marple_walk_covered: .cfi_startproc",
    "push rbp",
    "mov rbp, rsp",
    "ret",
    ".cfi_endproc",
    "marple_walk_leaf: nop",
    "marple_walk_in_leaf: nop",
    "ret",
    "marple_walk_ours: push rbp",
    "mov rbp, rsp",
    "marple_walk_in_ours: nop",
    "ret",
    "marple_walk_later: push rbp",
    "mov rbp, rsp",
    "ret",
    "marple_walk_calls: call marple_walk_ours",
    "nop",
    "call marple_walk_leaf",
    "nop",
    "call marple_walk_far",
    "nop",
    "call marple_walk_covered",
    "nop",
    "call marple_walk_later",
    "nop",
    "call [rip + 0]",
    "nop",
    ".popsection",
);

// SAFETY: the block above defines them; only their addresses are taken.
unsafe extern "C" {
    static marple_walk_in_leaf: u8;
    static marple_walk_in_ours: u8;
    static marple_walk_calls: u8;
}

/// Where the call of this place in the list returns to: 5 bytes of a call, one between two.
fn after_call(place: u64) -> u64 {
    (&raw const marple_walk_calls) as u64 + place * 6 + 5
}

/// A walk from `ip` with `ra` where a function that sets the frame pointer has its return address, and
/// `top` at the top of the stack.
fn walk_from(ip: u64, top: u64, ra: u64) -> (Walk, [u64; 4]) {
    let mut walker = Walker::new().unwrap();
    let sp = 0x7000_0000;
    let stack = [top, 0, 0x7000_0100, ra, 0, 0, 0, 0];
    let registers = Registers { ip, sp, fp: sp + 16, lr: 0 };
    let mut frames = [0; 4];
    let walk = walker.walk(registers, &stack, true, &mut frames);
    (walk, frames)
}

#[test]
fn a_caller_is_believed_when_it_calls_the_function_we_are_in() {
    let ip = (&raw const marple_walk_in_ours) as u64;
    let (walk, frames) = walk_from(ip, 0, after_call(0));
    assert_eq!((walk.depth, frames[0], frames[1]), (3, ip, after_call(0) - 1), "{walk:?}");
    assert!(walk.is_inferred);
    let ip = (&raw const marple_walk_in_leaf) as u64;
    let (walk, frames) = walk_from(ip, after_call(1), 0);
    assert_eq!((walk.depth, frames[1]), (3, after_call(1) - 1), "{walk:?}");
}

/// The frame pointer of a function further out leads to such an address: the walk would skip what lies
/// between, and look whole.
#[test]
fn a_return_address_behind_a_call_of_another_function_is_not_believed() {
    for (call, what) in [
        (2, "a function too far below"),
        (3, "a function that has a table, so that it is not what we are in"),
        (4, "a function above"),
    ] {
        for ip in [(&raw const marple_walk_in_ours), (&raw const marple_walk_in_leaf)] {
            let ra = after_call(call);
            let (walk, frames) = walk_from(ip as u64, ra, ra);
            assert_eq!((walk.depth, walk.end), (2, End::Broken), "{what}: {frames:x?}");
            assert!(!walk.is_inferred, "{what}");
        }
    }
    // A call through a pointer may be of any function; that ours has a frame speaks for it.
    let ra = after_call(5) + 1;
    let (walk, _) = walk_from((&raw const marple_walk_in_leaf) as u64, ra, ra);
    assert_eq!((walk.depth, walk.end), (2, End::Broken), "a function without a frame");
    // A leaf has its caller at the top of the stack, and what is behind the frame pointer is not its.
    let (walk, _) = walk_from((&raw const marple_walk_in_leaf) as u64, 0, after_call(1));
    assert_eq!((walk.depth, walk.end), (2, End::Broken));
}

#[test]
fn a_caller_through_a_pointer_is_believed_where_the_function_sets_the_frame_pointer() {
    let ip = (&raw const marple_walk_in_ours) as u64;
    let (walk, frames) = walk_from(ip, 0, after_call(5) + 1);
    assert_eq!((walk.depth, frames[0], frames[1]), (3, ip, after_call(5)), "{walk:?}");
    assert!(walk.is_inferred);
}
