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
use crate::unwind::kept::{FrameBuffer, MAX_OUTERMOST_COPIED};
use crate::unwind::modules::LoadedModules;
use crate::unwind::shared_modules::{current_modules, refresh};
use crate::unwind::tables::RuleCache;
use crate::unwind::walk;
use crate::unwind::{StackWalk, WalkEnd};

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
        let modules = current_modules().unwrap_or_else(|| Arc::new(LoadedModules::empty()));
        Ok(Self { modules, cache: RuleCache::new(CACHE_BITS) })
    }

    /// Reads the loaded files again if they have changed since the last refresh in the process.
    /// Returns `true` if this walker's table has changed. Costs a microsecond if nothing changed.
    /// Holds the loader's lock for an instant.
    pub fn refresh(&mut self) -> Result<bool, Error> {
        refresh()?;
        let fresh = current_modules().filter(|fresh| !Arc::ptr_eq(fresh, &self.modules));
        let changed = fresh.is_some();
        if let Some(fresh) = fresh {
            self.modules = fresh;
        }
        Ok(changed)
    }

    /// Writes the stack into `frames`, innermost first: the current instruction, then return
    /// addresses minus one. `stack` contains the words from `registers.sp` up. `whole` is `true` if
    /// they reach the end of the stack.
    ///
    /// The walk ends with [`WalkEnd::CopyTooShort`] at the end of the copy and with
    /// [`WalkEnd::NoUnwindInfo`] at a frame without a usable rule. [`WalkEnd::OtherStack`] is a
    /// switch from a signal stack to another stack. Costs about 2 us at a depth of 20, or 5 us with
    /// a cold cache.
    pub fn walk(
        &mut self,
        registers: Registers,
        stack: &[u64],
        is_complete: bool,
        frames: &mut [u64],
    ) -> StackWalk {
        let stack = CopiedStack { words: stack, is_complete };
        self.walk_into(registers, stack, FrameBuffer::new(frames, &mut []), None)
    }

    /// Walks like [`Self::walk`], and also writes each frame's stack pointer into `pointers`, as
    /// far as they fit. The memory between two consecutive ones belongs to the inner frame.
    pub fn walk_with_pointers(
        &mut self,
        registers: Registers,
        stack: &[u64],
        is_complete: bool,
        frames: &mut [u64],
        pointers: &mut [u64],
    ) -> StackWalk {
        let stack = CopiedStack { words: stack, is_complete };
        self.walk_into(registers, stack, FrameBuffer::new(frames, pointers), None)
    }

    /// Walks like [`Self::walk`], for a thread of this process whose `outermost` frames are stored.
    /// They are appended to a stack deeper than its copy, as far as their return addresses are
    /// unchanged in memory.
    pub fn walk_with_outermost(
        &mut self,
        snapshot: &StackSnapshot,
        frames: &mut [u64],
        outermost: &mut OutermostFrames,
    ) -> StackWalk {
        let stack = CopiedStack { words: &snapshot.stack, is_complete: snapshot.is_complete };
        self.walk_into(
            snapshot.header.registers,
            stack,
            FrameBuffer::new(frames, &mut []),
            Some(outermost),
        )
    }

    fn walk_into(
        &mut self,
        registers: Registers,
        stack: CopiedStack<'_>,
        mut kept: FrameBuffer<'_, MAX_OUTERMOST_COPIED>,
        outermost: Option<&mut OutermostFrames>,
    ) -> StackWalk {
        let CopiedStack { words, is_complete: is_whole } = stack;
        let mut is_past_copy = false;
        let mut read = |address: u64| {
            let offset = address.checked_sub(registers.sp).ok_or(())?;
            if !offset.is_multiple_of(8) {
                return Err(());
            }
            let word = usize::try_from(offset / 8).ok().and_then(|word| words.get(word));
            is_past_copy |= word.is_none();
            word.copied().ok_or(())
        };
        let take = |frame, pointer| kept.push(frame, pointer);
        let walk = walk::walk_frames(&self.modules, &mut self.cache, registers, &mut read, take);
        let copied = registers.sp..registers.sp.saturating_add(words.len() as u64 * 8);
        let mut end = match walk.end {
            None if walk.interrupted_sp.is_some_and(|sp| !copied.contains(&sp)) => {
                WalkEnd::OtherStack
            }
            None if is_past_copy && !is_whole => WalkEnd::CopyTooShort,
            None => WalkEnd::NoUnwindInfo,
            Some(end) => end,
        };
        let mut is_joined = false;
        if let Some(outermost) = outermost {
            match end {
                WalkEnd::Complete => *outermost = kept.outermost(),
                WalkEnd::CopyTooShort | WalkEnd::TooManyFrames => {
                    let from =
                        if end == WalkEnd::CopyTooShort { copied.end } else { walk.outermost_sp };
                    let Self { modules, cache } = self;
                    is_joined =
                        kept.append_outermost(outermost, from, read_memory_word, |replaced| {
                            infer::is_valid_frame(modules, cache, replaced)
                        });
                    end = if is_joined { WalkEnd::Complete } else { end };
                }
                WalkEnd::NoUnwindInfo | WalkEnd::OtherStack => {}
            }
        }
        let (depth, omitted) = kept.finish(end);
        StackWalk { depth, omitted, end, is_joined, used_heuristics: walk.used_heuristics }
    }
}

struct CopiedStack<'a> {
    words: &'a [u64],
    is_complete: bool,
}

/// Reads a word of this process's memory in its current state.
fn read_memory_word(address: u64) -> Result<u64, ()> {
    let mut word = [0; 8];
    let read = own_memory::read(address, &mut word);
    if read == word.len() { Ok(u64::from_ne_bytes(word)) } else { Err(()) }
}

#[cfg(all(test, target_os = "linux"))]
mod tests {
    use super::*;
    use crate::os::signal::SignalCapture;
    use crate::os::signal::tests::{install_test_target, send_to_self};
    use crate::unwind::MAX_FRAMES;

    #[inline(never)]
    fn recurse(levels: usize, target: &'static SignalCapture) -> u64 {
        let depth = std::hint::black_box(match levels {
            0 => send_to_self(target),
            _ => recurse(levels - 1, target),
        });
        depth + 1
    }

    fn snapshot_of_exited_thread(levels: usize, stack_bytes: usize) -> StackSnapshot {
        let target = install_test_target(4, stack_bytes);
        std::thread::spawn(move || recurse(levels, target)).join().unwrap();
        let mut snapshot = None;
        target
            .slots()
            .drain(&mut StackSnapshot::default(), |copied| snapshot = Some(copied.clone()));
        snapshot.unwrap()
    }

    fn frames_in(function: usize, frames: &[u64]) -> usize {
        let body = function as u64..function as u64 + 1024;
        frames.iter().filter(|frame| body.contains(frame)).count()
    }

    #[test]
    fn stack_of_exited_thread_is_complete() {
        let copied = snapshot_of_exited_thread(5, 64 << 10);
        let mut walker = StackWalker::new().unwrap();
        let mut frames = [0; MAX_FRAMES];
        for _ in 0..2 {
            let StackSnapshot { header: head, stack, is_complete: whole } = &copied;
            let walk = walker.walk(head.registers, stack, *whole, &mut frames);
            assert_eq!(walk.end, WalkEnd::Complete, "{frames:x?}");
            assert_eq!(frames[0], head.registers.ip);
            let deeper = recurse as fn(_, _) -> _ as usize;
            assert_eq!(frames_in(deeper, &frames[..walk.depth]), 6);
        }
    }

    #[test]
    fn too_short_copy_ends_as_copy_too_short() {
        let copied = snapshot_of_exited_thread(100, 4 << 10);
        let mut walker = StackWalker::new().unwrap();
        let mut frames = [0; MAX_FRAMES];
        assert!(!copied.is_complete);
        let walk = walker.walk(copied.header.registers, &copied.stack, false, &mut frames);
        assert_eq!(walk.end, WalkEnd::CopyTooShort);
        assert!(walk.depth > 3 && walk.depth < 100, "{}", walk.depth);
    }

    #[test]
    fn random_stack_words_do_not_panic() {
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
