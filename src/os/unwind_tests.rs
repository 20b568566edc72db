use super::*;

#[inline(never)]
fn innermost(skip: usize, frames: &mut [u64]) -> Walk {
    std::hint::black_box(loop {
        match unwind_here(skip, frames) {
            Err(Unknown::NotReady) => std::thread::yield_now(),
            walk => break walk.unwrap(),
        }
    })
}

#[inline(never)]
fn deeper(levels: usize, skip: usize, frames: &mut [u64]) -> Walk {
    std::hint::black_box(match levels {
        0 => innermost(skip, frames),
        _ => deeper(levels - 1, skip, frames),
    })
}

/// Whether `address` is in the first kilobyte of `function`.
fn is_in(address: u64, function: usize) -> bool {
    (function as u64..function as u64 + 1024).contains(&address)
}

#[test]
fn a_stack_is_whole_and_names_its_callers() {
    let mut frames = [0; MAX_FRAMES];
    let walk = deeper(5, 0, &mut frames);
    assert_eq!(walk.end, End::Whole);
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
fn a_deep_stack_is_cut_at_the_outer_end() {
    let mut frames = [0; MAX_FRAMES];
    let walk = deeper(200, 0, &mut frames);
    assert_eq!(walk, Walk { depth: MAX_FRAMES, end: End::Truncated, is_inferred: false });
    assert!(is_in(frames[MAX_FRAMES - 1], deeper as fn(_, _, _) -> _ as usize));
}

#[test]
fn a_thread_near_the_end_of_its_stack_is_left_alone() {
    let small = std::thread::Builder::new().stack_size(HEADROOM as usize / 2);
    let walk = small.spawn(|| unwind_here(0, &mut [0; 4])).unwrap().join().unwrap();
    assert_eq!(walk, Err(Unknown::Stack));
}

#[test]
fn tables_are_replaced_under_walkers_and_freed_after_them() {
    std::thread::scope(|scope| {
        let walkers: Vec<_> = (0..4)
            .map(|_| {
                scope.spawn(|| {
                    for _ in 0..200 {
                        let mut frames = [0; MAX_FRAMES];
                        assert_eq!(deeper(3, 0, &mut frames).end, End::Whole);
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
