#![allow(unsafe_code, reason = "reads and writes of the unused part of the stack")]

use super::*;
use crate::model::Marker;
use crate::unwind::{MAX_FRAMES, refresh};

#[inline(never)]
fn innermost(skip: usize, frames: &mut [u64]) -> StackWalk {
    std::hint::black_box(loop {
        match unwind_here(skip, frames) {
            Err(UnwindError::NotReady) => std::thread::yield_now(),
            walk => break walk.unwrap(),
        }
    })
}

#[inline(never)]
pub(in crate::unwind) fn recurse(levels: usize, skip: usize, frames: &mut [u64]) -> StackWalk {
    std::hint::black_box(match levels {
        0 => innermost(skip, frames),
        _ => recurse(levels - 1, skip, frames),
    })
}

/// Returns `true` if `address` is in the first kilobyte of `function`.
fn is_in(address: u64, function: usize) -> bool {
    (function as u64..function as u64 + 1024).contains(&address)
}

#[test]
fn complete_stack_contains_all_callers() {
    let mut frames = [0; MAX_FRAMES];
    let walk = recurse(5, 0, &mut frames);
    assert_eq!(walk.end, WalkEnd::Complete);
    assert!(is_in(frames[0], innermost as fn(_, _) -> _ as usize), "{frames:x?}");
    for &frame in &frames[1..7] {
        assert!(is_in(frame, recurse as fn(_, _, _) -> _ as usize), "{frames:x?}");
    }
    let test = complete_stack_contains_all_callers as fn() as usize;
    assert!(is_in(frames[7], test), "{frames:x?}");
    assert!(walk.depth > 10, "no test harness and no thread start in {frames:x?}");
}

#[test]
fn innermost_frames_can_be_skipped() {
    let mut all = [0; MAX_FRAMES];
    let mut some = [0; MAX_FRAMES];
    let walks = [(0, &mut all), (3, &mut some)].map(|(skip, into)| recurse(5, skip, into));
    assert_eq!(walks[0].depth - 3, walks[1].depth);
    assert_eq!(all[3..6], some[..3]);
}

#[test]
fn deep_stack_keeps_both_ends() {
    let mut shallow = [0; MAX_FRAMES];
    let mut frames = [0; MAX_FRAMES];
    let whole = recurse(2, 0, &mut shallow);
    let walk = recurse(1000, 0, &mut frames);
    assert_eq!((walk.depth, walk.end, walk.is_joined), (MAX_FRAMES, WalkEnd::Complete, false));
    assert_eq!(walk.depth - 1 + walk.omitted, whole.depth + 998);
    assert!(is_in(frames[0], innermost as fn(_, _) -> _ as usize));
    assert_eq!(frames[MAX_FRAMES / 2], Marker::Omitted.address());
    let root = &shallow[..whole.depth][whole.depth - 6..];
    assert_eq!(frames[MAX_FRAMES - 6..], *root, "another thread start");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn too_deep_stack_gets_outermost_frames_of_earlier_walk() {
    let run = |is_known: bool| {
        let thread = std::thread::Builder::new().stack_size(8 << 20);
        let run = move || {
            let mut shallow = [0; MAX_FRAMES];
            let mut frames = [0; MAX_FRAMES];
            let whole = if is_known { recurse(2, 0, &mut shallow).depth } else { 0 };
            let walk = recurse(10_000, 0, &mut frames);
            (walk, frames, shallow[..whole].to_vec())
        };
        thread.spawn(run).unwrap().join().unwrap()
    };
    let (walk, frames, known) = run(true);
    assert_eq!((walk.end, walk.is_joined), (WalkEnd::Complete, true));
    assert_eq!(frames[walk.depth - 4..walk.depth], known[known.len() - 4..]);
    let (walk, frames, _) = run(false);
    assert_eq!((walk.end, walk.is_joined), (WalkEnd::TooManyFrames, false));
    assert_eq!(frames[walk.depth - 1], Marker::TooManyFrames.address());
}

/// Recurses until less than `left` bytes of stack remain.
#[inline(never)]
fn unwind_when_stack_below(remaining: u64, frames: &mut [u64]) -> Result<StackWalk, UnwindError> {
    let place = [0u8; 256];
    let here = std::hint::black_box(&raw const place) as u64;
    std::hint::black_box(if here - current_stack_bounds().unwrap().start < remaining {
        unwind_here(0, frames)
    } else {
        unwind_when_stack_below(remaining, frames)
    })
}

fn run_with_stack_size<T: Send + 'static>(
    bytes: usize,
    run: impl FnOnce() -> T + Send + 'static,
) -> T {
    std::thread::Builder::new().stack_size(bytes).spawn(run).unwrap().join().unwrap()
}

#[test]
fn walk_fails_only_when_stack_is_nearly_exhausted() {
    refresh().unwrap();
    let at = |stack: usize, left: u64| {
        run_with_stack_size(stack, move || {
            let mut frames = [0; MAX_FRAMES];
            let walk = unwind_when_stack_below(left, &mut frames);
            let root = walk.ok().and_then(|walk| frames.get(walk.depth - 1).copied());
            (walk.map(|walk| walk.end), root)
        })
    };
    let room = MIN_FREE_STACK + 2048;
    let (end, root) = at(1 << 20, room);
    assert_eq!(end, Ok(WalkEnd::Complete));
    let small = MIN_FREE_STACK as usize + (24 << 10);
    assert_eq!(at(small, room), (Ok(WalkEnd::Complete), root), "a small one");
    assert_eq!(at(1 << 20, MIN_FREE_STACK), (Err(UnwindError::NearStackEnd), None));
    assert_eq!(at(small, MIN_FREE_STACK), (Err(UnwindError::NearStackEnd), None));
}

/// The guard is close to the measured usage, apart from the reserve for a signal.
#[test]
fn walk_uses_less_stack_than_reserved() {
    refresh().unwrap();
    let used_bytes = run_with_stack_size(1 << 20, || {
        const FILL_PATTERN: u64 = 0xa5a5_a5a5_a5a5_a5a5;
        let mut frames = [0; MAX_FRAMES];
        let here = frames.as_ptr().addr() as u64 - 4096;
        let start = here - (128 << 10);
        // SAFETY: this thread's stack, beyond the part in use below this frame.
        (start..here)
            .step_by(8)
            .for_each(|at| unsafe { (at as *mut u64).write_volatile(FILL_PATTERN) });
        assert_eq!(unwind_here(0, &mut frames).unwrap().end, WalkEnd::Complete);
        // SAFETY: as above.
        let untouched = |at: &u64| unsafe { (*at as *const u64).read_volatile() } == FILL_PATTERN;
        here + 4096 - (start..here).step_by(8).find(|at| !untouched(at)).unwrap_or(here)
    });
    println!("{used_bytes} bytes");
    assert!(used_bytes < MIN_FREE_STACK * 3 / 4, "{used_bytes} bytes");
}
