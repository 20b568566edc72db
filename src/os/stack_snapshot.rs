//! A pool of slots in mapped memory that passes stack copies from a signal handler to an unwinder.
//!
//! ```text
//! free ──claim──> claimed ──publish──> ready ──take──> free
//!      handler            handler            one reader
//! ```
//!
//! A handler claims any free slot within `MAX_CLAIM_ATTEMPTS` of a moving start, so it never waits.
//! A thread that is descheduled with a claimed slot blocks only that slot; in an ordered queue it
//! would block the following ones. If no slot is free, the weight is added to
//! [`SnapshotPool::lost`]. The pool consists of words of one [`MappedWords`]. Only pages that were
//! written use memory, so a slot costs as much as the deepest stack it has held.
//! `tests/loom/signal_handlers.rs` checks the possible memory orderings.

use crate::base::sync::AtomicU64;
use crate::base::sync::Ordering::{Acquire, Relaxed, Release};
use crate::os::mapped_memory::MappedWords;

/// The registers an unwinder starts from.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// Instruction pointer: the interrupted instruction.
    pub ip: u64,
    /// Stack pointer.
    pub sp: u64,
    /// Frame pointer register (`rbp`, `x29`), which may hold any value.
    pub fp: u64,
    /// Link register (`x30`); 0 if the architecture has none.
    pub lr: u64,
}

/// Data a handler records in addition to the stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct SnapshotHeader {
    /// Thread ID.
    pub tid: u32,
    /// Tag set by the sender of the signal; identifies the owner.
    pub tag: u32,
    /// Number of samples this one stands for.
    pub weight: u32,
    /// Registers at the interruption.
    pub registers: Registers,
    /// Thread pointer to libc's thread descriptor, which lies above the thread's stack.
    pub thread_pointer: u64,
    /// Time of the sample: [`ticks`](crate::os::clock::cycle_clock) in a handler, nanoseconds of
    /// `CLOCK_MONOTONIC` in a perf event.
    pub time: u64,
}

/// A copied stack with its header.
#[derive(Clone, Debug, Default)]
pub struct StackSnapshot {
    /// Thread, registers and time of the copy.
    pub header: SnapshotHeader,
    /// Stack words, from the stack pointer up.
    pub stack: Vec<u64>,
    /// Set if the copy reaches the end of the stack.
    pub is_complete: bool,
}

/// Words of a slot before the stack: two cache lines, so that the copy starts on a third.
const HEADER_WORDS: usize = 16;

/// Number of slots a handler tries. If that many in a row are taken, nearly all are.
pub(crate) const MAX_CLAIM_ATTEMPTS: usize = 16;

const FREE: u64 = 0;
const CLAIMED: u64 = 1;
const READY: u64 = 2;

/// A lock-free pool of stack copies.
pub struct SnapshotPool {
    memory: MappedWords,
    slots: usize,
    stack_words: usize,
    next: AtomicU64,
    lost: AtomicU64,
}

impl SnapshotPool {
    /// Maps `slots` slots of up to `stack_bytes` of stack each. Returns `None` if the kernel
    /// refuses the memory.
    pub fn map(slots: usize, stack_bytes: usize) -> Option<Self> {
        let slots = slots.max(1);
        let stack_words = stack_bytes / 8;
        let memory = MappedWords::new(slots.checked_mul(HEADER_WORDS + stack_words)?);
        memory.get_or_map()?;
        Some(Self { memory, slots, stack_words, next: AtomicU64::new(0), lost: AtomicU64::new(0) })
    }

    /// Returns the number of slots.
    pub fn count(&self) -> usize {
        self.slots
    }

    /// Touches the memory of all slots, `bytes / slots` in each, so that later writes cause no page
    /// fault. Costs about 0.3 us for each page the first time.
    pub fn touch(&self, bytes: usize) {
        const PAGE_WORDS: usize = 512;
        let words_per_slot = bytes / 8 / self.slots;
        for words in (0..self.slots).filter_map(|slot| self.words(slot)) {
            let words = words.get(..words_per_slot.min(words.len())).unwrap_or_default();
            let pages = words.iter().step_by(PAGE_WORDS).chain(words.last());
            // A handler may be writing; adding 0 keeps its value.
            pages.for_each(|word| {
                word.fetch_add(0, Relaxed);
            });
        }
    }

    /// Claims a free slot for exclusive use by the caller. Async-signal-safe.
    pub(crate) fn claim(&self) -> Option<ClaimedSlot<'_>> {
        let start = self.next.fetch_add(1, Relaxed) as usize;
        (0..MAX_CLAIM_ATTEMPTS.min(self.slots)).find_map(|step| {
            let words = self.words((start.wrapping_add(step)) % self.slots)?;
            let (state, rest) = words.split_first()?;
            state.compare_exchange(FREE, CLAIMED, Acquire, Relaxed).ok()?;
            let (header, stack) = rest.split_at_checked(HEADER_WORDS - 1)?;
            Some(ClaimedSlot { state, header, stack })
        })
    }

    /// Counts samples for which no slot was free. Async-signal-safe.
    pub(crate) fn count_lost(&self, weight: u64) {
        self.lost.fetch_add(weight, Relaxed);
    }

    /// Returns the total weight of samples without a slot since the pool was mapped.
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    /// Passes each ready stack to `take` and frees its slot. Supports one reader at a time: two
    /// would read torn copies.
    pub fn drain(&self, into: &mut StackSnapshot, mut take: impl FnMut(&StackSnapshot)) {
        for slot in 0..self.slots {
            let Some((state, rest)) = self.words(slot).and_then(<[_]>::split_first) else { return };
            if state.load(Acquire) != READY {
                continue;
            }
            let word = |index: usize| rest.get(index).map_or(0, |word| word.load(Relaxed));
            into.header = SnapshotHeader {
                tid: word(0) as u32,
                tag: word(1) as u32,
                weight: word(2) as u32,
                registers: Registers { ip: word(3), sp: word(4), fp: word(5), lr: word(6) },
                thread_pointer: word(7),
                time: word(8),
            };
            into.is_complete = word(9) & 1 == 1;
            let length = (word(9) >> 1) as usize;
            let stack = rest.iter().skip(HEADER_WORDS - 1).take(length);
            into.stack.clear();
            into.stack.extend(stack.map(|word| word.load(Relaxed)));
            state.store(FREE, Release);
            take(into);
        }
    }

    fn words(&self, slot: usize) -> Option<&[AtomicU64]> {
        let size = HEADER_WORDS + self.stack_words;
        self.memory.get()?.get(slot * size..(slot + 1) * size)
    }
}

/// A slot that is being written. Dropping it without [`ClaimedSlot::publish`] leaks the slot.
#[must_use]
pub(crate) struct ClaimedSlot<'a> {
    state: &'a AtomicU64,
    header: &'a [AtomicU64],
    stack: &'a [AtomicU64],
}

impl ClaimedSlot<'_> {
    /// Returns the capacity for stack words.
    pub(crate) fn capacity(&self) -> usize {
        self.stack.len()
    }

    /// Stores the header and the stack words written by `fill`, which returns their number. Then
    /// marks the slot ready.
    pub(crate) fn publish(
        self,
        header: &SnapshotHeader,
        is_complete: bool,
        fill: impl FnOnce(&[AtomicU64]) -> usize,
    ) {
        let length = fill(self.stack).min(self.stack.len()) as u64;
        let Registers { ip, sp, fp, lr } = header.registers;
        let fixed = [u64::from(header.tid), u64::from(header.tag), u64::from(header.weight)];
        let length = length << 1 | u64::from(is_complete);
        let words = [ip, sp, fp, lr, header.thread_pointer, header.time, length];
        for (place, word) in self.header.iter().zip(fixed.into_iter().chain(words)) {
            place.store(word, Relaxed);
        }
        self.state.store(READY, Release);
    }
}
