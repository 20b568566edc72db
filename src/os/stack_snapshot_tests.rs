use crate::base::sync::Ordering::Relaxed;
use crate::os::stack_snapshot::*;

fn test_header(weight: u32) -> SnapshotHeader {
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
    header: &SnapshotHeader,
    words: impl Iterator<Item = u64>,
    is_complete: bool,
) {
    slot.publish(header, is_complete, |places| {
        places.iter().zip(words).map(|(place, word)| place.store(word, Relaxed)).count()
    });
}

fn drain_all(slots: &SnapshotPool) -> Vec<StackSnapshot> {
    let mut snapshots = Vec::new();
    slots.drain(&mut StackSnapshot::default(), |copied| snapshots.push(copied.clone()));
    snapshots
}

#[test]
fn published_stack_is_drained_once() {
    let slots = SnapshotPool::map(4, 32).unwrap();
    publish(slots.claim().unwrap(), &test_header(3), [10, 11].into_iter(), true);
    let unfinished = slots.claim().unwrap();
    let drained = drain_all(&slots);
    assert_eq!(drained.len(), 1);
    assert_eq!(
        (drained[0].header, &drained[0].stack[..], drained[0].is_complete),
        (test_header(3), &[10, 11][..], true)
    );
    assert!(drain_all(&slots).is_empty());
    assert_eq!(unfinished.capacity(), 4);
    publish(unfinished, &test_header(1), 0..100, false);
    let drained = drain_all(&slots);
    assert_eq!((&drained[0].stack[..], drained[0].is_complete), (&[0, 1, 2, 3][..], false));
}

#[test]
fn full_pool_rejects_claims_until_a_slot_is_freed() {
    for slots in [1, 2, MAX_CLAIM_ATTEMPTS - 1, MAX_CLAIM_ATTEMPTS] {
        let pool = SnapshotPool::map(slots, 8).unwrap();
        for _ in 0..slots {
            publish(pool.claim().unwrap(), &test_header(1), [1].into_iter(), true);
        }
        assert!(pool.claim().is_none(), "{slots}");
        pool.count_lost(2);
        assert_eq!(drain_all(&pool).len(), slots);
        assert!(pool.claim().is_some());
        assert_eq!(pool.lost(), 2);
    }
}

#[test]
fn concurrent_writers_count_every_lost_sample() {
    let pool = SnapshotPool::map(8, 64).unwrap();
    let mut got = 0;
    let writers = 4;
    let each = if cfg!(miri) { 40 } else { 2000 };
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
                            Some(slot) => {
                                publish(slot, &test_header(1), [writer; 8].into_iter(), true)
                            }
                            None => pool.count_lost(1),
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
