//! Models of the task list: a task is created on one thread and ends on another while a dump reads
//! it.

#[path = "../../src/stacks/slot.rs"]
mod slot;

use loom::sync::{Arc, Mutex};
use loom::thread;

use slot::{LocalFreeList, SlotStore, Slots, TaskSlot};

/// The waker of task `n` is `n`.
type Waker = u64;

const DUMP: u32 = 7;

/// Returns the site of task `n`; a mix of two tasks fails the check.
fn site(n: u64) -> u16 {
    n as u16 * 10
}

fn slots() -> Slots<Waker> {
    Slots { store: Mutex::new(SlotStore::new()) }
}

/// Returns a slot that holds task `n`.
fn slot_with_task(n: u64) -> (Arc<Slots<Waker>>, &'static TaskSlot<Waker>) {
    let slots = Arc::new(slots());
    let slot = LocalFreeList::<_, 2>::new().take(&slots).unwrap();
    slot.assign(n, site(n));
    assert!(!slot.is_stack_requested(), "also creates the atomic here, see `base::sync`");
    (slots, slot)
}

/// Reads a slot as a dump does. The fields must belong to one task. Returns its waker if the dump
/// may wake it.
fn look(slot: &TaskSlot<Waker>) -> Option<u64> {
    let seen = slot.view(DUMP)?;
    assert_eq!(seen.site, site(seen.number));
    assert!(seen.stored.is_none_or(|waker| waker == seen.number));
    seen.stored
}

#[test]
fn dump_reads_task_completely_or_not_at_all_during_slot_reuse() {
    loom::model(|| {
        let (_slots, slot) = slot_with_task(1);
        let worker = thread::spawn(move || {
            assert_eq!(slot.release(false), None);
            slot.assign(2, site(2));
            assert_eq!(slot.store(2), None);
            let asked = slot.is_stack_requested();
            assert_eq!(slot.release(true), Some(2));
            slot.assign(3, site(3));
            assert!(!slot.is_stack_requested(), "what another was asked");
            asked
        });
        let woken = look(slot);
        let asked = worker.join().unwrap();
        // A request set between `keep` and `end` implies that the dump got the waker.
        assert!(!asked || woken == Some(2));
        assert_eq!(slot.view(0).map(|seen| (seen.number, seen.stored)), Some((3, None)));
    });
}

#[test]
fn each_waker_is_handed_out_once() {
    loom::model(|| {
        let (_slots, slot) = slot_with_task(1);
        slot.store(1);
        let worker = thread::spawn(move || {
            // Replaces the kept waker, then ends the task.
            assert_eq!(slot.store(1), Some(1));
            assert_eq!(slot.release(true), Some(1));
        });
        look(slot);
        worker.join().unwrap();
        assert_eq!(look(slot), None);
    });
}

#[test]
fn slot_is_never_shared_by_two_tasks() {
    loom::model(|| {
        let slots = Arc::new(slots());
        let work = |slots: &Slots<Waker>, first: u64| {
            let mut hand = LocalFreeList::<Waker, 2>::new();
            let mine = [first, first + 1].map(|n| {
                let slot = hand.take(slots).unwrap();
                slot.assign(n, site(n));
                slot
            });
            for (slot, n) in mine.into_iter().zip(first..) {
                assert_eq!(slot.number(), n);
                slot.release(false);
                hand.put(slot, slots);
            }
            hand.return_all(slots);
        };
        let other = thread::spawn({
            let slots = Arc::clone(&slots);
            move || work(&slots, 10)
        });
        work(&slots, 20);
        other.join().unwrap();
        let chunks: Vec<_> = (0..).map_while(|chunk| slots.chunk(chunk)).collect();
        assert_eq!(chunks.len(), 1, "a chunk of eight is enough for four");
        assert!(chunks[0].iter().all(|slot| slot.number() == 0));
    });
}
