//! The list of wrapped tasks.
//!
//! ```text
//! Registry ── 16 shards, by the thread that made the task
//!   Shard   ── Mutex { entries in chunks of 256, a chain through the free ones }
//!               │
//!               └─ Entry: number, name, place, waker      touched when a task is made, gets another
//!                                                         waker, ends; and by a dump
//!   Pulse   ── beside each entry, 64 bytes, without lock  touched at each poll
//! ```
//!
//! A task holds a [`Ticket`]; dropping it frees the entry. A poll costs four plain stores and a load in a
//! cache line of the task's own. Making and ending a task is a lock each that other threads hold for tens
//! of nanoseconds, or a dump for the copying of one batch.
//!
//! No foreign code runs under a lock: a waker that is replaced or goes with its task is dropped outside,
//! because dropping it may end in dropping a task, which comes here again. Cloning one is a count.
//!
//! Chunks are never given back: memory is that of the most tasks there ever were at once, 150 bytes each,
//! and an address of a [`Pulse`] stays good. The obvious alternative, nodes in the tasks themselves, in a
//! list through them, saves that and costs unsafe code that a safe face could not hide from `mem::forget`.
//!
//! Stored wakers make a cycle: the waker holds the task, the task's ticket the entry, the entry the waker.
//! It ends with the task's future, which every runtime drops when the task is done, aborted, or the runtime
//! shuts down. Executors that cancel a detached task when its last waker is gone would keep it; tokio has
//! no such thing.

use std::mem;
use std::sync::atomic::Ordering::{Acquire, Relaxed, Release};
use std::sync::atomic::{AtomicU32, AtomicU64};
use std::sync::{Mutex, MutexGuard, PoisonError};
use std::task::Waker;

use tokio::task::Id;

use super::waker::is_capturing;
use crate::base::Moment;
use crate::model::Spawned;
use crate::os::threads;

const SHARDS: usize = 16;

/// Entries allocated together: 20 KiB with their pulses.
const CHUNK: usize = 256;

/// No entry.
const NONE: u32 = u32::MAX;

/// What a poll writes. A line of its own, because neighbours are polled by other threads.
#[derive(Debug, Default)]
#[repr(align(64))]
pub(super) struct Pulse {
    /// The number of the task it is of; 0 for none.
    owner: AtomicU64,
    /// The number of the dump that asked for its stack; 0 for none.
    asked: AtomicU32,
    /// The thread that polls it; 0 for none.
    running: AtomicU32,
    /// When its last poll began, in nanoseconds of `Moment`; 0 for never.
    polled: AtomicU64,
}

impl Pulse {
    /// Whether it is still of the task with this number.
    pub(super) fn is_of(&self, number: u64) -> bool {
        self.owner.load(Acquire) == number
    }

    /// The thread that polls the task, if one does.
    pub(super) fn running(&self) -> Option<u32> {
        Some(self.running.load(Relaxed)).filter(|&tid| tid != 0)
    }

    /// When its last poll began.
    pub(super) fn polled(&self) -> Option<Moment> {
        Some(self.polled.load(Relaxed)).filter(|&at| at != 0).map(Moment::from_nanos)
    }

    /// Asks no more on behalf of `dump`.
    pub(super) fn withdraw(&self, dump: u32) {
        let _ = self.asked.compare_exchange(dump, 0, Relaxed, Relaxed);
    }
}

#[derive(Debug)]
struct Task {
    number: u64,
    name: &'static str,
    spawned: Spawned,
    id: Option<Id>,
    waker: Option<Waker>,
}

#[derive(Debug)]
enum Entry {
    Free { next: u32 },
    Taken(Task),
}

#[derive(Debug)]
struct Shard {
    entries: Vec<Box<[Entry]>>,
    pulses: Vec<&'static [Pulse]>,
    free: u32,
    made: u64,
}

impl Shard {
    const fn new() -> Self {
        Self { entries: Vec::new(), pulses: Vec::new(), free: NONE, made: 0 }
    }

    fn entry(&mut self, index: u32) -> Option<&mut Entry> {
        self.entries.get_mut(index as usize / CHUNK)?.get_mut(index as usize % CHUNK)
    }

    fn pulse(&self, index: u32) -> Option<&'static Pulse> {
        self.pulses.get(index as usize / CHUNK)?.get(index as usize % CHUNK)
    }

    fn task(&mut self, index: u32, number: u64) -> Option<&mut Task> {
        match self.entry(index)? {
            Entry::Taken(task) if task.number == number => Some(task),
            _ => None,
        }
    }

    fn grow(&mut self) {
        let first = self.entries.len() * CHUNK;
        let next = |at: usize| if at + 1 < CHUNK { (first + at + 1) as u32 } else { NONE };
        self.entries.push((0..CHUNK).map(|at| Entry::Free { next: next(at) }).collect());
        let pulses: Vec<Pulse> = (0..CHUNK).map(|_| Pulse::default()).collect();
        self.pulses.push(pulses.leak());
        self.free = first as u32;
    }

    fn take(&mut self, task: Task) -> Option<(u32, &'static Pulse)> {
        if self.free == NONE {
            self.grow();
        }
        let index = self.free;
        let pulse = self.pulse(index)?;
        let number = task.number;
        let Entry::Free { next } = mem::replace(self.entry(index)?, Entry::Taken(task)) else {
            return None;
        };
        self.free = next;
        pulse.polled.store(0, Relaxed);
        pulse.owner.store(number, Release);
        Some((index, pulse))
    }

    /// The task that was at `index`.
    fn free(&mut self, index: u32) -> Option<Task> {
        let next = self.free;
        let pulse = self.pulse(index)?;
        let Entry::Taken(task) = mem::replace(self.entry(index)?, Entry::Free { next }) else {
            return None;
        };
        self.free = index;
        pulse.owner.store(0, Release);
        pulse.asked.store(0, Relaxed);
        pulse.running.store(0, Relaxed);
        Some(task)
    }
}

/// What a dump is told about a task.
#[derive(Debug)]
pub(super) struct Listed {
    pub(super) number: u64,
    pub(super) name: &'static str,
    pub(super) spawned: Spawned,
    pub(super) id: Option<Id>,
    /// None until it was polled.
    pub(super) waker: Option<Waker>,
    pub(super) pulse: &'static Pulse,
}

/// A list of tasks.
#[derive(Debug)]
pub(super) struct Registry {
    shards: [Mutex<Shard>; SHARDS],
}

/// The tasks of this process.
pub(super) static TASKS: Registry = Registry::new();

impl Registry {
    const fn new() -> Self {
        Self { shards: [const { Mutex::new(Shard::new()) }; SHARDS] }
    }

    fn shard(&self, shard: usize) -> MutexGuard<'_, Shard> {
        // Nothing panics under this lock but an allocation, before anything is changed.
        self.shards[shard % SHARDS].lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The place behind a batch, to go on from; begins at the default.
    pub(super) fn batch(
        &self,
        from: Cursor,
        most: usize,
        ask: u32,
    ) -> (Vec<Listed>, Option<Cursor>) {
        let mut listed = Vec::new();
        let Cursor { mut shard, mut index } = from;
        while shard < SHARDS {
            let mut own = self.shard(shard);
            let end = (own.entries.len() * CHUNK) as u32;
            while index < end {
                if listed.len() >= most {
                    return (listed, Some(Cursor { shard, index }));
                }
                let pulse = own.pulse(index);
                if let (Some(Entry::Taken(task)), Some(pulse)) = (own.entry(index), pulse) {
                    // Under the lock, so that it is this task that is asked and no later one.
                    if task.waker.is_some() {
                        pulse.asked.store(ask, Relaxed);
                    }
                    listed.push(Listed {
                        number: task.number,
                        name: task.name,
                        spawned: task.spawned,
                        id: task.id,
                        waker: task.waker.clone(),
                        pulse,
                    });
                }
                index += 1;
            }
            (shard, index) = (shard + 1, 0);
        }
        (listed, None)
    }

    /// How many tasks there are. For tests and status: takes every lock.
    pub(super) fn len(&self) -> usize {
        let taken = |shard: &Shard| {
            shard.entries.iter().flatten().filter(|entry| matches!(entry, Entry::Taken(_))).count()
        };
        (0..SHARDS).map(|shard| taken(&self.shard(shard))).sum()
    }
}

/// A place in a [`Registry`].
#[derive(Clone, Copy, Debug, Default)]
pub(super) struct Cursor {
    shard: usize,
    index: u32,
}

/// A task's place in the list. Dropping it takes the task off.
#[derive(Debug)]
#[must_use = "dropping the ticket takes the task off the list"]
pub struct Ticket {
    pulse: Option<&'static Pulse>,
    shard: u32,
    index: u32,
    number: u64,
    /// Data and table of the waker that is stored; never followed, only compared. The stored waker keeps
    /// what it leads to alive, so an equal pair is an equal waker.
    waker: (usize, usize),
}

impl Ticket {
    /// Puts a task on the list. Some 20 ns, and an allocation for each 256 tasks more than there ever were.
    pub fn new(name: &'static str, spawned: Spawned) -> Self {
        let shard = threads::current() as usize % SHARDS;
        let mut own = TASKS.shard(shard);
        own.made += 1;
        let number = own.made * SHARDS as u64 + shard as u64;
        let task = Task { number, name, spawned, id: None, waker: None };
        let (index, pulse) = own.take(task).unzip();
        Self { pulse, shard: shard as u32, index: index.unwrap_or(NONE), number, waker: (0, 0) }
    }

    /// Begins a poll.
    #[inline]
    pub fn enter(&self) -> Turn {
        let Some(pulse) = self.pulse else { return Turn { pulse: None, before: 0, number: 0 } };
        let before = pulse.polled.load(Relaxed);
        pulse.polled.store(threads::recently().as_nanos(), Relaxed);
        pulse.running.store(threads::current(), Relaxed);
        Turn { pulse: Some(pulse), before, number: self.number }
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
        let (fresh, id) = (waker.clone(), tokio::task::try_id());
        let mut own = TASKS.shard(self.shard as usize);
        let old = own.task(self.index, self.number).and_then(|task| {
            task.id = id;
            task.waker.replace(fresh)
        });
        drop(own);
        drop(old);
        self.waker = key;
    }
}

impl Drop for Ticket {
    fn drop(&mut self) {
        if self.pulse.is_none() {
            return;
        }
        let task = TASKS.shard(self.shard as usize).free(self.index);
        // With the waker in it, and outside of the lock.
        drop(task);
    }
}

/// A poll going on. Dropping it ends it, by a panic too.
#[derive(Debug)]
pub struct Turn {
    pulse: Option<&'static Pulse>,
    before: u64,
    number: u64,
}

impl Turn {
    /// Whether a dump asks where the task waits.
    #[inline]
    pub fn is_asked(&self) -> bool {
        self.pulse.is_some_and(|pulse| pulse.asked.load(Relaxed) != 0)
    }

    /// The dump that asks, which is thereby answered or not at all, and the task's number.
    pub(super) fn take_question(&self) -> Option<(u32, u64)> {
        let dump = self.pulse?.asked.swap(0, Relaxed);
        (dump != 0).then_some((dump, self.number))
    }

    /// Leaves the task's age as it was: this poll was for a dump.
    pub(super) fn disregard(&self) {
        if let Some(pulse) = self.pulse {
            pulse.polled.store(self.before, Relaxed);
        }
    }
}

impl Drop for Turn {
    #[inline]
    fn drop(&mut self) {
        if let Some(pulse) = self.pulse {
            pulse.running.store(0, Relaxed);
        }
    }
}
