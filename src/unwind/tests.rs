#![allow(unsafe_code)]

use super::*;
use crate::model::Marker;

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
fn deeper(levels: usize, skip: usize, frames: &mut [u64]) -> StackWalk {
    std::hint::black_box(match levels {
        0 => innermost(skip, frames),
        _ => deeper(levels - 1, skip, frames),
    })
}

/// Returns `true` if `address` is in the first kilobyte of `function`.
fn is_in(address: u64, function: usize) -> bool {
    (function as u64..function as u64 + 1024).contains(&address)
}

#[test]
fn a_stack_is_whole_and_names_its_callers() {
    let mut frames = [0; MAX_FRAMES];
    let walk = deeper(5, 0, &mut frames);
    assert_eq!(walk.end, WalkEnd::Whole);
    assert!(is_in(frames[0], innermost as fn(_, _) -> _ as usize), "{frames:x?}");
    for &frame in &frames[1..7] {
        assert!(is_in(frame, deeper as fn(_, _, _) -> _ as usize), "{frames:x?}");
    }
    let test = a_stack_is_whole_and_names_its_callers as fn() as usize;
    assert!(is_in(frames[7], test), "{frames:x?}");
    assert!(walk.depth > 10, "no test harness and no thread start in {frames:x?}");
}

#[test]
fn frames_can_be_skipped() {
    let (mut all, mut some) = ([0; MAX_FRAMES], [0; MAX_FRAMES]);
    let walks = [(0, &mut all), (3, &mut some)].map(|(skip, into)| deeper(5, skip, into));
    assert_eq!(walks[0].depth - 3, walks[1].depth);
    assert_eq!(all[3..6], some[..3]);
}

#[test]
fn a_deep_stack_keeps_both_ends() {
    let (mut shallow, mut frames) = ([0; MAX_FRAMES], [0; MAX_FRAMES]);
    let whole = deeper(2, 0, &mut shallow);
    let walk = deeper(1000, 0, &mut frames);
    assert_eq!((walk.depth, walk.end, walk.is_joined), (MAX_FRAMES, WalkEnd::Whole, false));
    assert_eq!(walk.depth - 1 + walk.omitted, whole.depth + 998);
    assert!(is_in(frames[0], innermost as fn(_, _) -> _ as usize));
    assert_eq!(frames[MAX_FRAMES / 2], Marker::Omitted.address());
    let root = &shallow[..whole.depth][whole.depth - 6..];
    assert_eq!(frames[MAX_FRAMES - 6..], *root, "another thread start");
}

#[test]
#[cfg(target_arch = "x86_64")]
fn a_stack_of_more_frames_than_are_walked_has_the_outermost_of_the_walk_before() {
    let run = |is_known: bool| {
        let thread = std::thread::Builder::new().stack_size(8 << 20);
        let run = move || {
            let (mut shallow, mut frames) = ([0; MAX_FRAMES], [0; MAX_FRAMES]);
            let whole = if is_known { deeper(2, 0, &mut shallow).depth } else { 0 };
            let walk = deeper(10_000, 0, &mut frames);
            (walk, frames, shallow[..whole].to_vec())
        };
        thread.spawn(run).unwrap().join().unwrap()
    };
    let (walk, frames, known) = run(true);
    assert_eq!((walk.end, walk.is_joined), (WalkEnd::Whole, true));
    assert_eq!(frames[walk.depth - 4..walk.depth], known[known.len() - 4..]);
    let (walk, frames, _) = run(false);
    assert_eq!((walk.end, walk.is_joined), (WalkEnd::TooDeep, false));
    assert_eq!(frames[walk.depth - 1], Marker::TooManyFrames.address());
}

/// Recurses until less than `left` bytes of stack remain.
#[inline(never)]
fn until(left: u64, frames: &mut [u64]) -> Result<StackWalk, UnwindError> {
    let place = [0u8; 256];
    let here = std::hint::black_box(&raw const place) as u64;
    std::hint::black_box(if here - bounds().unwrap().start < left {
        unwind_here(0, frames)
    } else {
        until(left, frames)
    })
}

fn on_a_stack_of<T: Send + 'static>(bytes: usize, run: impl FnOnce() -> T + Send + 'static) -> T {
    std::thread::Builder::new().stack_size(bytes).spawn(run).unwrap().join().unwrap()
}

#[test]
fn a_thread_near_the_end_of_its_stack_has_one_until_there_is_no_room_for_a_walk() {
    refresh().unwrap();
    let at = |stack: usize, left: u64| {
        on_a_stack_of(stack, move || {
            let mut frames = [0; MAX_FRAMES];
            let walk = until(left, &mut frames);
            let root = walk.ok().and_then(|walk| frames.get(walk.depth - 1).copied());
            (walk.map(|walk| walk.end), root)
        })
    };
    let room = HEADROOM + 2048;
    let (end, root) = at(1 << 20, room);
    assert_eq!(end, Ok(WalkEnd::Whole));
    let small = HEADROOM as usize + (24 << 10);
    assert_eq!(at(small, room), (Ok(WalkEnd::Whole), root), "a small one");
    assert_eq!(at(1 << 20, HEADROOM), (Err(UnwindError::NearEnd), None));
    assert_eq!(at(small, HEADROOM), (Err(UnwindError::NearEnd), None));
}

/// The guard is close to the measured usage, apart from the reserve for a signal.
#[test]
fn a_walk_takes_less_stack_than_must_be_left() {
    refresh().unwrap();
    let taken = on_a_stack_of(1 << 20, || {
        const PAINT: u64 = 0xa5a5_a5a5_a5a5_a5a5;
        let mut frames = [0; MAX_FRAMES];
        let here = frames.as_ptr().addr() as u64 - 4096;
        let start = here - (128 << 10);
        // SAFETY: this thread's stack, beyond the part in use below this frame.
        (start..here).step_by(8).for_each(|at| unsafe { (at as *mut u64).write_volatile(PAINT) });
        assert_eq!(unwind_here(0, &mut frames).unwrap().end, WalkEnd::Whole);
        // SAFETY: as above.
        let untouched = |at: &u64| unsafe { (*at as *const u64).read_volatile() } == PAINT;
        here + 4096 - (start..here).step_by(8).find(|at| !untouched(at)).unwrap_or(here)
    });
    println!("{taken} bytes");
    assert!(taken < HEADROOM * 3 / 4, "{taken} bytes");
}

#[test]
fn tables_are_replaced_under_walkers_and_freed_after_them() {
    std::thread::scope(|scope| {
        let walkers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let mut frames = [0; MAX_FRAMES];
                        assert_eq!(deeper(3, 0, &mut frames).end, WalkEnd::Whole);
                    }
                })
            })
            .collect();
        while walkers.iter().any(|walker| !walker.is_finished()) {
            GENERATION.store(0, Relaxed);
            refresh().unwrap();
        }
    });
    GENERATION.store(0, Relaxed);
    while !refresh().unwrap() {
        std::thread::yield_now();
    }
    assert!(!refresh().unwrap(), "nothing was loaded in between");
    assert!(RETIRED.lock().unwrap().len() <= MAX_RETIRED);
}

#[test]
fn refused_claims_do_not_release_the_right_to_build() {
    let building = loop {
        // Another test may be building.
        if let Some(building) = Building::claim() {
            break building;
        }
        std::thread::yield_now();
    };
    assert!(Building::claim().is_none());
    assert!(Building::claim().is_none());
    drop(building);
}
