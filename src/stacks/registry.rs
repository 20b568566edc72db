//! The registry of wrapped tasks.
//!
//! A task owns a [`TaskRegistration`], and the ticket a [`Slot`] of the process's [`Slots`].
//! Dropping the ticket unregisters the task. Creating and ending a task takes no lock and touches
//! no memory that other threads write at the time. A poll costs three plain stores and a load in
//! the task's own cache line. `slot.rs` describes the mechanism.
//!
//! No foreign code runs under a lock. A waker that is replaced, or dropped with its task, is
//! dropped outside of the lock: its drop can drop another task, which enters this registry again.
//! Cloning one only increments a count.
//!
//! Stored wakers form a cycle: the waker holds the task, the task's ticket the slot, the slot the
//! waker. The cycle ends with the task's future. Every runtime drops it when the task completes or
//! is aborted, or when the runtime shuts down. An executor that cancels a detached task when its
//! last waker is dropped would leak the task; tokio does not do that.

use crate::base::sync::Mutex;
use std::cell::RefCell;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Waker;

use tokio::task::Id;

use super::slot::{LocalFreeList, SlotView, Slots, Store};
use super::waker::is_capturing;
use crate::base::Moment;
use crate::model::Calibration;
use crate::os::clock::cycle_clock;
use crate::os::proc::threads;

/// Maximum number of free slots that a thread holds: 4 KiB.
const ROOM: usize = 64;

/// Number of task numbers that a thread reserves at a time.
const NUMBERS: u64 = 1024;

/// Data that a task stores when it first waits.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) waker: Waker,
    pub(super) id: Option<Id>,
}

/// The slot of a task.
pub(super) type Slot = super::slot::TaskSlot<Kept>;

/// The tasks of this process.
static TASKS: Slots<Kept> = Slots { store: Mutex::new(Store::new()) };

static NUMBER: AtomicU64 = AtomicU64::new(1);

/// A tick from before the first poll, and its moment.
static FIRST: OnceLock<(u64, Moment)> = OnceLock::new();

/// Free slots and reserved task numbers of a thread.
struct Local {
    hand: LocalFreeList<Kept, ROOM>,
    next: u64,
    last: u64,
}

impl Local {
    const fn new() -> Self {
        Self { hand: LocalFreeList::new(), next: 0, last: 0 }
    }

    #[inline]
    fn number(&mut self) -> u64 {
        if self.next == self.last {
            self.more_numbers();
        }
        self.next += 1;
        self.next - 1
    }

    #[cold]
    fn more_numbers(&mut self) {
        // Selects the clock source, which must precede the first tick.
        cycle_clock::source();
        FIRST.get_or_init(cycle_clock::pair);
        self.next = NUMBER.fetch_add(NUMBERS, Relaxed);
        self.last = self.next + NUMBERS;
    }

    #[inline]
    fn make(&mut self, site: u16) -> Option<(&'static Slot, u64)> {
        let slot = self.hand.take(&TASKS)?;
        let number = self.number();
        slot.make(number, site);
        Some((slot, number))
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.hand.give_back(&TASKS);
    }
}

thread_local! {
    static LOCAL: RefCell<Local> = const { RefCell::new(Local::new()) };
}

/// Runs `act` on the thread's state. Uses a temporary state if the thread-local is destroyed or
/// borrowed.
#[inline]
fn locally<T>(act: impl Fn(&mut Local) -> T) -> T {
    let done = LOCAL.try_with(|local| local.try_borrow_mut().ok().map(|mut local| act(&mut local)));
    match done {
        Ok(Some(done)) => done,
        _ => act(&mut Local::new()),
    }
}

/// Returns the conversion of ticks to moments.
pub(super) fn calibration() -> Calibration {
    Calibration::new(FIRST.get().copied().into_iter().chain([cycle_clock::pair()]))
}

/// Returns at most `most` tasks from `from` on, and the cursor of the next task if there are more.
/// Requests the stacks of tasks that can be woken for the dump `ask`, unless that is 0. A default
/// cursor starts at the first task.
pub(super) fn batch(
    from: SlotCursor,
    most: usize,
    ask: u32,
) -> (Vec<(&'static Slot, SlotView<Kept>)>, Option<SlotCursor>) {
    let mut listed = Vec::new();
    let SlotCursor { mut chunk, mut index } = from;
    while let Some(slots) = TASKS.chunk(chunk) {
        for slot in slots.iter().skip(index) {
            if listed.len() >= most {
                return (listed, Some(SlotCursor { chunk, index }));
            }
            listed.extend(slot.look(ask).map(|seen| (slot, seen)));
            index += 1;
        }
        (chunk, index) = (chunk + 1, 0);
    }
    (listed, None)
}

/// Returns the number of tasks. For tests and status: reads every slot.
pub(super) fn len() -> usize {
    let chunks = (0..).map_while(|chunk| TASKS.chunk(chunk));
    chunks.flatten().filter(|slot| slot.number() != 0).count()
}

/// A position in the registry.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct SlotCursor {
    chunk: usize,
    index: usize,
}

/// The registration of a task. Dropping it unregisters the task.
#[derive(Debug)]
#[must_use = "dropping the ticket takes the task off the list"]
pub struct TaskRegistration {
    slot: Option<&'static Slot>,
    /// Addresses of the stored waker's data and vtable; compared, never dereferenced. The stored
    /// waker keeps its data alive, so equal addresses mean the same waker.
    waker: (usize, usize),
}

impl TaskRegistration {
    /// Registers a task of the [`Site`](crate::base::SpawnSite) with this number. Returns the
    /// ticket and the task's own number, which is unique in the process. Costs about 5 ns, and one
    /// allocation per 256 tasks above the previous maximum.
    #[inline]
    pub fn new(site: u16) -> (Self, u64) {
        let (slot, number) = locally(|local| local.make(site)).unzip();
        (Self { slot, waker: (0, 0) }, number.unwrap_or(0))
    }

    /// Starts a poll at this tick.
    #[inline]
    pub fn enter(&self, tick: u64) -> PollGuard {
        let before = self.slot.map_or(0, |slot| slot.enter(threads::current(), tick));
        PollGuard { slot: self.slot, before }
    }

    /// Stores a clone of `waker`, with which a poll returned `Pending`, if it differs from the
    /// stored one. It is not stored earlier: a task that completes in its first poll never needs
    /// one.
    #[inline]
    pub fn keep(&mut self, waker: &Waker) {
        let key = (waker.data().addr(), std::ptr::from_ref(waker.vtable()).addr());
        if key != self.waker {
            self.learn(waker, key);
        }
    }

    #[cold]
    fn learn(&mut self, waker: &Waker, key: (usize, usize)) {
        // A capturing waker is valid only for this poll: a dump captures a future around this task.
        if is_capturing(waker) {
            return;
        }
        let kept = Kept { waker: waker.clone(), id: tokio::task::try_id() };
        let old = self.slot.and_then(|slot| slot.keep(kept));
        self.waker = key;
        drop(old);
    }
}

impl Drop for TaskRegistration {
    #[inline]
    fn drop(&mut self) {
        let Some(slot) = self.slot else { return };
        let kept = slot.end(self.waker != (0, 0));
        locally(|local| local.hand.put(slot, &TASKS));
        // Dropped last, outside of the lock: dropping a waker can run foreign code.
        drop(kept);
    }
}

/// A poll in progress. Dropping it ends the poll, also after a panic.
#[derive(Debug)]
pub struct PollGuard {
    slot: Option<&'static Slot>,
    before: u64,
}

impl PollGuard {
    /// Returns `true` if a dump requests the task's stack.
    #[inline]
    pub fn is_asked(&self) -> bool {
        self.slot.is_some_and(Slot::is_asked)
    }

    /// Takes the pending request. Returns the number of the dump and of the task.
    pub(super) fn take_question(&self) -> Option<(u32, u64)> {
        let slot = self.slot?;
        let dump = slot.take_question();
        (dump != 0).then_some((dump, slot.number()))
    }

    /// Restores the start of the task's previous poll, because this poll was caused by a dump.
    pub(super) fn disregard(&self) {
        if let Some(slot) = self.slot {
            slot.disregard(self.before);
        }
    }
}

impl Drop for PollGuard {
    #[inline]
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            slot.leave();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_come_back_from_threads_that_only_end_tasks_and_from_threads_that_are_no_more() {
        let chunks = || (0..).map_while(|chunk| TASKS.chunk(chunk)).count();
        let before = chunks();
        for _ in 0..200 {
            let made = std::thread::spawn(|| {
                (0..500).map(|_| TaskRegistration::new(0).0).collect::<Vec<_>>()
            });
            let made = made.join().unwrap();
            std::thread::spawn(|| drop(made)).join().unwrap();
        }
        // 100,000 tasks, with at most 500 of this test at once, and few of the tests that run in
        // parallel.
        assert!(chunks() - before <= 4, "{} chunks", chunks() - before);
    }

    #[test]
    fn no_two_tasks_have_one_number() {
        let made = || (0..3000).map(|_| TaskRegistration::new(0).1).collect::<Vec<_>>();
        let others: Vec<_> = (0..3).map(|_| std::thread::spawn(made)).collect();
        let mut numbers = made();
        others.into_iter().for_each(|other| numbers.extend(other.join().unwrap()));
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 4 * 3000);
        assert!(!numbers.contains(&0), "which is nobody");
    }
}
