//! The registry of wrapped tasks.
//!
//! A task owns a [`TaskRegistration`], and the registration a [`Slot`] of the process's [`Slots`].
//! Dropping the registration unregisters the task. Creating and ending a task takes no lock and
//! touches no memory that other threads write at the time. A poll costs three plain stores and two
//! loads in the task's own cache line. `slot.rs` describes the mechanism.
//!
//! No foreign code runs under a lock. A waker that is replaced, or dropped with its task, is
//! dropped outside of the lock: its drop can drop another task, which enters this registry again.
//! Cloning one only increments a count.
//!
//! Stored wakers form a cycle: the waker holds the task, the task's registration the slot, the slot
//! the waker. The cycle ends with the task's future. Every runtime drops it when the task completes
//! or is aborted, or when the runtime shuts down. An executor that cancels a detached task when its
//! last waker is dropped would leak the task; tokio does not do that.

use crate::base::sync::Mutex;
use std::cell::RefCell;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Waker;

use tokio::task::Id;

use super::slot::{LocalFreeList, SlotStore, SlotView, Slots};
use super::waker::is_capturing;
use crate::base::Moment;
use crate::model::Calibration;
use crate::os::clock::cycle_clock;
use crate::os::proc::threads;

/// Maximum number of free slots that a thread holds: 4 KiB.
const MAX_LOCAL_SLOTS: usize = 64;

/// Number of task numbers that a thread reserves at a time.
const NUMBERS_PER_BATCH: u64 = 1024;

/// Data that a task stores when it first waits.
#[derive(Clone, Debug)]
pub(super) struct StoredWaker {
    pub(super) waker: Waker,
    pub(super) id: Option<Id>,
}

/// The slot of a task.
pub(super) type Slot = super::slot::TaskSlot<StoredWaker>;

/// The tasks of this process.
static TASK_SLOTS: Slots<StoredWaker> = Slots { store: Mutex::new(SlotStore::new()) };

static NEXT_NUMBER: AtomicU64 = AtomicU64::new(1);

/// A tick from before the first poll, and its moment.
static FIRST_PAIR: OnceLock<(u64, Moment)> = OnceLock::new();

/// Free slots and reserved task numbers of a thread.
struct Local {
    free_slots: LocalFreeList<StoredWaker, MAX_LOCAL_SLOTS>,
    next_number: u64,
    end_number: u64,
}

impl Local {
    const fn new() -> Self {
        Self { free_slots: LocalFreeList::new(), next_number: 0, end_number: 0 }
    }

    #[inline]
    fn allocate_number(&mut self) -> u64 {
        if self.next_number == self.end_number {
            self.reserve_numbers();
        }
        self.next_number += 1;
        self.next_number - 1
    }

    #[cold]
    fn reserve_numbers(&mut self) {
        // Selects the clock source, which must precede the first tick.
        cycle_clock::source();
        FIRST_PAIR.get_or_init(cycle_clock::tick_and_time);
        self.next_number = NEXT_NUMBER.fetch_add(NUMBERS_PER_BATCH, Relaxed);
        self.end_number = self.next_number + NUMBERS_PER_BATCH;
    }

    #[inline]
    fn claim_slot(&mut self, site: u16) -> Option<(&'static Slot, u64)> {
        let slot = self.free_slots.take(&TASK_SLOTS)?;
        let number = self.allocate_number();
        slot.assign(number, site);
        Some((slot, number))
    }
}

impl Drop for Local {
    fn drop(&mut self) {
        self.free_slots.return_all(&TASK_SLOTS);
    }
}

thread_local! {
    static LOCAL: RefCell<Local> = const { RefCell::new(Local::new()) };
}

/// Runs `f` on the thread's state. Uses a temporary state if the thread-local is destroyed or
/// borrowed.
#[inline]
fn with_local<T>(f: impl Fn(&mut Local) -> T) -> T {
    let result = LOCAL.try_with(|local| local.try_borrow_mut().ok().map(|mut local| f(&mut local)));
    match result {
        Ok(Some(done)) => done,
        _ => f(&mut Local::new()),
    }
}

/// Returns the conversion of ticks to moments.
pub(super) fn calibration() -> Calibration {
    Calibration::new(FIRST_PAIR.get().copied().into_iter().chain([cycle_clock::tick_and_time()]))
}

/// Returns at most `max` tasks from `from` on, and the cursor of the next task if there are more.
/// Requests the stacks of tasks that can be woken for the dump `dump`, unless that is 0. A default
/// cursor starts at the first task.
pub(super) fn list_batch(
    from: SlotCursor,
    max: usize,
    dump: u32,
) -> (Vec<(&'static Slot, SlotView<StoredWaker>)>, Option<SlotCursor>) {
    let mut listed = Vec::new();
    let SlotCursor { mut chunk, mut index } = from;
    while let Some(slots) = TASK_SLOTS.chunk(chunk) {
        for slot in slots.iter().skip(index) {
            if listed.len() >= max {
                return (listed, Some(SlotCursor { chunk, index }));
            }
            listed.extend(slot.view(dump).map(|seen| (slot, seen)));
            index += 1;
        }
        chunk += 1;
        index = 0;
    }
    (listed, None)
}

/// Returns the number of tasks. For tests and status: reads every slot.
pub(super) fn task_count() -> usize {
    let chunks = (0..).map_while(|chunk| TASK_SLOTS.chunk(chunk));
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
#[must_use = "dropping the registration removes the task from the list"]
pub struct TaskRegistration {
    slot: Option<&'static Slot>,
    waker_addresses: WakerAddresses,
}

/// Addresses of the stored waker's data and vtable; compared, never dereferenced. The stored waker
/// keeps its data alive, so equal addresses mean the same waker.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct WakerAddresses {
    data: usize,
    vtable: usize,
}

impl WakerAddresses {
    /// The addresses before a waker is stored.
    const UNSET: Self = Self { data: 0, vtable: 0 };
}

impl TaskRegistration {
    /// Registers a task of the [`SpawnSite`](crate::base::SpawnSite) with this number. Returns the
    /// registration and the task's own number, which is unique in the process. Costs about 5 ns,
    /// and one allocation per 256 tasks above the previous maximum.
    #[inline]
    pub fn new(site: u16) -> (Self, u64) {
        let (slot, number) = with_local(|local| local.claim_slot(site)).unzip();
        (Self { slot, waker_addresses: WakerAddresses::UNSET }, number.unwrap_or(0))
    }

    /// Starts a poll at this tick.
    #[inline]
    pub fn begin_poll(&self, tick: u64) -> PollGuard {
        let previous_poll =
            self.slot.map_or(0, |slot| slot.begin_poll(threads::current_tid(), tick));
        PollGuard { slot: self.slot, previous_poll }
    }

    /// Stores a clone of `waker`, with which a poll returned `Pending`, if it differs from the
    /// stored one. It is not stored earlier: a task that completes in its first poll never needs
    /// one.
    #[inline]
    pub fn store_waker(&mut self, waker: &Waker) {
        let addresses = WakerAddresses {
            data: waker.data().addr(),
            vtable: std::ptr::from_ref(waker.vtable()).addr(),
        };
        if addresses != self.waker_addresses {
            self.replace_waker(waker, addresses);
        }
    }

    #[cold]
    fn replace_waker(&mut self, waker: &Waker, addresses: WakerAddresses) {
        // A capturing waker is valid only for this poll: a dump captures a future around this task.
        if is_capturing(waker) {
            return;
        }
        let stored = StoredWaker { waker: waker.clone(), id: tokio::task::try_id() };
        let old = self.slot.and_then(|slot| slot.store(stored));
        self.waker_addresses = addresses;
        drop(old);
    }
}

impl Drop for TaskRegistration {
    #[inline]
    fn drop(&mut self) {
        let Some(slot) = self.slot else { return };
        let stored = slot.release(self.waker_addresses != WakerAddresses::UNSET);
        with_local(|local| local.free_slots.put(slot, &TASK_SLOTS));
        // Dropped last, outside of the lock: dropping a waker can run foreign code.
        drop(stored);
    }
}

/// A poll in progress. Dropping it ends the poll, also after a panic.
#[derive(Debug)]
pub struct PollGuard {
    slot: Option<&'static Slot>,
    previous_poll: u64,
}

impl PollGuard {
    /// Returns `true` if a dump requests the task's stack.
    #[inline]
    pub fn is_stack_requested(&self) -> bool {
        self.slot.is_some_and(Slot::is_stack_requested)
    }

    /// Takes the pending request. Returns the number of the dump and of the task.
    pub(super) fn take_request(&self) -> Option<(u32, u64)> {
        let slot = self.slot?;
        let dump = slot.take_request();
        (dump != 0).then_some((dump, slot.number()))
    }

    /// Restores the start of the task's previous poll, because this poll was caused by a dump.
    pub(super) fn restore_previous_poll(&self) {
        if let Some(slot) = self.slot {
            slot.restore_last_poll(self.previous_poll);
        }
    }
}

impl Drop for PollGuard {
    #[inline]
    fn drop(&mut self) {
        if let Some(slot) = self.slot {
            slot.end_poll();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_reused_after_their_threads_exit() {
        let chunks = || (0..).map_while(|chunk| TASK_SLOTS.chunk(chunk)).count();
        let before = chunks();
        for _ in 0..200 {
            let registrations = std::thread::spawn(|| {
                (0..500).map(|_| TaskRegistration::new(0).0).collect::<Vec<_>>()
            });
            let registrations = registrations.join().unwrap();
            std::thread::spawn(|| drop(registrations)).join().unwrap();
        }
        // 100,000 tasks, with at most 500 of this test at once, and few of the tests that run in
        // parallel.
        assert!(chunks() - before <= 4, "{} chunks", chunks() - before);
    }

    #[test]
    fn task_numbers_are_unique_across_threads() {
        let register = || (0..3000).map(|_| TaskRegistration::new(0).1).collect::<Vec<_>>();
        let others: Vec<_> = (0..3).map(|_| std::thread::spawn(register)).collect();
        let mut numbers = register();
        others.into_iter().for_each(|other| numbers.extend(other.join().unwrap()));
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 4 * 3000);
        assert!(!numbers.contains(&0), "0 is not the number of a task");
    }
}
