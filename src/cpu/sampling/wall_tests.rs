use std::os::fd::{AsFd, OwnedFd};
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};

use rustix::event::{PollFd, PollFlags, poll};

use super::*;

/// Waits in `poll`, which a signal interrupts, until there is something to read; counts the
/// interruptions.
fn wait(pipe: &OwnedFd, tid: &AtomicU32, cut: &AtomicU64) {
    tid.store(threads::current(), Ordering::Release);
    while poll(&mut [PollFd::new(pipe, PollFlags::IN)], None).is_err() {
        cut.fetch_add(1, Ordering::Release);
    }
}

#[test]
fn a_thread_that_sleeps_is_signalled_until_it_is_seen_to_sleep_on_and_then_no_more() {
    for from_outside in [true, false] {
        let (pipe, hold) = rustix::pipe::pipe().unwrap();
        let (tid, cut) = (AtomicU32::new(0), AtomicU64::new(0));
        thread::scope(|scope| {
            scope.spawn(|| wait(&pipe, &tid, &cut));
            let mut watch = WallSampler::new(Hertz(1000), true, from_outside).unwrap();
            watch.own = threads::current();
            // Five checks in a row must find the thread undisturbed.
            let (mut still, mut looks) = (0, 0);
            while still < 5 {
                thread::sleep(Duration::from_millis(2));
                let before = cut.load(Ordering::Acquire);
                watch.tick();
                looks += 1;
                let known = watch.watched.get(&tid.load(Ordering::Acquire));
                let is_still = known.is_some_and(|known| known.asleep.is_some())
                    && cut.load(Ordering::Acquire) == before;
                still = if is_still { still + 1 } else { 0 };
                assert!(looks < 10_000, "from outside: {from_outside}, {:?}", watch.counts);
            }
            let known = &watch.watched[&tid.load(Ordering::Acquire)];
            assert!(known.asleep.as_ref().is_some_and(|asleep| asleep.frames.len() > 3));
            assert!(from_outside || cut.load(Ordering::Acquire) >= 1);
            assert!(rustix::io::write(hold.as_fd(), b"x").is_ok());
        });
    }
}

#[test]
fn a_budget_gives_a_second_its_share_and_no_more() {
    let mut budget = TokenBucket::new(500);
    assert!(budget.is_spent());
    budget.grow(Duration::from_millis(2), Hertz(19));
    assert!(!budget.is_spent());
    budget.grow(Duration::from_secs(60), Hertz(1));
    assert!((budget.left - 500.0).abs() < 1e-9);
    budget.grow(Duration::from_secs(60), Hertz(100));
    assert!((budget.left - 64.0).abs() < 1e-9);
}
