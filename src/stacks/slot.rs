//! The slot of a task, and the store of free slots.
//!
//! ```text
//! Slots ── Mutex { every chunk, the free slots }     accessed once per 32 tasks
//!            │ take 32            ▲ give back 32
//! Hand  ── a thread's free slots, at most 64         accessed when a task is created or ends
//!            │ take one           ▲ put one
//! Slot  ── 64 bytes of atomics, and its own lock around the waker
//! ```
//!
//! A slot moves from the hand of the thread that creates a task to that of the thread that ends it.
//! Neither waits for the other. Only threads that create more tasks than they end, or the reverse,
//! access the store. A task that never waited has no waker and never takes its slot's lock.
//!
//! ```text
//! make    fence(Release)   site, polled (Relaxed)   owner = n (Release)      before: owner = 0
//! end     owner = 0 (under the lock, if there is a waker)
//! look    lock   owner (Acquire)   site   fence(Acquire)   owner again: valid if unchanged
//! ```
//!
//! Task numbers are never reused, so reading the same number twice means the same task. Under the
//! lock a stored waker belongs to the current task, because the task's end would have removed it.
//! So a request made under the lock never reaches a later task of the slot.
//!
//! Slots are never returned to the allocator. They take 64 bytes for each of the maximum number of
//! tasks alive at once, plus the threads' hands. The obvious alternative, an intrusive list of
//! nodes in the tasks, saves that memory. But it needs unsafe code that no safe API can protect
//! from `mem::forget`.
//!
//! This file does not interpret wakers. `tests/stacks_loom.rs` compiles it with loom's atomics.

use crate::base::sync::{AtomicU32, AtomicU64, BareMutex, Mutex, Ordering, PoisonError, fence};

/// The slot of a task. It fills a cache line, because other threads poll the tasks of its
/// neighbours.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct TaskSlot<W> {
    /// Number of the task that owns the slot; 0 for none.
    owner: AtomicU64,
    /// Number of the dump that requests the task's stack; 0 for none.
    asked: AtomicU32,
    /// Thread that polls the task; 0 for none.
    running: AtomicU32,
    /// Start of the last poll, in ticks; 0 for none.
    polled: AtomicU64,
    /// Number of the task's site: its name and spawn location.
    site: AtomicU32,
    /// The stored waker. A [`Mutex`] would double the size of a slot. A dump holds the lock for as
    /// long as it takes to clone a waker.
    held: BareMutex<Option<W>>,
}

/// The state of a slot's task.
#[derive(Debug, PartialEq)]
pub(super) struct SlotView<W> {
    pub(super) number: u64,
    pub(super) site: u16,
    /// `None` if the task has never waited.
    pub(super) held: Option<W>,
}

impl<W> TaskSlot<W> {
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

    /// Assigns the slot to the task with this number.
    #[inline]
    pub(super) fn make(&self, number: u64, site: u16) {
        fence(Ordering::Release);
        self.site.store(u32::from(site), Ordering::Relaxed);
        self.polled.store(0, Ordering::Relaxed);
        self.owner.store(number, Ordering::Release);
    }

    /// Frees the slot. `waits` is `true` if the task has stored a value. The value is returned so
    /// that the caller drops it outside of the lock: its drop can drop another task, which ends
    /// here again.
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

    /// Stores `fresh` and returns the previous value. Must be called by the task that owns the
    /// slot.
    pub(super) fn keep(&self, fresh: W) -> Option<W> {
        self.held.lock().unwrap_or_else(PoisonError::into_inner).replace(fresh)
    }

    /// Returns the state of the task, if the slot has one. If the task can be woken and `ask` is
    /// not 0, the dump `ask` requests its stack.
    pub(super) fn look(&self, ask: u32) -> Option<SlotView<W>>
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
        Some(SlotView { number, site, held: held.clone() })
    }

    /// Returns the number of the task that owns the slot; 0 for none.
    pub(super) fn number(&self) -> u64 {
        self.owner.load(Ordering::Acquire)
    }

    /// Starts a poll. Returns the start of the previous one.
    #[inline]
    pub(super) fn enter(&self, thread: u32, tick: u64) -> u64 {
        let before = self.polled.load(Ordering::Relaxed);
        self.polled.store(tick, Ordering::Relaxed);
        self.running.store(thread, Ordering::Relaxed);
        before
    }

    /// Ends a poll.
    #[inline]
    pub(super) fn leave(&self) {
        self.running.store(0, Ordering::Relaxed);
    }

    /// Discards the start of the current poll: the previous poll started at `before`.
    pub(super) fn disregard(&self, before: u64) {
        self.polled.store(before, Ordering::Relaxed);
    }

    /// Returns the thread that polls the task. `None` if it is not being polled.
    pub(super) fn running(&self) -> Option<u32> {
        Some(self.running.load(Ordering::Relaxed)).filter(|&tid| tid != 0)
    }

    /// Returns the start of the last poll in ticks. `None` if there was none.
    pub(super) fn polled(&self) -> Option<u64> {
        Some(self.polled.load(Ordering::Relaxed)).filter(|&at| at != 0)
    }

    /// Returns `true` if a dump requests the task's stack.
    #[inline]
    pub(super) fn is_asked(&self) -> bool {
        self.asked.load(Ordering::Relaxed) != 0
    }

    /// Takes the pending request and returns the number of its dump; 0 for none.
    pub(super) fn take_question(&self) -> u32 {
        self.asked.swap(0, Ordering::Relaxed)
    }

    /// Withdraws a request of `dump`.
    pub(super) fn withdraw(&self, dump: u32) {
        let _ = self.asked.compare_exchange(dump, 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// All slots, and the free ones that are in no thread's hand.
#[derive(Debug)]
pub(super) struct Slots<W: 'static> {
    pub(super) store: Mutex<Store<W>>,
}

#[derive(Debug)]
pub(super) struct Store<W: 'static> {
    chunks: Vec<&'static [TaskSlot<W>]>,
    free: Vec<&'static TaskSlot<W>>,
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
    /// Moves at most `most` free slots to the empty `hand`. Allocates `chunk` slots first if there
    /// are none.
    #[cold]
    fn fill(&self, hand: &mut Vec<&'static TaskSlot<W>>, most: usize, chunk: usize) {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        if store.free.is_empty() {
            let slots: Vec<TaskSlot<W>> = (0..chunk).map(|_| TaskSlot::new()).collect();
            let slots: &'static [TaskSlot<W>] = slots.leak();
            store.chunks.push(slots);
            // Capacity for all slots, so that giving slots back never allocates.
            let all = store.chunks.len() * chunk;
            store.free.reserve(all);
            store.free.extend(slots.iter().rev());
        }
        let rest = store.free.len().saturating_sub(most);
        hand.extend(store.free.drain(rest..));
    }

    /// Takes slots back from a thread.
    #[cold]
    fn take_back(&self, slots: impl Iterator<Item = &'static TaskSlot<W>>) {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).free.extend(slots);
    }

    /// Returns the chunk with this index.
    pub(super) fn chunk(&self, number: usize) -> Option<&'static [TaskSlot<W>]> {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        store.chunks.get(number).copied()
    }
}

/// The free slots of one thread, at most `ROOM`.
#[derive(Debug)]
pub(super) struct LocalFreeList<W: 'static, const ROOM: usize> {
    free: Vec<&'static TaskSlot<W>>,
}

impl<W, const ROOM: usize> LocalFreeList<W, ROOM> {
    /// Number of slots allocated together.
    pub(super) const CHUNK: usize = 4 * ROOM;

    pub(super) const fn new() -> Self {
        Self { free: Vec::new() }
    }

    /// Takes a free slot.
    #[inline]
    pub(super) fn take(&mut self, slots: &Slots<W>) -> Option<&'static TaskSlot<W>> {
        if let slot @ Some(_) = self.free.pop() {
            return slot;
        }
        self.free.reserve_exact(ROOM);
        slots.fill(&mut self.free, ROOM / 2, Self::CHUNK);
        self.free.pop()
    }

    /// Puts back the slot of a task that ended.
    #[inline]
    pub(super) fn put(&mut self, slot: &'static TaskSlot<W>, slots: &Slots<W>) {
        if self.free.len() >= ROOM {
            slots.take_back(self.free.drain(ROOM / 2..));
        }
        self.free.push(slot);
    }

    /// Gives all slots back to the store.
    pub(super) fn give_back(&mut self, slots: &Slots<W>) {
        if !self.free.is_empty() {
            slots.take_back(self.free.drain(..));
        }
    }
}
