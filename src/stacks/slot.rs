//! A task's place in the list, and the store of places that no task has.
//!
//! ```text
//! Slots ── Mutex { every chunk, the free slots }     touched for 32 tasks together
//!            │ take 32            ▲ give 32
//! Hand  ── a thread's free slots, at most 64         touched when a task is made, and when one ends
//!            │ take one           ▲ put one
//! Slot  ── 64 bytes of atomics, and a lock of its own around the waker
//! ```
//!
//! A slot goes from the hand of the thread that makes a task to the hand of the one that ends it, so neither
//! waits for the other; only threads that do one more than the other come to the store. A task that never
//! waited has no waker, and its slot's lock is never taken by it.
//!
//! ```text
//! make    fence(Release)   site, polled (Relaxed)   owner = n (Release)      the slot was free: owner = 0
//! end     owner = 0 (under the lock, if there is a waker)
//! look    lock   owner (Acquire)   site   fence(Acquire)   owner again: the same, or it is nobody's
//! ```
//!
//! Numbers are never given twice, so the same number found twice is the same task. Under the lock a waker
//! stands for its task: an end would have had to take it away first. So who asks through it, asks no later
//! task of the slot.
//!
//! Slots are never given back to the allocator: memory is that of the most tasks there ever were at once,
//! 64 bytes each, and what the hands of the threads hold. The obvious alternative, nodes in the tasks
//! themselves, in a list through them, saves that and costs unsafe code that a safe face could not hide
//! from `mem::forget`.
//!
//! Nothing here knows what a waker is. `tests/stacks_loom.rs` compiles this file with loom's atomics.

use crate::base::sync::{AtomicU32, AtomicU64, BareMutex, Mutex, Ordering, PoisonError, fence};

/// A task's place. A line of its own, because neighbours are polled by other threads.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct Slot<W> {
    /// The number of the task it is of; 0 for none.
    owner: AtomicU64,
    /// The number of the dump that asked for its stack; 0 for none.
    asked: AtomicU32,
    /// The thread that polls it; 0 for none.
    running: AtomicU32,
    /// When its last poll began, in ticks; 0 for never.
    polled: AtomicU64,
    /// What the task is called and where it was made.
    site: AtomicU32,
    /// A [`Mutex`] would double the size of a slot. A dump holds it for as long as it takes to clone a waker.
    held: BareMutex<Option<W>>,
}

/// What a slot says of its task.
#[derive(Debug, PartialEq)]
pub(super) struct Seen<W> {
    pub(super) number: u64,
    pub(super) site: u16,
    /// None until it has waited.
    pub(super) held: Option<W>,
}

impl<W> Slot<W> {
    fn new() -> Self {
        Self {
            owner: AtomicU64::new(0),
            asked: AtomicU32::new(0),
            running: AtomicU32::new(0),
            polled: AtomicU64::new(0),
            site: AtomicU32::new(0),
            held: BareMutex::new(None),
        }
    }

    /// A task with this number has it from here on.
    #[inline]
    pub(super) fn make(&self, number: u64, site: u16) {
        fence(Ordering::Release);
        self.site.store(u32::from(site), Ordering::Relaxed);
        self.polled.store(0, Ordering::Relaxed);
        self.owner.store(number, Ordering::Release);
    }

    /// The task is no more. `waits` is whether it has ever kept anything here, which is given back, to be
    /// dropped: that may end in dropping a task, which comes here again.
    #[inline]
    pub(super) fn end(&self, waits: bool) -> Option<W> {
        let held = if waits { self.let_go() } else { None };
        self.owner.store(0, Ordering::Release);
        held
    }

    #[cold]
    fn let_go(&self) -> Option<W> {
        let mut held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        self.owner.store(0, Ordering::Release);
        self.asked.store(0, Ordering::Relaxed);
        held.take()
    }

    /// Keeps `fresh`, and gives back what was kept before. For the task that has the slot.
    pub(super) fn keep(&self, fresh: W) -> Option<W> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).replace(fresh)
    }

    /// What is to be said of its task, if it has one; the task is asked on behalf of the dump `ask`, unless
    /// that is 0, if it has anything to be woken by.
    pub(super) fn look(&self, ask: u32) -> Option<Seen<W>>
    where
        W: Clone,
    {
        if self.number() == 0 {
            return None;
        }
        let held = self.held.lock().unwrap_or_else(PoisonError::into_inner);
        let number = self.number();
        let site = self.site.load(Ordering::Relaxed) as u16;
        fence(Ordering::Acquire);
        if number == 0 || self.owner.load(Ordering::Relaxed) != number {
            return None;
        }
        if held.is_some() {
            self.asked.store(ask, Ordering::Relaxed);
        }
        Some(Seen { number, site, held: held.clone() })
    }

    /// The number of the task it is of; 0 for none.
    pub(super) fn number(&self) -> u64 {
        self.owner.load(Ordering::Acquire)
    }

    /// A poll begins; when the one before it did.
    #[inline]
    pub(super) fn enter(&self, thread: u32, tick: u64) -> u64 {
        let before = self.polled.load(Ordering::Relaxed);
        self.polled.store(tick, Ordering::Relaxed);
        self.running.store(thread, Ordering::Relaxed);
        before
    }

    /// The poll is over.
    #[inline]
    pub(super) fn leave(&self) {
        self.running.store(0, Ordering::Relaxed);
    }

    /// The poll that goes on is not to count: the last one before it began at `before`.
    pub(super) fn disregard(&self, before: u64) {
        self.polled.store(before, Ordering::Relaxed);
    }

    /// The thread that polls the task, if one does.
    pub(super) fn running(&self) -> Option<u32> {
        Some(self.running.load(Ordering::Relaxed)).filter(|&tid| tid != 0)
    }

    /// When its last poll began, in ticks.
    pub(super) fn polled(&self) -> Option<u64> {
        Some(self.polled.load(Ordering::Relaxed)).filter(|&at| at != 0)
    }

    /// Whether a dump asks where the task waits.
    #[inline]
    pub(super) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed) != 0
    }

    /// The dump that asks, which does so no more; 0 for none.
    pub(super) fn take_question(&self) -> u32 {
        self.asked.swap(0, Ordering::Relaxed)
    }

    /// Asks no more on behalf of `dump`.
    pub(super) fn withdraw(&self, dump: u32) {
        let _ = self.asked.compare_exchange(dump, 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// All slots there are, and those that no task and no hand has.
#[derive(Debug)]
pub(super) struct Slots<W: 'static> {
    pub(super) store: Mutex<Store<W>>,
}

#[derive(Debug)]
pub(super) struct Store<W: 'static> {
    chunks: Vec<&'static [Slot<W>]>,
    free: Vec<&'static Slot<W>>,
}

impl<W> Default for Store<W> {
    fn default() -> Self {
        Self::new()
    }
}

impl<W> Store<W> {
    pub(super) const fn new() -> Self {
        Self { chunks: Vec::new(), free: Vec::new() }
    }
}

impl<W> Slots<W> {
    /// Moves `most` free slots to `hand`, which is empty; if there are none, `chunk` are made first.
    #[cold]
    fn fill(&self, hand: &mut Vec<&'static Slot<W>>, most: usize, chunk: usize) {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        if store.free.is_empty() {
            let slots: Vec<Slot<W>> = (0..chunk).map(|_| Slot::new()).collect();
            let slots: &'static [Slot<W>] = slots.leak();
            store.chunks.push(slots);
            // As many as there are: giving back never allocates.
            let all = store.chunks.len() * chunk;
            store.free.reserve(all);
            store.free.extend(slots.iter().rev());
        }
        let rest = store.free.len().saturating_sub(most);
        hand.extend(store.free.drain(rest..));
    }

    /// Takes slots back.
    #[cold]
    fn take_back(&self, slots: impl Iterator<Item = &'static Slot<W>>) {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).free.extend(slots);
    }

    /// The chunk of that number.
    pub(super) fn chunk(&self, number: usize) -> Option<&'static [Slot<W>]> {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        store.chunks.get(number).copied()
    }
}

/// The free slots of one thread, at most `ROOM`.
#[derive(Debug)]
pub(super) struct Hand<W: 'static, const ROOM: usize> {
    free: Vec<&'static Slot<W>>,
}

impl<W, const ROOM: usize> Hand<W, ROOM> {
    /// Slots made together.
    pub(super) const CHUNK: usize = 4 * ROOM;

    pub(super) const fn new() -> Self {
        Self { free: Vec::new() }
    }

    /// A free slot.
    #[inline]
    pub(super) fn take(&mut self, slots: &Slots<W>) -> Option<&'static Slot<W>> {
        if let slot @ Some(_) = self.free.pop() {
            return slot;
        }
        self.free.reserve_exact(ROOM);
        slots.fill(&mut self.free, ROOM / 2, Self::CHUNK);
        self.free.pop()
    }

    /// Takes a slot whose task is no more.
    #[inline]
    pub(super) fn put(&mut self, slot: &'static Slot<W>, slots: &Slots<W>) {
        if self.free.len() >= ROOM {
            slots.take_back(self.free.drain(ROOM / 2..));
        }
        self.free.push(slot);
    }

    /// Gives all of them back.
    pub(super) fn give_back(&mut self, slots: &Slots<W>) {
        if !self.free.is_empty() {
            slots.take_back(self.free.drain(..));
        }
    }
}
