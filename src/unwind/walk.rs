//! The walk itself, from frame to frame, whatever the stack is read from.
//!
//! By tables as far as there are any, and where there are none as far as the code proves a caller (`unwind_infer`).
//!
//! So a frame pointer is followed in two ways only. Where a row says that the frame lies 16 bytes above the frame
//! pointer, a table *proves* the step, and it is a row like any other. Where there is no table, calls and first
//! instructions *check* it, and it is told as inferred. Where neither holds it is not made.
//!
//! A path of its own for the first would gain little. In a heap sample a frame takes 145 instructions, or 146
//! built with `-C force-frame-pointers=yes`, some 35 to 40 cycles of x86_64 either way: 46 instructions to find the
//! stack in the table of stacks, 99 to walk. What is known of a function is known by its row, so the row has to be
//! looked up all the same, both words lie in memory, and both addresses are checked; what is left to save is the
//! arithmetic of [`follow`], 18 instructions at the most, an eighth. (Callgrind, release builds, each allocation
//! sampled, between depths of 10 and 50; cycles are the best of 40 runs.)

use crate::os::copied::Registers;
use crate::unwind::End;
use crate::unwind::infer::infer;
use crate::unwind::modules::Modules;
use crate::unwind::rule::{Rule, Stop, follow};
use crate::unwind::tables::Cache;

/// Frames without tables that one walk passes: each takes some system calls.
const MAX_INFERRED: u32 = 256;

/// What a walk came to.
pub(crate) struct Walked {
    /// How it ended; none where the stack could not be read further. [`End::TooDeep`] where no more was wanted.
    pub(crate) end: Option<End>,
    /// Whether it passed code without tables.
    pub(crate) is_inferred: bool,
    /// The stack pointer of the code that the last signal on the way had interrupted.
    pub(crate) interrupted: Option<u64>,
    /// The stack pointer of the outermost frame.
    pub(crate) reached: u64,
}

/// Walks from `registers`, handing each frame and its stack pointer to `take` until that wants no more: the
/// instruction itself, then return addresses less one.
pub(crate) fn walk(
    modules: &Modules,
    cache: &mut Cache,
    mut registers: Registers,
    read: &mut impl FnMut(u64) -> Result<u64, ()>,
    mut take: impl FnMut(u64, u64) -> bool,
) -> Walked {
    let (mut is_exact, mut inferred, mut interrupted) = (true, 0, None);
    let end = loop {
        let address = registers.ip.wrapping_sub(u64::from(!is_exact));
        if !take(address, registers.sp) {
            break Some(End::TooDeep);
        }
        let next = match cache.rule(modules, address) {
            Rule::Row { is_from_fp, cfa, fp, ra } => {
                follow((is_from_fp, cfa, fp, ra), registers, is_exact, read).map(|to| (to, false))
            }
            Rule::Computed => cache.compute(modules, address, registers, is_exact, read),
            Rule::First => Err(Stop::First),
            Rule::Uncovered if modules.is_outermost(registers.ip) => Err(Stop::First),
            Rule::Uncovered if inferred >= MAX_INFERRED => Err(Stop::Senseless),
            Rule::Uncovered => {
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
            Err(Stop::First) => break Some(End::Whole),
            Err(Stop::Unread) => break None,
            Err(Stop::Senseless) => break Some(End::Broken),
        };
    };
    Walked { end, is_inferred: inferred > 0, interrupted, reached: registers.sp }
}

#[cfg(all(test, target_os = "linux", target_arch = "x86_64"))]
#[path = "walk_tests.rs"]
mod tests;
