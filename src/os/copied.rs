//! Stacks on their way from a signal handler to whoever unwinds them: a pool of slots in mapped memory.
//!
//! ```text
//! free ──claim──> claimed ──publish──> ready ──take──> free
//!      handler            handler            one reader
//! ```
//!
//! A handler claims any free slot within `REACH` of a moving start, so it waits for nobody: a thread
//! that is descheduled with a slot claimed holds back that slot and no other, which a queue in order
//! could not say. When no slot is free its weight goes to [`Slots::lost`]. Everything is words of one
//! [`Chunk`], so a slot costs memory only for the pages of it that were ever written: as much as the
//! deepest stack it has held. `tests/os_loom.rs` tries the orders in which all this may be seen.

use super::memory::Chunk;
use crate::base::sync::AtomicU64;
use crate::base::sync::Ordering::{Acquire, Relaxed, Release};

/// The registers an unwinder begins with.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Registers {
    /// The instruction that was interrupted.
    pub ip: u64,
    /// The stack pointer.
    pub sp: u64,
    /// The frame pointer, whatever is in it: `rbp`, `x29`.
    pub fp: u64,
    /// The link register, `x30`; 0 where there is none.
    pub lr: u64,
}

/// What a handler knows besides the stack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Head {
    /// The thread.
    pub tid: u32,
    /// Whose it is: what the sender of the signal put there.
    pub tag: u32,
    /// How many samples it stands for.
    pub weight: u32,
    /// Where the thread was.
    pub registers: Registers,
    /// The thread's own pointer to what libc keeps of it, which lies above its stack.
    pub thread_pointer: u64,
    /// When it was: a handler's in [`ticks`](super::ticks), an event's in nanoseconds of `CLOCK_MONOTONIC`.
    pub time: u64,
}

/// A stack that was copied.
#[derive(Clone, Debug, Default)]
pub struct Copied {
    /// Whose and where.
    pub head: Head,
    /// The words from the stack pointer up.
    pub stack: Vec<u64>,
    /// Whether the copy reaches to the end of the stack.
    pub whole: bool,
}

/// Words of a slot before the stack: two lines of the cache, so that the copy begins with a third.
const HEAD: usize = 16;

/// How many slots a handler looks at. That many taken in a row mean that nearly all are.
pub(crate) const REACH: usize = 16;

const FREE: u64 = 0;
const CLAIMED: u64 = 1;
const READY: u64 = 2;

/// The pool.
pub struct Slots {
    memory: Chunk,
    slots: usize,
    stack_words: usize,
    next: AtomicU64,
    lost: AtomicU64,
}

impl Slots {
    /// `slots` slots of up to `stack_bytes` of stack each; none when the kernel refuses the memory.
    pub fn map(slots: usize, stack_bytes: usize) -> Option<Self> {
        let (slots, stack_words) = (slots.max(1), stack_bytes / 8);
        let memory = Chunk::new(slots.checked_mul(HEAD + stack_words)?);
        memory.get_or_map()?;
        Some(Self { memory, slots, stack_words, next: AtomicU64::new(0), lost: AtomicU64::new(0) })
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.slots
    }

    /// Touches the memory of all slots, as deep in each as `bytes` for all of them allow, so that writing
    /// there is no page fault later: some 0.3 us a page the first time.
    pub fn touch(&self, bytes: usize) {
        const PAGE_WORDS: usize = 512;
        let each = bytes / 8 / self.slots;
        for words in (0..self.slots).filter_map(|slot| self.words(slot)) {
            let words = words.get(..each.min(words.len())).unwrap_or_default();
            let pages = words.iter().step_by(PAGE_WORDS).chain(words.last());
            // A handler may be writing; what it writes stays.
            pages.for_each(|word| {
                word.fetch_add(0, Relaxed);
            });
        }
    }

    /// A free slot, now the caller's alone. Async-signal-safe.
    pub(crate) fn claim(&self) -> Option<Claimed<'_>> {
        let start = self.next.fetch_add(1, Relaxed) as usize;
        (0..REACH.min(self.slots)).find_map(|step| {
            let words = self.words((start.wrapping_add(step)) % self.slots)?;
            let (state, rest) = words.split_first()?;
            state.compare_exchange(FREE, CLAIMED, Acquire, Relaxed).ok()?;
            let (head, stack) = rest.split_at_checked(HEAD - 1)?;
            Some(Claimed { state, head, stack })
        })
    }

    /// Counts samples for which there was no slot. Async-signal-safe.
    pub(crate) fn lose(&self, weight: u64) {
        self.lost.fetch_add(weight, Relaxed);
    }

    /// How much weight found no slot, since the pool was mapped.
    pub fn lost(&self) -> u64 {
        self.lost.load(Relaxed)
    }

    /// Hands every stack that is ready to `take` and frees its slot. For one reader at a time: two would
    /// see torn copies.
    pub fn drain(&self, into: &mut Copied, mut take: impl FnMut(&Copied)) {
        for slot in 0..self.slots {
            let Some((state, rest)) = self.words(slot).and_then(<[_]>::split_first) else { return };
            if state.load(Acquire) != READY {
                continue;
            }
            let word = |index: usize| rest.get(index).map_or(0, |word| word.load(Relaxed));
            into.head = Head {
                tid: word(0) as u32,
                tag: word(1) as u32,
                weight: word(2) as u32,
                registers: Registers { ip: word(3), sp: word(4), fp: word(5), lr: word(6) },
                thread_pointer: word(7),
                time: word(8),
            };
            into.whole = word(9) & 1 == 1;
            let length = (word(9) >> 1) as usize;
            let stack = rest.iter().skip(HEAD - 1).take(length);
            into.stack.clear();
            into.stack.extend(stack.map(|word| word.load(Relaxed)));
            state.store(FREE, Release);
            take(into);
        }
    }

    fn words(&self, slot: usize) -> Option<&[AtomicU64]> {
        let size = HEAD + self.stack_words;
        self.memory.get()?.get(slot * size..(slot + 1) * size)
    }
}

/// A slot that is being written. Dropping it without [`Claimed::publish`] would leak it.
#[must_use]
pub(crate) struct Claimed<'a> {
    state: &'a AtomicU64,
    head: &'a [AtomicU64],
    stack: &'a [AtomicU64],
}

impl Claimed<'_> {
    /// How many words of stack there is room for.
    pub(crate) fn room(&self) -> usize {
        self.stack.len()
    }

    /// Lets `fill` put words of stack where there is room for them, which says how many, and hands the slot
    /// over.
    pub(crate) fn publish(
        self,
        head: &Head,
        whole: bool,
        fill: impl FnOnce(&[AtomicU64]) -> usize,
    ) {
        let length = fill(self.stack).min(self.stack.len()) as u64;
        let Registers { ip, sp, fp, lr } = head.registers;
        let fixed = [u64::from(head.tid), u64::from(head.tag), u64::from(head.weight)];
        let length = length << 1 | u64::from(whole);
        let words = [ip, sp, fp, lr, head.thread_pointer, head.time, length];
        for (place, word) in self.head.iter().zip(fixed.into_iter().chain(words)) {
            place.store(word, Relaxed);
        }
        self.state.store(READY, Release);
    }
}
