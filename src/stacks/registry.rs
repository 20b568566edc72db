//! The list of wrapped tasks.
//!
//! A task holds a [`Ticket`], and the ticket a [`Slot`] of the process's [`Slots`]; dropping the ticket
//! takes the task off the list. Making and ending a task takes no lock and touches nothing that other
//! threads write to at the time; a poll costs three plain stores and a load in a cache line of the task's own.
//! `slot.rs` tells how.
//!
//! No foreign code runs under a lock: a waker that is replaced or goes with its task is dropped outside,
//! because dropping it may end in dropping a task, which comes here again. Cloning one is a count.
//!
//! Stored wakers make a cycle: the waker holds the task, the task's ticket the slot, the slot the waker.
//! It ends with the task's future, which every runtime drops when the task is done, aborted, or the runtime
//! shuts down. Executors that cancel a detached task when its last waker is gone would keep it; tokio has
//! no such thing.

use crate::base::sync::Mutex;
use std::cell::RefCell;
use std::sync::OnceLock;
use std::sync::atomic::AtomicU64;
use std::sync::atomic::Ordering::Relaxed;
use std::task::Waker;

use tokio::task::Id;

use super::slot::{Hand, Seen, Slots, Store};
use super::waker::is_capturing;
use crate::base::Moment;
use crate::model::Calibration;
use crate::os::{threads, ticks};

/// How many free slots a thread holds at most: 4 KiB of them.
const ROOM: usize = 64;

/// How many numbers for tasks a thread takes at a time.
const NUMBERS: u64 = 1024;

/// What a task leaves when it first waits.
#[derive(Clone, Debug)]
pub(super) struct Kept {
    pub(super) waker: Waker,
    pub(super) id: Option<Id>,
}

/// A task's place.
pub(super) type Slot = super::slot::Slot<Kept>;

/// The tasks of this process.
static TASKS: Slots<Kept> = Slots { store: Mutex::new(Store::new()) };

static NUMBER: AtomicU64 = AtomicU64::new(1);

/// A tick from before every poll, and its moment.
static FIRST: OnceLock<(u64, Moment)> = OnceLock::new();

/// What one thread makes tasks from.
struct Local {
    hand: Hand<Kept, ROOM>,
    next: u64,
    last: u64,
}

impl Local {
    const fn new() -> Self {
        Self { hand: Hand::new(), next: 0, last: 0 }
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
        // Before the first tick is read: it decides what ticks are.
        ticks::source();
        FIRST.get_or_init(ticks::pair);
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

/// Runs `act` on what the thread has; on what lasts for the call where it has lost that, at its end.
#[inline]
fn locally<T>(act: impl Fn(&mut Local) -> T) -> T {
    let done = LOCAL.try_with(|local| local.try_borrow_mut().ok().map(|mut local| act(&mut local)));
    match done {
        Ok(Some(done)) => done,
        _ => act(&mut Local::new()),
    }
}

/// What moments the ticks of polls are.
pub(super) fn calibration() -> Calibration {
    Calibration::new(FIRST.get().copied().into_iter().chain([ticks::pair()]))
}

/// A batch of at most `most` tasks, and the place behind it, to go on from, if there are more; begins at
/// the default. Those that can be woken are asked on behalf of the dump `ask`, unless that is 0.
pub(super) fn batch(
    from: Cursor,
    most: usize,
    ask: u32,
) -> (Vec<(&'static Slot, Seen<Kept>)>, Option<Cursor>) {
    let mut listed = Vec::new();
    let Cursor { mut chunk, mut index } = from;
    while let Some(slots) = TASKS.chunk(chunk) {
        for slot in slots.iter().skip(index) {
            if listed.len() >= most {
                return (listed, Some(Cursor { chunk, index }));
            }
            listed.extend(slot.look(ask).map(|seen| (slot, seen)));
            index += 1;
        }
        (chunk, index) = (chunk + 1, 0);
    }
    (listed, None)
}

/// How many tasks there are. For tests and status: looks at every slot.
pub(super) fn len() -> usize {
    let chunks = (0..).map_while(|chunk| TASKS.chunk(chunk));
    chunks.flatten().filter(|slot| slot.number() != 0).count()
}

/// A place in the list.
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor {
    chunk: usize,
    index: usize,
}

/// A task's place in the list. Dropping it takes the task off.
#[derive(Debug)]
#[must_use = "dropping the ticket takes the task off the list"]
pub struct Ticket {
    slot: Option<&'static Slot>,
    /// Data and table of the waker that is stored; never followed, only compared. The stored waker keeps
    /// what it leads to alive, so an equal pair is an equal waker.
    waker: (usize, usize),
}

impl Ticket {
    /// Puts a task of the [`Site`](crate::base::Site) with this number on the list; gives its own number,
    /// which no other ever has. Some 5 ns; an allocation for each 256 tasks more than there ever were.
    #[inline]
    pub fn new(site: u16) -> (Self, u64) {
        let (slot, number) = locally(|local| local.make(site)).unzip();
        (Self { slot, waker: (0, 0) }, number.unwrap_or(0))
    }

    /// Begins a poll, at this tick.
    #[inline]
    pub fn enter(&self, tick: u64) -> Turn {
        let before = self.slot.map_or(0, |slot| slot.enter(threads::current(), tick));
        Turn { slot: self.slot, before }
    }

    /// Keeps `waker`, with which the task was polled and was not ready, if it is another than before. Not
    /// sooner: a task that ends with its first poll never needs one.
    #[inline]
    pub fn keep(&mut self, waker: &Waker) {
        let key = (waker.data().addr(), std::ptr::from_ref(waker.vtable()).addr());
        if key != self.waker {
            self.learn(waker, key);
        }
    }

    #[cold]
    fn learn(&mut self, waker: &Waker, key: (usize, usize)) {
        // One that lives only for this poll: somebody around this task is being asked.
        if is_capturing(waker) {
            return;
        }
        let kept = Kept { waker: waker.clone(), id: tokio::task::try_id() };
        let old = self.slot.and_then(|slot| slot.keep(kept));
        self.waker = key;
        drop(old);
    }
}

impl Drop for Ticket {
    #[inline]
    fn drop(&mut self) {
        let Some(slot) = self.slot else { return };
        let kept = slot.end(self.waker != (0, 0));
        locally(|local| local.hand.put(slot, &TASKS));
        // The waker, of which nobody knows what its end brings about.
        drop(kept);
    }
}

/// A poll going on. Dropping it ends it, by a panic too.
#[derive(Debug)]
pub struct Turn {
    slot: Option<&'static Slot>,
    before: u64,
}

impl Turn {
    /// Whether a dump asks where the task waits.
    #[inline]
    pub fn is_asked(&self) -> bool {
        self.slot.is_some_and(Slot::is_asked)
    }

    /// The dump that asks, which is thereby answered or not at all, and the task's number.
    pub(super) fn take_question(&self) -> Option<(u32, u64)> {
        let slot = self.slot?;
        let dump = slot.take_question();
        (dump != 0).then_some((dump, slot.number()))
    }

    /// Leaves the task's age as it was: this poll was for a dump.
    pub(super) fn disregard(&self) {
        if let Some(slot) = self.slot {
            slot.disregard(self.before);
        }
    }
}

impl Drop for Turn {
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
            let made =
                std::thread::spawn(|| (0..500).map(|_| Ticket::new(0).0).collect::<Vec<_>>());
            let made = made.join().unwrap();
            std::thread::spawn(|| drop(made)).join().unwrap();
        }
        // 100,000 tasks, never more than 500 of this test at once, nor many of others that run beside it.
        assert!(chunks() - before <= 4, "{} chunks", chunks() - before);
    }

    #[test]
    fn no_two_tasks_have_one_number() {
        let made = || (0..3000).map(|_| Ticket::new(0).1).collect::<Vec<_>>();
        let others: Vec<_> = (0..3).map(|_| std::thread::spawn(made)).collect();
        let mut numbers = made();
        others.into_iter().for_each(|other| numbers.extend(other.join().unwrap()));
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 4 * 3000);
        assert!(!numbers.contains(&0), "which is nobody");
    }
}
