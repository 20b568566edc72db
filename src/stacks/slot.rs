//! The slot of a task, and the store of free slots.
//!
//! ```text
//! Slots          Mutex { all chunks, the free slots }     accessed once per 32 tasks
//!   │ take 32       ▲ return 32
//! LocalFreeList  free slots of a thread, at most 64      accessed when a task is created or ends
//!   │ take one      ▲ put one
//! TaskSlot       64 bytes of atomics, and its own lock around the waker
//! ```
//!
//! A slot moves from the list of the thread that creates a task to that of the thread that ends it.
//! Neither thread waits for the other. Only threads that create more tasks than they end, or the
//! reverse, access the store. A task that never waited has no waker and never takes its slot's
//! lock.
//!
//! ```text
//! assign   fence(Release)   site, last_poll (Relaxed)   owner = n (Release)   before: owner = 0
//! release  owner = 0 (under the lock, if there is a waker)
//! view     lock   owner (Acquire)   site   fence(Acquire)   owner again: valid if unchanged
//! ```
//!
//! Task numbers are never reused, so reading the same number twice means the same task. Under the
//! lock, a stored waker belongs to the current task, because a task that ends removes its waker.
//! So a request made under the lock never reaches a later task of the slot.
//!
//! Slots are never returned to the allocator. They take 64 bytes for each of the maximum number of
//! tasks alive at once, plus the threads' lists. An intrusive list of nodes in the tasks would save
//! that memory. But it needs unsafe code that no safe API can protect from `mem::forget`.
//!
//! The waker is a type parameter `W`, because `tests/loom/task_slots.rs` compiles this file with
//! loom's atomics.

use crate::base::sync::{AtomicU32, AtomicU64, BareMutex, Mutex, Ordering, PoisonError, fence};

/// The slot of a task. It fills a cache line, because other threads poll the tasks of its
/// neighbours.
#[derive(Debug)]
#[repr(align(64))]
pub(super) struct TaskSlot<W> {
    /// Number of the task that owns the slot; 0 for none.
    owner: AtomicU64,
    /// Number of the dump that requests the task's stack; 0 for none.
    requested_by: AtomicU32,
    /// Thread that polls the task; 0 for none.
    polling_thread: AtomicU32,
    /// Start of the last poll, in ticks; 0 for none.
    last_poll: AtomicU64,
    /// Number of the task's site: its name and spawn location.
    site: AtomicU32,
    /// The stored waker. A [`Mutex`] would double the size of a slot. A dump holds the lock for as
    /// long as it takes to clone a waker.
    stored: BareMutex<Option<W>>,
}

/// The state of a slot's task.
#[derive(Debug, PartialEq)]
pub(super) struct SlotView<W> {
    pub(super) number: u64,
    pub(super) site: u16,
    /// `None` if the task has never waited.
    pub(super) stored: Option<W>,
}

impl<W> TaskSlot<W> {
    fn new() -> Self {
        Self {
            owner: AtomicU64::new(0),
            requested_by: AtomicU32::new(0),
            polling_thread: AtomicU32::new(0),
            last_poll: AtomicU64::new(0),
            site: AtomicU32::new(0),
            stored: BareMutex::new(None),
        }
    }

    /// Assigns the slot to the task with this number.
    #[inline]
    pub(super) fn assign(&self, number: u64, site: u16) {
        fence(Ordering::Release);
        self.site.store(u32::from(site), Ordering::Relaxed);
        self.last_poll.store(0, Ordering::Relaxed);
        self.owner.store(number, Ordering::Release);
    }

    /// Frees the slot. `has_waker` is `true` if the task has stored a waker. The waker is returned
    /// so that the caller drops it outside of the lock: dropping it can end another task, which
    /// releases its slot here.
    #[inline]
    pub(super) fn release(&self, has_waker: bool) -> Option<W> {
        let stored = if has_waker { self.release_stored() } else { None };
        self.owner.store(0, Ordering::Release);
        stored
    }

    #[cold]
    fn release_stored(&self) -> Option<W> {
        let mut stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        self.owner.store(0, Ordering::Release);
        self.requested_by.store(0, Ordering::Relaxed);
        stored.take()
    }

    /// Stores `waker` and returns the previous one. Must be called by the task that owns the slot.
    pub(super) fn store(&self, waker: W) -> Option<W> {
        self.stored.lock().unwrap_or_else(PoisonError::into_inner).replace(waker)
    }

    /// Returns the state of the task, if the slot has one. Requests the stack of a task with a
    /// waker for the dump number `dump`, unless that is 0.
    pub(super) fn view(&self, dump: u32) -> Option<SlotView<W>>
    where
        W: Clone,
    {
        if self.number() == 0 {
            return None;
        }
        let stored = self.stored.lock().unwrap_or_else(PoisonError::into_inner);
        let number = self.number();
        let site = self.site.load(Ordering::Relaxed) as u16;
        fence(Ordering::Acquire);
        if number == 0 || self.owner.load(Ordering::Relaxed) != number {
            return None;
        }
        if stored.is_some() {
            self.requested_by.store(dump, Ordering::Relaxed);
        }
        Some(SlotView { number, site, stored: stored.clone() })
    }

    /// Returns the number of the task that owns the slot; 0 for none.
    pub(super) fn number(&self) -> u64 {
        self.owner.load(Ordering::Acquire)
    }

    /// Starts a poll. Returns the start of the previous one; 0 for none.
    #[inline]
    pub(super) fn begin_poll(&self, thread: u32, tick: u64) -> u64 {
        let previous = self.last_poll.load(Ordering::Relaxed);
        self.last_poll.store(tick, Ordering::Relaxed);
        self.polling_thread.store(thread, Ordering::Relaxed);
        previous
    }

    #[inline]
    pub(super) fn end_poll(&self) {
        self.polling_thread.store(0, Ordering::Relaxed);
    }

    /// Discards the start of the current poll: the previous poll started at `previous`.
    pub(super) fn restore_last_poll(&self, previous: u64) {
        self.last_poll.store(previous, Ordering::Relaxed);
    }

    /// Returns the thread that polls the task. `None` if it is not being polled.
    pub(super) fn polling_thread(&self) -> Option<u32> {
        Some(self.polling_thread.load(Ordering::Relaxed)).filter(|&tid| tid != 0)
    }

    /// Returns the start of the last poll in ticks. `None` if there was none.
    pub(super) fn last_poll(&self) -> Option<u64> {
        Some(self.last_poll.load(Ordering::Relaxed)).filter(|&at| at != 0)
    }

    /// Returns `true` if a dump requests the task's stack.
    #[inline]
    pub(super) fn is_stack_requested(&self) -> bool {
        self.requested_by.load(Ordering::Relaxed) != 0
    }

    /// Takes the pending request and returns the number of its dump; 0 for none.
    pub(super) fn take_request(&self) -> u32 {
        self.requested_by.swap(0, Ordering::Relaxed)
    }

    /// Withdraws the request if `dump` made it.
    pub(super) fn withdraw(&self, dump: u32) {
        let _ = self.requested_by.compare_exchange(dump, 0, Ordering::Relaxed, Ordering::Relaxed);
    }
}

/// All slots, and the free ones that are in no thread's list.
#[derive(Debug)]
pub(super) struct Slots<W: 'static> {
    pub(super) store: Mutex<SlotStore<W>>,
}

#[derive(Debug)]
pub(super) struct SlotStore<W: 'static> {
    chunks: Vec<&'static [TaskSlot<W>]>,
    free: Vec<&'static TaskSlot<W>>,
}

impl<W> Default for SlotStore<W> {
    fn default() -> Self {
        Self::new()
    }
}

impl<W> SlotStore<W> {
    pub(super) const fn new() -> Self {
        Self { chunks: Vec::new(), free: Vec::new() }
    }
}

impl<W> Slots<W> {
    /// Moves at most `max_slots` free slots to the empty `free_list`. Allocates `chunk_size` slots
    /// first if there are none.
    #[cold]
    fn fill(&self, free_list: &mut Vec<&'static TaskSlot<W>>, max_slots: usize, chunk_size: usize) {
        let mut store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        if store.free.is_empty() {
            let slots: Vec<TaskSlot<W>> = (0..chunk_size).map(|_| TaskSlot::new()).collect();
            let slots: &'static [TaskSlot<W>] = slots.leak();
            store.chunks.push(slots);
            // Capacity for all slots, so that giving slots back never allocates.
            let total = store.chunks.len() * chunk_size;
            store.free.reserve(total);
            store.free.extend(slots.iter().rev());
        }
        let kept = store.free.len().saturating_sub(max_slots);
        free_list.extend(store.free.drain(kept..));
    }

    /// Puts slots from a thread's list back into the store.
    #[cold]
    fn return_slots(&self, slots: impl Iterator<Item = &'static TaskSlot<W>>) {
        self.store.lock().unwrap_or_else(PoisonError::into_inner).free.extend(slots);
    }

    pub(super) fn chunk(&self, index: usize) -> Option<&'static [TaskSlot<W>]> {
        let store = self.store.lock().unwrap_or_else(PoisonError::into_inner);
        store.chunks.get(index).copied()
    }
}

/// The free slots of one thread, at most `CAPACITY`.
#[derive(Debug)]
pub(super) struct LocalFreeList<W: 'static, const CAPACITY: usize> {
    free: Vec<&'static TaskSlot<W>>,
}

impl<W, const CAPACITY: usize> LocalFreeList<W, CAPACITY> {
    /// Number of slots allocated together.
    pub(super) const SLOTS_PER_CHUNK: usize = 4 * CAPACITY;

    pub(super) const fn new() -> Self {
        Self { free: Vec::new() }
    }

    #[inline]
    pub(super) fn take(&mut self, slots: &Slots<W>) -> Option<&'static TaskSlot<W>> {
        if let slot @ Some(_) = self.free.pop() {
            return slot;
        }
        self.free.reserve_exact(CAPACITY);
        slots.fill(&mut self.free, CAPACITY / 2, Self::SLOTS_PER_CHUNK);
        self.free.pop()
    }

    /// Puts back the slot of a task that ended.
    #[inline]
    pub(super) fn put(&mut self, slot: &'static TaskSlot<W>, slots: &Slots<W>) {
        if self.free.len() >= CAPACITY {
            slots.return_slots(self.free.drain(CAPACITY / 2..));
        }
        self.free.push(slot);
    }

    /// Returns all slots to the store.
    pub(super) fn return_all(&mut self, slots: &Slots<W>) {
        if !self.free.is_empty() {
            slots.return_slots(self.free.drain(..));
        }
    }
}
