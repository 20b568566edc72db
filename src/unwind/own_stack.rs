//! Walk of the calling thread's own stack, in place.
//!
//! Runs inside the allocator. Once the thread's stack bounds are known, it neither locks nor
//! allocates. A walk costs microseconds, the claim of a table nanoseconds.
//!
//! Not for use in signal handlers: see `os::own_stack::current_stack_bounds`.

#![allow(unsafe_code, reason = "reads of the running thread's own stack")]

use std::cell::Cell;
use std::ops::Range;
use std::panic::{AssertUnwindSafe, catch_unwind};

use crate::os::own_stack::{current_registers, current_stack_bounds, read_word};
use crate::os::stack_snapshot::Registers;
use crate::unwind::infer;
use crate::unwind::kept::{FrameBuffer, MAX_OUTERMOST_OWN, OutermostFrames};
use crate::unwind::shared_modules::{self, TableClaim};
use crate::unwind::walk;
use crate::unwind::{StackWalk, UnwindError, WalkEnd};

/// Stack required below the caller, for a walk and the heap profiler's work around it. Measured
/// with optimization: 4.5 KiB, of which 2 KiB map a table's next part. Measured without: 16 KiB for
/// the walk.
const MIN_FREE_STACK: u64 = if cfg!(debug_assertions) { 32 << 10 } else { 8 << 10 };

/// Stack required to build the first table or a slot's cache, which take 45 KiB in a debug build. A
/// thread with less uses those built by other threads.
const MIN_FREE_STACK_TO_BUILD: u64 = 64 << 10;

/// Writes the calling thread's stack into `frames`, innermost first, without the `skip` innermost
/// frames (0: start with the caller of this function). Addresses are return addresses minus one, as
/// [`crate::model::Frame`] requires for callers.
#[inline(never)]
pub fn unwind_here(skip: usize, frames: &mut [u64]) -> Result<StackWalk, UnwindError> {
    let registers = current_registers();
    let stack = checked_own_stack(registers.sp)?;
    let room = registers.sp - stack.start;
    walk_own_stack(registers, &(registers.sp..stack.end), room, WalkEnd::NoUnwindInfo, skip, frames)
}

/// Walks like [`unwind_here`], but ends at the function whose frame contains the address `local`,
/// which becomes the last frame. The cost is that of the frames in between only.
#[inline(never)]
pub fn unwind_up_to(local: u64, skip: usize, frames: &mut [u64]) -> Result<StackWalk, UnwindError> {
    let registers = current_registers();
    let stack = checked_own_stack(registers.sp)?;
    if !stack.contains(&local) || registers.sp > local {
        return Err(UnwindError::ForeignStack);
    }
    let room = registers.sp - stack.start;
    // A return address lies above the frame's locals, so the function's own one is out of reach.
    walk_own_stack(registers, &(registers.sp..local), room, WalkEnd::Complete, skip, frames)
}

/// Returns the bounds of the thread's stack if `sp` is within it, at least [`MIN_FREE_STACK`] above
/// its end.
fn checked_own_stack(sp: u64) -> Result<Range<u64>, UnwindError> {
    let stack = current_stack_bounds()
        .filter(|stack| stack.contains(&sp))
        .ok_or(UnwindError::ForeignStack)?;
    if sp - stack.start < MIN_FREE_STACK { Err(UnwindError::NearStackEnd) } else { Ok(stack) }
}

/// Walks through `stack`, with `free_stack` bytes below it. `past_end` is the result if the walk
/// leaves it.
fn walk_own_stack(
    registers: Registers,
    stack: &Range<u64>,
    free_stack: u64,
    past_end: WalkEnd,
    skip: usize,
    frames: &mut [u64],
) -> Result<StackWalk, UnwindError> {
    let mut claim = shared_modules::claim(free_stack >= MIN_FREE_STACK_TO_BUILD)?;
    // A panic must not propagate out of an allocator. No panic is known, and correctness does not
    // depend on this line: builds may use `panic = "abort"`.
    catch_unwind(AssertUnwindSafe(|| {
        walk_with_claim(&mut claim, registers, stack, past_end, skip, frames)
    }))
    .unwrap_or(Err(UnwindError::Busy))
}

fn walk_with_claim(
    claim: &mut TableClaim,
    registers: Registers,
    stack: &Range<u64>,
    past_end: WalkEnd,
    skip: usize,
    frames: &mut [u64],
) -> Result<StackWalk, UnwindError> {
    let (modules, cache) = shared_modules::tables_of(claim)?;
    let is_past_end = Cell::new(false);
    let mut read_stack = |address| {
        is_past_end.set(is_past_end.get() | (address >= stack.end));
        // SAFETY: `stack` starts at the stack pointer of a frame of this thread that outlives the
        // walk, and ends at the end of the thread's stack or below.
        unsafe { read_word(stack, address) }
    };
    let mut kept = FrameBuffer::new(frames, &mut []);
    // The first frame is the one whose registers were read.
    let mut to_skip = skip + 1;
    let take = |frame, pointer| match to_skip {
        0 => kept.push(frame, pointer),
        _ => {
            to_skip -= 1;
            true
        }
    };
    let walk = walk::walk_frames(modules, cache, registers, &mut read_stack, take);
    let mut end = match walk.end {
        None if is_past_end.get() => past_end,
        None => WalkEnd::NoUnwindInfo,
        Some(end) => end,
    };
    let mut is_joined = false;
    OUTERMOST.with(|outermost| match end {
        WalkEnd::Complete if past_end != WalkEnd::Complete => outermost.set(kept.outermost()),
        WalkEnd::TooManyFrames if past_end != WalkEnd::Complete => {
            let known = outermost.get();
            is_joined =
                kept.append_outermost(&known, walk.outermost_sp, &mut read_stack, |replaced| {
                    infer::is_valid_frame(modules, cache, replaced)
                });
            end = if is_joined { WalkEnd::Complete } else { end };
        }
        _ => {}
    });
    let (depth, omitted) = kept.finish(end);
    Ok(StackWalk { depth, omitted, end, is_joined, used_heuristics: walk.used_heuristics })
}

thread_local! {
    /// Outermost frames of this thread's last complete walk.
    static OUTERMOST: Cell<OutermostFrames<MAX_OUTERMOST_OWN>> = const { Cell::new(OutermostFrames::EMPTY) };
}

#[cfg(test)]
pub(super) mod tests;
