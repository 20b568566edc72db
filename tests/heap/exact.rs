//! At rate 1 the profile is exact, in whatever order threads free and grow each other's blocks.

use std::cell::RefCell;
use std::hint::black_box;
use std::sync::atomic::Ordering::SeqCst;
use std::sync::{Barrier, Mutex, mpsc};

use marple::internals::base::Bytes;
use marple::internals::heap;
use marple::internals::model::{LabelValue, Profile};

use crate::support::counted_blocks::{assert_exact, block, snapshot, sum_of_counted_sizes};
use crate::support::counting::{ALLOCATED, BLOCKS, COUNTED_SIZES, REALLOC_FAILURES};

/// Counts and tables belong to the process, so the tests run one at a time.
static SERIAL: Mutex<()> = Mutex::new(());

#[test]
fn ten_blocks_of_240_kib_are_exact() {
    let _serial = SERIAL.lock().unwrap();
    heap::set_rate(Bytes(1));
    let size = 240 << 10;
    let blocks: Vec<Vec<u8>> = (0..10).map(|_| Vec::with_capacity(size)).collect();
    let bytes = 10 * size as i64;
    let profile = snapshot();
    drop(blocks);
    let freed = snapshot();
    assert_eq!(sums_of_size(&profile, size), [10, bytes, 10, bytes]);
    assert_eq!(sums_of_size(&freed, size), [10, bytes, 0, 0]);
}

/// Returns the sums of the samples with this block size, one for each sample type.
fn sums_of_size(profile: &Profile, size: usize) -> Vec<i64> {
    let is_size = |value| matches!(value, LabelValue::Number(n, _) if n == size as i64);
    let of_size = profile
        .samples
        .iter()
        .filter(|sample| sample.labels.iter().any(|label| is_size(label.value)));
    of_size.fold(vec![0; 4], |sums, sample| {
        sums.iter().zip(&sample.values).map(|(a, b)| a + b).collect()
    })
}

/// Threads that exist when the rate is set still have a budget of unsampled bytes from the previous
/// rate.
#[test]
fn blocks_of_existing_threads_are_exact_after_rate_1() {
    /// Below the sizes that the counting allocator watches.
    const SIZE: usize = 1777;
    let _serial = SERIAL.lock().unwrap();
    for round in 1..=2 {
        heap::set_rate(Bytes(512 << 10));
        let before = sums_of_size(&snapshot(), SIZE)[0];
        let barrier = Barrier::new(5);
        let kept = Mutex::new(Vec::new());
        std::thread::scope(|scope| {
            for _ in 0..4 {
                scope.spawn(|| {
                    // Enough for a thread's budget of unsampled bytes to reach its maximum.
                    (0..400).for_each(|_| drop(black_box(Vec::<u8>::with_capacity(1024))));
                    barrier.wait();
                    barrier.wait();
                    for _ in 0..10 {
                        let block = black_box(Vec::<u8>::with_capacity(SIZE));
                        kept.lock().unwrap().push(block);
                    }
                });
            }
            barrier.wait();
            heap::set_rate(Bytes(1));
            barrier.wait();
        });
        let profile = snapshot();
        let sums = sums_of_size(&profile, SIZE);
        let bytes = 40 * SIZE as i64;
        assert_eq!(sums[0] - before, 40, "round {round}");
        assert_eq!(sums[2..], [40, bytes], "round {round}");
        let has_comment = |what: &str| profile.comments.iter().any(|line| line.contains(what));
        assert!(
            has_comment("every allocation is recorded, because the rate is 1"),
            "{:?}",
            profile.comments
        );
        assert!(has_comment("are exact; the others are estimated"), "{:?}", profile.comments);
        drop(kept);
        assert_eq!(sums_of_size(&snapshot(), SIZE)[2..], [0, 0]);
    }
}

#[test]
fn cross_thread_free_and_realloc_is_exact() {
    let _serial = SERIAL.lock().unwrap();
    heap::set_rate(Bytes(1));
    std::thread::scope(|scope| {
        let (senders, receivers): (Vec<_>, Vec<_>) =
            (0..4).map(|_| mpsc::channel::<Vec<u8>>()).unzip();
        for (me, receiver) in receivers.into_iter().enumerate() {
            let to = senders[(me + 1) % 4].clone();
            scope.spawn(move || {
                let mut received = 0;
                for n in 0..2000 {
                    let _ = to.send(block(n * 4 + me));
                    while let Ok(mut theirs) = receiver.try_recv() {
                        received += 1;
                        match received % 4 {
                            0 => theirs.reserve_exact(COUNTED_SIZES.start + n * 31 % 90_000),
                            1 => theirs.shrink_to(COUNTED_SIZES.start / 2),
                            2 if received % 64 == 2 => std::mem::forget(theirs),
                            _ => {}
                        }
                    }
                }
            });
        }
        drop(senders);
    });
    assert_exact();
    assert!(BLOCKS.load(SeqCst) > 0, "some were kept");
}

#[test]
fn allocations_in_thread_exit_are_exact() {
    struct AllocateOnDrop(Vec<Vec<u8>>);

    impl Drop for AllocateOnDrop {
        fn drop(&mut self) {
            let mut kept = block(self.0.len());
            kept.push(1);
            std::mem::forget(kept);
            self.0.push(block(3));
        }
    }

    thread_local! {
        static EARLY: RefCell<AllocateOnDrop> = const { RefCell::new(AllocateOnDrop(Vec::new())) };
        static LATE: RefCell<AllocateOnDrop> = const { RefCell::new(AllocateOnDrop(Vec::new())) };
    }

    let _serial = SERIAL.lock().unwrap();
    heap::set_rate(Bytes(1));
    for round in 0..500 {
        let threads: Vec<_> = (0..4)
            .map(|thread| {
                std::thread::spawn(move || {
                    EARLY.with_borrow_mut(|at_exit| at_exit.0.push(block(round + thread)));
                    LATE.with_borrow_mut(|at_exit| at_exit.0.push(block(round * thread)));
                })
            })
            .collect();
        // A scope would not wait for the destructors of thread-locals.
        threads.into_iter().for_each(|thread| thread.join().unwrap());
    }
    assert_exact();
}

#[test]
fn failed_realloc_keeps_block_in_profile() {
    let _serial = SERIAL.lock().unwrap();
    heap::set_rate(Bytes(1));
    let mut current_block = block(0);
    REALLOC_FAILURES.store(1, SeqCst);
    assert!(current_block.try_reserve_exact(COUNTED_SIZES.end - 1).is_err());
    assert_eq!(REALLOC_FAILURES.load(SeqCst), 0);
    assert_exact();
    drop(current_block);
    assert_exact();
}

#[test]
fn excluded_thread_allocations_are_omitted_and_frees_are_recorded() {
    let _serial = SERIAL.lock().unwrap();
    heap::set_rate(Bytes(1));
    let before = sum_of_counted_sizes(&snapshot(), 3);
    let recorded = block(5);
    let excluded = heap::exclude_current_thread();
    let unseen = block(6);
    drop(recorded);
    let nested = heap::exclude_current_thread();
    drop(nested);
    let unseen_too = block(7);
    drop(excluded);
    let seen = block(8);
    let after = sum_of_counted_sizes(&snapshot(), 3);
    assert_eq!(after - before, seen.capacity() as i64);
    // The profile excludes these blocks, so the expected count must exclude them, too.
    ALLOCATED.fetch_sub((unseen.capacity() + unseen_too.capacity()) as i64, SeqCst);
    drop((unseen, unseen_too));
    drop(seen);
    assert_exact();
}
