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
//! arithmetic of [`follow`] would be saved: at most 18 instructions, an eighth. (Callgrind, release
//! builds, each allocation sampled, between depths of 10 and 50; cycles are the best of 40 runs.)

use crate::os::stack_snapshot::Registers;
use crate::unwind::WalkEnd;
use crate::unwind::infer::infer;
use crate::unwind::modules::LoadedModules;
use crate::unwind::rule::{StopReason, UnwindRule, follow};
use crate::unwind::tables::RuleCache;

/// Maximum frames without tables per walk: each takes some system calls.
const MAX_INFERRED: u32 = 256;

/// Result of a walk, without its frames.
pub(crate) struct WalkState {
    /// Reason for the end, or `None` if the stack could not be read further. [`WalkEnd::TooDeep`]
    /// if `take` returned `false`.
    pub(crate) end: Option<WalkEnd>,
    /// `true` if the walk passed code without tables.
    pub(crate) is_inferred: bool,
    /// Stack pointer of the code interrupted by the outermost signal frame passed.
    pub(crate) interrupted: Option<u64>,
    /// Stack pointer of the outermost frame.
    pub(crate) reached: u64,
}

/// Walks from `registers` and passes each frame and its stack pointer to `take`, until that returns
/// `false`. Frames are the current instruction, then return addresses minus one.
pub(crate) fn walk(
    modules: &LoadedModules,
    cache: &mut RuleCache,
    mut registers: Registers,
    read: &mut impl FnMut(u64) -> Result<u64, ()>,
    mut take: impl FnMut(u64, u64) -> bool,
) -> WalkState {
    let (mut is_exact, mut inferred, mut interrupted) = (true, 0, None);
    let end = loop {
        let address = registers.ip.wrapping_sub(u64::from(!is_exact));
        if !take(address, registers.sp) {
            break Some(WalkEnd::TooDeep);
        }
        let next = match cache.rule(modules, address) {
            UnwindRule::Row { is_from_fp, cfa, fp, ra } => {
                follow((is_from_fp, cfa, fp, ra), registers, is_exact, read).map(|to| (to, false))
            }
            UnwindRule::Computed => cache.compute(modules, address, registers, is_exact, read),
            UnwindRule::First => Err(StopReason::First),
            UnwindRule::Uncovered if modules.is_outermost(registers.ip) => Err(StopReason::First),
            UnwindRule::Uncovered if inferred >= MAX_INFERRED => Err(StopReason::Senseless),
            UnwindRule::Uncovered => {
                let outer = infer(modules, cache, registers, is_exact, read);
                inferred += u32::from(outer.is_ok());
                outer.map(|outer| (outer, false))
            }
        };
        (registers, is_exact) = match next {
            Ok((outer, after_signal)) => {
                if after_signal {
                    interrupted = Some(outer.sp);
                }
                (outer, after_signal)
            }
            Err(StopReason::First) => break Some(WalkEnd::Whole),
            Err(StopReason::Unread) => break None,
            Err(StopReason::Senseless) => break Some(WalkEnd::Broken),
        };
    };
    WalkState { end, is_inferred: inferred > 0, interrupted, reached: registers.sp }
}

#[cfg(all(test, target_os = "linux", target_arch = "x86_64"))]
#[path = "walk_tests.rs"]
mod tests;
