//! Walker for copied stacks. The sampled thread is not accessed and may have exited.
//!
//! A [`StackWalker`] holds a reference to its table of modules, so a refresh during a walk frees
//! nothing. A library unloaded between the sample and the walk is still in the table read before:
//! keep sampling, call [`StackWalker::refresh`], then walk. One generation of unloaded files is
//! kept for that.

use std::sync::Arc;

use crate::os::images::Error;
use crate::os::own_memory;
use crate::os::stack_snapshot::{Registers, StackSnapshot};
use crate::unwind::infer;
use crate::unwind::kept::{KeptFrames, OF_COPIES};
use crate::unwind::modules::LoadedModules;
use crate::unwind::tables::RuleCache;
use crate::unwind::walk;
use crate::unwind::{StackWalk, WalkEnd, current, refresh};

pub use crate::unwind::kept::OutermostFrames;

/// Binary logarithm of the number of rules in a cache: 96 KiB. Most samples of a service are at
/// some hundred addresses.
const CACHE_BITS: u32 = 12;

/// A walker for copied stacks. Takes some 110 KiB and serves one thread at a time; their number is
/// not limited.
pub struct StackWalker {
    modules: Arc<LoadedModules>,
    cache: RuleCache,
}

impl StackWalker {
    /// Creates a walker. Reads the loaded files if this has not been done yet, which takes about a
    /// millisecond.
    ///
    /// # Errors
    ///
    /// If `/proc/self/maps` cannot be read.
    pub fn new() -> Result<Self, Error> {
        refresh()?;
        let modules = current().unwrap_or_else(|| Arc::new(LoadedModules::empty()));
        Ok(Self { modules, cache: RuleCache::new(CACHE_BITS) })
    }

    /// Reads the loaded files again if they have changed since the last refresh in the process.
    /// Returns `true` if this walker's table has changed. Costs a microsecond if nothing changed.
    /// Holds the loader's lock for an instant.
    pub fn refresh(&mut self) -> Result<bool, Error> {
        refresh()?;
        let fresh = current().filter(|fresh| !Arc::ptr_eq(fresh, &self.modules));
        let changed = fresh.is_some();
        if let Some(fresh) = fresh {
            self.modules = fresh;
        }
        Ok(changed)
    }

    /// Returns `true` if `address` is in a file that has unwind information.
    pub fn knows(&self, address: u64) -> bool {
        self.modules.holds(address)
    }

    /// Writes the stack into `frames`, innermost first: the current instruction, then return
    /// addresses minus one. `stack` contains the words from `registers.sp` up. `whole` is `true` if
    /// they reach the end of the stack.
    ///
    /// The walk ends with [`WalkEnd::Truncated`] at the end of the copy and with
    /// [`WalkEnd::Broken`] at a frame without a usable rule. [`WalkEnd::Elsewhere`] is a switch
    /// from a signal stack to another stack. Costs about 2 us at a depth of 20, or 5 us with a cold
    /// cache.
    pub fn walk(
        &mut self,
        registers: Registers,
        stack: &[u64],
        whole: bool,
        frames: &mut [u64],
    ) -> StackWalk {
        let stack = CopiedStack { words: stack, is_whole: whole };
        self.walk_kept(registers, stack, KeptFrames::new(frames, &mut []), None)
    }

    /// Walks like [`Self::walk`], and also writes each frame's stack pointer into `pointers`, as
    /// far as they fit. The memory between two consecutive ones belongs to the inner frame.
    pub fn walk_marked(
        &mut self,
        registers: Registers,
        stack: &[u64],
        whole: bool,
        frames: &mut [u64],
        pointers: &mut [u64],
    ) -> StackWalk {
        let stack = CopiedStack { words: stack, is_whole: whole };
        self.walk_kept(registers, stack, KeptFrames::new(frames, pointers), None)
    }

    /// Walks like [`Self::walk`], for a thread of this process whose `outermost` frames are stored.
    /// They are appended to a stack deeper than its copy, as far as their return addresses are
    /// unchanged in memory.
    pub fn walk_joined(
        &mut self,
        copied: &StackSnapshot,
        frames: &mut [u64],
        outermost: &mut OutermostFrames,
    ) -> StackWalk {
        let stack = CopiedStack { words: &copied.stack, is_whole: copied.whole };
        self.walk_kept(
            copied.head.registers,
            stack,
            KeptFrames::new(frames, &mut []),
            Some(outermost),
        )
    }

    fn walk_kept(
        &mut self,
        registers: Registers,
        stack: CopiedStack<'_>,
        mut kept: KeptFrames<'_, OF_COPIES>,
        outermost: Option<&mut OutermostFrames>,
    ) -> StackWalk {
        let CopiedStack { words, is_whole } = stack;
        let mut ran_off = false;
        let mut read = |address: u64| {
            let offset = address.checked_sub(registers.sp).ok_or(())?;
            if !offset.is_multiple_of(8) {
                return Err(());
            }
            let word = usize::try_from(offset / 8).ok().and_then(|word| words.get(word));
            ran_off |= word.is_none();
            word.copied().ok_or(())
        };
        let take = |frame, pointer| kept.push(frame, pointer);
        let walk = walk::walk(&self.modules, &mut self.cache, registers, &mut read, take);
        let copied = registers.sp..registers.sp.saturating_add(words.len() as u64 * 8);
        let mut end = match walk.end {
            None if walk.interrupted.is_some_and(|sp| !copied.contains(&sp)) => WalkEnd::Elsewhere,
            None if ran_off && !is_whole => WalkEnd::Truncated,
            None => WalkEnd::Broken,
            Some(end) => end,
        };
        let mut is_joined = false;
        if let Some(outermost) = outermost {
            match end {
                WalkEnd::Whole => *outermost = kept.outermost(),
                WalkEnd::Truncated | WalkEnd::TooDeep => {
                    let from = if end == WalkEnd::Truncated { copied.end } else { walk.reached };
                    let Self { modules, cache } = self;
                    is_joined = kept.join(outermost, from, memory_word, |replaced| {
                        infer::is_frame(modules, cache, replaced)
                    });
                    end = if is_joined { WalkEnd::Whole } else { end };
                }
                WalkEnd::Broken | WalkEnd::Elsewhere => {}
            }
        }
        let (depth, omitted) = kept.finish(end);
        StackWalk { depth, omitted, end, is_joined, is_inferred: walk.is_inferred }
    }
}

struct CopiedStack<'a> {
    words: &'a [u64],
    is_whole: bool,
}

/// Reads a word of this process's memory in its current state.
fn memory_word(address: u64) -> Result<u64, ()> {
    let mut word = [0; 8];
    let read = own_memory::read(address, &mut word);
    if read == word.len() { Ok(u64::from_ne_bytes(word)) } else { Err(()) }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::os::signal::SignalCapture;
    use crate::os::signal::tests::{interrupted, target};
    use crate::unwind::MAX_FRAMES;

    #[inline(never)]
    fn deeper(levels: usize, target: &'static SignalCapture) -> u64 {
        let below = std::hint::black_box(match levels {
            0 => interrupted(target),
            _ => deeper(levels - 1, target),
        });
        below + 1
    }

    fn copied_from_a_dead_thread(levels: usize, stack_bytes: usize) -> StackSnapshot {
        let target = target(4, stack_bytes);
        std::thread::spawn(move || deeper(levels, target)).join().unwrap();
        let mut taken = None;
        target.slots().drain(&mut StackSnapshot::default(), |copied| taken = Some(copied.clone()));
        taken.unwrap()
    }

    fn frames_in(function: usize, frames: &[u64]) -> usize {
        let body = function as u64..function as u64 + 1024;
        frames.iter().filter(|frame| body.contains(frame)).count()
    }

    #[test]
    fn the_stack_of_a_thread_that_is_gone_is_whole() {
        let copied = copied_from_a_dead_thread(5, 64 << 10);
        let mut walker = StackWalker::new().unwrap();
        let mut frames = [0; MAX_FRAMES];
        for _ in 0..2 {
            let StackSnapshot { head, stack, whole } = &copied;
            let walk = walker.walk(head.registers, stack, *whole, &mut frames);
            assert_eq!(walk.end, WalkEnd::Whole, "{frames:x?}");
            assert_eq!(frames[0], head.registers.ip);
            let deeper = deeper as fn(_, _) -> _ as usize;
            assert_eq!(frames_in(deeper, &frames[..walk.depth]), 6);
        }
    }

    #[test]
    fn a_copy_that_is_too_short_is_marked() {
        let copied = copied_from_a_dead_thread(100, 4 << 10);
        let mut walker = StackWalker::new().unwrap();
        let mut frames = [0; MAX_FRAMES];
        assert!(!copied.whole);
        let walk = walker.walk(copied.head.registers, &copied.stack, false, &mut frames);
        assert_eq!(walk.end, WalkEnd::Truncated);
        assert!(walk.depth > 3 && walk.depth < 100, "{}", walk.depth);
    }

    #[test]
    fn any_words_can_be_walked() {
        let mut walker = StackWalker::new().unwrap();
        let mut state = 1u64;
        let mut random = || {
            state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1);
            state >> 8
        };
        for _ in 0..2000 {
            let sp = random() & !7;
            let stack: Vec<u64> =
                (0..random() % 64).map(|_| sp.wrapping_add(random() % 600)).collect();
            let fp = sp.wrapping_add(random() % 512);
            let registers = Registers { ip: random(), sp, fp, lr: random() };
            let walk = walker.walk(registers, &stack, true, &mut [0; MAX_FRAMES]);
            assert!(walk.depth >= 1 && walk.depth <= MAX_FRAMES);
        }
    }
}
