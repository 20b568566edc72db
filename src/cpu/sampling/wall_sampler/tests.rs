use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::thread;

use rustix::event::{PollFd, PollFlags, poll};

use super::*;

/// Waits in `poll`, which a signal interrupts, until there is something to read; counts the
/// interruptions.
fn block_in_poll(pipe: &OwnedFd, tid: &AtomicU32, interruptions: &AtomicU64) {
    tid.store(threads::current_tid(), Ordering::Release);
    while poll(&mut [PollFd::new(pipe, PollFlags::IN)], None).is_err() {
        interruptions.fetch_add(1, Ordering::Release);
    }
}

#[test]
fn sleeping_thread_is_not_signalled_again_once_stack_is_cached() {
    for read_from_proc in [true, false] {
        let (pipe, hold) = rustix::pipe::pipe().unwrap();
        let tid = AtomicU32::new(0);
        let interruptions = AtomicU64::new(0);
        thread::scope(|scope| {
            scope.spawn(|| block_in_poll(&pipe, &tid, &interruptions));
            let mut sampler = WallSampler::new(Hertz(1000), true, read_from_proc).unwrap();
            sampler.own_tid = threads::current_tid();
            // Five checks in a row must find the thread undisturbed.
            let mut still = 0;
            let mut ticks = 0;
            while still < 5 {
                thread::sleep(Duration::from_millis(2));
                let before = interruptions.load(Ordering::Acquire);
                sampler.tick();
                ticks += 1;
                let entry = sampler.threads.get(&tid.load(Ordering::Acquire));
                let is_still = entry.is_some_and(|known| known.sleeping.is_some())
                    && interruptions.load(Ordering::Acquire) == before;
                still = if is_still { still + 1 } else { 0 };
                assert!(ticks < 10_000, "from outside: {read_from_proc}, {:?}", sampler.counts);
            }
            let entry = &sampler.threads[&tid.load(Ordering::Acquire)];
            assert!(entry.sleeping.as_ref().is_some_and(|asleep| asleep.frames.len() > 3));
            assert!(read_from_proc || interruptions.load(Ordering::Acquire) >= 1);
            assert!(rustix::io::write(hold.as_fd(), b"x").is_ok());
        });
    }
}

#[test]
fn unused_tokens_are_limited_to_one_tick_or_one_batch() {
    for (frequency, capacity) in [(1, 500), (19, MAX_IN_FLIGHT), (100, MAX_IN_FLIGHT)] {
        let mut bucket = bucket_for(500, Hertz(frequency));
        assert!(!bucket.has(1), "{frequency} Hz");
        bucket.refill(Duration::from_secs(60));
        assert!(bucket.has(capacity) && !bucket.has(capacity + 1), "{frequency} Hz");
    }
}
