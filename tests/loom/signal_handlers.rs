//! Models of the state that signal handlers and allocating threads share with the agent: sample
//! slots, stack bounds, the table of modules.
#![allow(unsafe_code, reason = "what a pool publishes is freed by hand")]

#[path = "../../src/os/signal/bounds.rs"]
mod signal_bounds;
#[path = "../../src/os/stack_snapshot.rs"]
mod stack_snapshot;
#[path = "../../src/unwind/pool.rs"]
mod unwind_pool;

use loom::cell::UnsafeCell;
use loom::sync::Arc;
use loom::thread;

use signal_bounds::Bounds;
use stack_snapshot::{SnapshotHeader, SnapshotPool, StackSnapshot};
use unwind_pool::SlotPool;

use crate::base::sync::Ordering::Relaxed;

fn run_model(changes: usize, run: impl Fn() + Send + Sync + 'static) {
    let mut run_model = loom::model::Builder::new();
    run_model.preemption_bound = Some(changes);
    run_model.check(run);
}

// Sample slots of signal handlers.

/// Writes a sample as one handler, with its weight in the header and in the stack.
fn write_sample(slots: &SnapshotPool, weight: u32) -> bool {
    let Some(slot) = slots.claim() else {
        slots.count_lost(weight.into());
        return false;
    };
    slot.publish(&SnapshotHeader { weight, ..SnapshotHeader::default() }, true, |places| {
        places.iter().map(|place| place.store(weight.into(), Relaxed)).count()
    });
    true
}

fn drain(slots: &SnapshotPool) -> u64 {
    let mut sum = 0;
    slots.drain(&mut StackSnapshot::default(), |copied| {
        let weight = u64::from(copied.header.weight);
        assert_eq!(copied.stack, [weight; 2], "a torn copy");
        sum += weight;
    });
    sum
}

#[test]
fn snapshot_is_read_completely_once_or_counted_lost() {
    run_model(2, || {
        let slots = Arc::new(SnapshotPool::map(1, 16).unwrap());
        let handlers: Vec<_> = [1, 2]
            .map(|weight| {
                let slots = Arc::clone(&slots);
                thread::spawn(move || write_sample(&slots, weight))
            })
            .into();
        let mut drained = drain(&slots);
        for handler in handlers {
            handler.join().unwrap();
        }
        drained += drain(&slots);
        assert_eq!(drained + slots.lost(), 3);
    });
}

#[test]
fn slot_is_reused_only_after_reader_releases_it() {
    run_model(3, || {
        let slots = Arc::new(SnapshotPool::map(1, 16).unwrap());
        assert!(write_sample(&slots, 1));
        let handler = {
            let slots = Arc::clone(&slots);
            thread::spawn(move || write_sample(&slots, 2))
        };
        let mut drained = drain(&slots);
        handler.join().unwrap();
        drained += drain(&slots);
        assert_eq!(drained + slots.lost(), 3);
    });
}

// Stack bounds.

#[test]
fn handler_never_reads_beyond_current_stack() {
    const FIRST_RANGE: std::ops::Range<u64> = 100..200;
    const OTHER_RANGE: std::ops::Range<u64> = 300..400;
    run_model(3, || {
        let bounds = Arc::new(Bounds::map(1).unwrap());
        bounds.set_stack(0, FIRST_RANGE);
        let handlers: Vec<_> = [FIRST_RANGE, OTHER_RANGE]
            .map(|stack| {
                let bounds = Arc::clone(&bounds);
                thread::spawn(move || {
                    let sp = stack.start + 50;
                    let known = bounds.stack(0).unwrap();
                    assert!(!known.contains(&sp) || known.end == stack.end, "{known:?} of {sp}");
                })
            })
            .into();
        bounds.set_stack(0, OTHER_RANGE);
        for handler in handlers {
            handler.join().unwrap();
        }
        assert_eq!(bounds.stack(0), Some(OTHER_RANGE));
    });
}

// The module table and the walks that read it.

/// A table tracked by loom: reading a freed one is a race.
struct Table(UnsafeCell<bool>);

impl Table {
    fn new() -> *mut Self {
        Box::into_raw(Box::new(Self(UnsafeCell::new(true))))
    }
}

/// Reads the table if a slot is free.
fn walk(pool: &SlotPool<Table, 1>) {
    let Some(claim) = pool.claim() else { return };
    // SAFETY: never deallocated, see `free`.
    let table = unsafe { claim.value().as_ref() }.unwrap();
    // SAFETY: loom checks for concurrent writes.
    table.0.with(|is_whole| assert!(unsafe { *is_whole }, "it is freed"));
}

/// Marks a table as freed, which loom treats as a write to it. The table is leaked, because loom
/// may access it until the end of the model.
fn free(table: *mut Table) {
    // SAFETY: as in `walk`, and loom checks for concurrent accesses.
    unsafe { (*table).0.with_mut(|is_whole| *is_whole = false) };
}

/// Replaces a table while walkers read it. `walks` is the number of walks of each walker.
fn replace_during_walks(walks: &'static [usize]) {
    run_model(3, move || {
        let pool = Arc::new(SlotPool::<Table, 1>::new());
        let tables = [Table::new(), Table::new()];
        let (before, sequences) = pool.replace(tables[0]);
        assert!(before.is_null() && !pool.is_in_use(&sequences));
        let walkers: Vec<_> = walks
            .iter()
            .map(|&walks| {
                let pool = Arc::clone(&pool);
                thread::spawn(move || (0..walks).for_each(|_| walk(&pool)))
            })
            .collect();
        let (old, sequences) = pool.replace(tables[1]);
        assert_eq!(old, tables[0]);
        if !pool.is_in_use(&sequences) {
            free(old);
        }
        for walker in walkers {
            walker.join().unwrap();
        }
        assert!(!pool.is_in_use(&sequences), "all walks are over");
    });
}

#[test]
fn replaced_table_is_freed_after_walker_finishes() {
    replace_during_walks(&[2]);
}

/// The second walker synchronizes with the first through the slot, not with the replacing thread.
#[test]
fn replaced_table_is_freed_after_slot_handover_between_walkers() {
    replace_during_walks(&[1, 1]);
}
