use crate::base::sync::Ordering::Relaxed;
use crate::os::stack_snapshot::*;

fn head(weight: u32) -> SnapshotHeader {
    SnapshotHeader {
        tid: 7,
        tag: 9,
        weight,
        registers: Registers { ip: 1, sp: 2, fp: 3, lr: 4 },
        thread_pointer: 5,
        time: 6,
    }
}

/// Fills a slot with `words` of stack, up to its capacity.
fn publish(
    slot: ClaimedSlot<'_>,
    head: &SnapshotHeader,
    words: impl Iterator<Item = u64>,
    whole: bool,
) {
    slot.publish(head, whole, |places| {
        places.iter().zip(words).map(|(place, word)| place.store(word, Relaxed)).count()
    });
}

fn taken(slots: &SnapshotPool) -> Vec<StackSnapshot> {
    let mut taken = Vec::new();
    slots.drain(&mut StackSnapshot::default(), |copied| taken.push(copied.clone()));
    taken
}

#[test]
fn what_was_published_is_taken_once() {
    let slots = SnapshotPool::map(4, 32).unwrap();
    publish(slots.claim().unwrap(), &head(3), [10, 11].into_iter(), true);
    let unfinished = slots.claim().unwrap();
    let got = taken(&slots);
    assert_eq!(got.len(), 1);
    assert_eq!((got[0].head, &got[0].stack[..], got[0].whole), (head(3), &[10, 11][..], true));
    assert!(taken(&slots).is_empty());
    assert_eq!(unfinished.room(), 4);
    publish(unfinished, &head(1), 0..100, false);
    let got = taken(&slots);
    assert_eq!((&got[0].stack[..], got[0].whole), (&[0, 1, 2, 3][..], false));
}

#[test]
fn a_full_pool_refuses_and_one_freed_slot_is_found() {
    for slots in [1, 2, REACH - 1, REACH] {
        let pool = SnapshotPool::map(slots, 8).unwrap();
        for _ in 0..slots {
            publish(pool.claim().unwrap(), &head(1), [1].into_iter(), true);
        }
        assert!(pool.claim().is_none(), "{slots}");
        pool.lose(2);
        assert_eq!(taken(&pool).len(), slots);
        assert!(pool.claim().is_some());
        assert_eq!(pool.lost(), 2);
    }
}

#[test]
fn many_writers_lose_nothing_that_is_not_counted() {
    let pool = SnapshotPool::map(8, 64).unwrap();
    let (mut got, writers, each) = (0, 4, if cfg!(miri) { 40 } else { 2000 });
    let mut copied = StackSnapshot::default();
    let mut take = |copied: &StackSnapshot| {
        assert_eq!(copied.stack, [copied.stack[0]; 8]);
        got += 1;
    };
    std::thread::scope(|scope| {
        let threads: Vec<_> = (0..writers)
            .map(|writer: u64| {
                let pool = &pool;
                scope.spawn(move || {
                    for _ in 0..each {
                        match pool.claim() {
                            Some(slot) => publish(slot, &head(1), [writer; 8].into_iter(), true),
                            None => pool.lose(1),
                        }
                    }
                })
            })
            .collect();
        while !threads.iter().all(std::thread::ScopedJoinHandle::is_finished) {
            pool.drain(&mut copied, &mut take);
        }
    });
    // A finished thread may still have unobserved writes; joining it makes them visible.
    pool.drain(&mut copied, &mut take);
    assert!(got > 0);
    assert_eq!(got + pool.lost(), writers * each);
}
