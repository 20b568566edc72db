//! Frame-to-frame walk, independent of the source of the stack.
//!
//! The walk uses tables where they exist. Elsewhere it continues only while machine code proves a
//! caller (module `infer`).
//!
//! A frame pointer is therefore followed in two cases only. A row may define the frame as 16 bytes
//! above the frame pointer: then a table *proves* the step, and the row is handled like any other.
//! Without a table, calls and prologues *check* the step, and the walk is marked as inferred. In
//! all other cases the walk ends.
//!
//! A fast path for rows based on the frame pointer would save little. In a heap sample a frame
//! takes 145 instructions, or 146 if built with `-C force-frame-pointers=yes`: 46 to find the stack
//! in the table of stacks, 99 to walk. Both builds take some 35 to 40 cycles on x86_64. The row has
//! to be looked up in any case, both words are in memory, and both addresses are checked. Only the
//! arithmetic of [`apply_row`] would be saved: at most 18 instructions, an eighth. (Callgrind,
//! release builds, each allocation sampled, between depths of 10 and 50; cycles are the best of 40
//! runs.)

use crate::os::stack_snapshot::Registers;
use crate::unwind::WalkEnd;
use crate::unwind::infer::infer_caller;
use crate::unwind::modules::LoadedModules;
use crate::unwind::rule::{CfaOffsetRow, StopReason, UnwindRule, apply_row};
use crate::unwind::tables::RuleCache;

/// Maximum frames without tables per walk: each takes some system calls.
const MAX_INFERRED: u32 = 256;

/// Result of a walk, without its frames.
pub(crate) struct WalkState {
    /// Reason for the end, or `None` if the stack could not be read further.
    /// [`WalkEnd::TooManyFrames`] if `take` returned `false`.
    pub(crate) end: Option<WalkEnd>,
    /// `true` if the walk passed code without tables.
    pub(crate) used_heuristics: bool,
    /// Stack pointer of the code interrupted by the outermost signal frame passed.
    pub(crate) interrupted_sp: Option<u64>,
    /// Stack pointer of the outermost frame.
    pub(crate) outermost_sp: u64,
}

/// Walks from `registers` and passes each frame and its stack pointer to `take`, until that returns
/// `false`. Frames are the current instruction, then return addresses minus one.
pub(crate) fn walk_frames(
    modules: &LoadedModules,
    cache: &mut RuleCache,
    mut registers: Registers,
    read: &mut impl FnMut(u64) -> Result<u64, ()>,
    mut take: impl FnMut(u64, u64) -> bool,
) -> WalkState {
    let mut is_interrupted = true;
    let mut inferred_frames = 0;
    let mut interrupted = None;
    let end = loop {
        let address = registers.ip.wrapping_sub(u64::from(!is_interrupted));
        if !take(address, registers.sp) {
            break Some(WalkEnd::TooManyFrames);
        }
        let next = match cache.rule(modules, address) {
            UnwindRule::CfaOffset { base_is_fp, cfa_offset, fp_slot, ra_slot } => {
                let row = CfaOffsetRow { base_is_fp, cfa_offset, fp_slot, ra_slot };
                apply_row(row, registers, is_interrupted, read).map(|to| (to, false))
            }
            UnwindRule::Expression => {
                cache.evaluate_row(modules, address, registers, is_interrupted, read)
            }
            UnwindRule::RootFrame => Err(StopReason::RootFrame),
            UnwindRule::NoUnwindInfo if modules.is_outermost(registers.ip) => {
                Err(StopReason::RootFrame)
            }
            UnwindRule::NoUnwindInfo if inferred_frames >= MAX_INFERRED => {
                Err(StopReason::InvalidFrame)
            }
            UnwindRule::NoUnwindInfo => {
                let outer = infer_caller(modules, cache, registers, is_interrupted, read);
                inferred_frames += u32::from(outer.is_ok());
                outer.map(|outer| (outer, false))
            }
        };
        (registers, is_interrupted) = match next {
            Ok((outer, after_signal)) => {
                if after_signal {
                    interrupted = Some(outer.sp);
                }
                (outer, after_signal)
            }
            Err(StopReason::RootFrame) => break Some(WalkEnd::Complete),
            Err(StopReason::UnreadableMemory) => break None,
            Err(StopReason::InvalidFrame) => break Some(WalkEnd::NoUnwindInfo),
        };
    };
    WalkState {
        end,
        used_heuristics: inferred_frames > 0,
        interrupted_sp: interrupted,
        outermost_sp: registers.sp,
    }
}

#[cfg(all(test, target_os = "linux", target_arch = "x86_64"))]
#[path = "walk_tests.rs"]
mod tests;
