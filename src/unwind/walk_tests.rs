#![allow(unsafe_code, reason = "symbols of assembly as extern statics")]

use super::*;
use crate::unwind::{StackWalk, StackWalker};

// Functions at known distances, all but one without tables. None of them is executed: a walk only
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

/// Returns the return address of call number `place`: 5 bytes per call and one byte between two.
fn after_call(index: u64) -> u64 {
    (&raw const marple_walk_calls) as u64 + index * 6 + 5
}

/// Walks from `ip`, with `ra` as the return address behind the frame pointer and `top` at the top
/// of the stack.
fn walk_from(ip: u64, top: u64, ra: u64) -> (StackWalk, [u64; 4]) {
    let mut walker = StackWalker::new().unwrap();
    let sp = 0x7000_0000;
    let stack = [top, 0, 0x7000_0100, ra, 0, 0, 0, 0];
    let registers = Registers { ip, sp, fp: sp + 16, lr: 0 };
    let mut frames = [0; 4];
    let walk = walker.walk(registers, &stack, true, &mut frames);
    (walk, frames)
}

#[test]
fn inferred_caller_must_call_the_current_function() {
    let ip = (&raw const marple_walk_in_ours) as u64;
    let (walk, frames) = walk_from(ip, 0, after_call(0));
    assert_eq!((walk.depth, frames[0], frames[1]), (3, ip, after_call(0) - 1), "{walk:?}");
    assert!(walk.used_heuristics);
    let ip = (&raw const marple_walk_in_leaf) as u64;
    let (walk, frames) = walk_from(ip, after_call(1), 0);
    assert_eq!((walk.depth, frames[1]), (3, after_call(1) - 1), "{walk:?}");
}

/// A frame pointer that belongs to a function further out leads to such an address. The walk would
/// skip the frames in between and appear complete.
#[test]
fn return_address_after_unrelated_call_is_rejected() {
    for (call, what) in [
        (2, "a function too far below"),
        (3, "a function with a table, which cannot be the current one"),
        (4, "a function above"),
    ] {
        for ip in [(&raw const marple_walk_in_ours), (&raw const marple_walk_in_leaf)] {
            let ra = after_call(call);
            let (walk, frames) = walk_from(ip as u64, ra, ra);
            assert_eq!((walk.depth, walk.end), (2, WalkEnd::NoUnwindInfo), "{what}: {frames:x?}");
            assert!(!walk.used_heuristics, "{what}");
        }
    }
    // A call through a pointer may reach any function; the prologue of the current one makes it
    // plausible.
    let ra = after_call(5) + 1;
    let (walk, _) = walk_from((&raw const marple_walk_in_leaf) as u64, ra, ra);
    assert_eq!((walk.depth, walk.end), (2, WalkEnd::NoUnwindInfo), "a function without a frame");
    // A leaf's caller is at the top of the stack, and the word behind the frame pointer is not its
    // own.
    let (walk, _) = walk_from((&raw const marple_walk_in_leaf) as u64, 0, after_call(1));
    assert_eq!((walk.depth, walk.end), (2, WalkEnd::NoUnwindInfo));
}

#[test]
fn indirect_call_is_accepted_if_prologue_sets_frame_pointer() {
    let ip = (&raw const marple_walk_in_ours) as u64;
    let (walk, frames) = walk_from(ip, 0, after_call(5) + 1);
    assert_eq!((walk.depth, frames[0], frames[1]), (3, ip, after_call(5)), "{walk:?}");
    assert!(walk.used_heuristics);
}
