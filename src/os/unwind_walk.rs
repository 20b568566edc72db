//! The walk itself, from frame to frame, whatever the stack is read from.
//!
//! By tables as far as there are any. Code without tables is not walked by the frame pointer alone: where
//! it was built without frame pointers too, that register still holds the frame of some function further
//! out, the walk would go on from there, skip all that lies between and look whole. So a return address is
//! believed there only when the code says so itself: it must follow a *direct call to the function that
//! we are in*, that is, to a place shortly below us which has no table either; and it is taken from where
//! that function's first instructions put it:
//!
//! ```text
//! it pushes the frame pointer and sets it     behind the word the frame pointer leads to
//! it does not, and was interrupted            at the top of the stack: a leaf
//! ```
//!
//! Elsewhere the walk ends, [`End::Broken`]. What was passed this way is told, [`Walked::is_inferred`]: the
//! function we are in is taken for the one that was called because they are near each other.
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

use super::copied::Registers;
use super::unwind::End;
use super::unwind_modules::Modules;
use super::unwind_rule::{Rule, Stop, caller, follow};
use super::unwind_tables::Cache;

/// A function without a table is taken to be no longer.
const LONGEST: u64 = 4 << 10;

/// What a walk came to.
pub(super) struct Walked {
    /// How it ended; none where the stack could not be read further.
    pub(super) end: Option<End>,
    /// Whether it passed code without tables.
    pub(super) is_inferred: bool,
    /// The stack pointer of the code that the last signal on the way had interrupted.
    pub(super) interrupted: Option<u64>,
}

/// Walks from `registers`, handing each frame and its stack pointer to `take` until that wants no more: the
/// instruction itself, then return addresses less one.
pub(super) fn walk(
    modules: &Modules,
    cache: &mut Cache,
    mut registers: Registers,
    read: &mut impl FnMut(u64) -> Result<u64, ()>,
    mut take: impl FnMut(u64, u64) -> bool,
) -> Walked {
    let (mut is_exact, mut is_inferred, mut interrupted) = (true, false, None);
    let end = loop {
        let address = registers.ip.wrapping_sub(u64::from(!is_exact));
        if !take(address, registers.sp) {
            break Some(End::Truncated);
        }
        let next = match cache.rule(modules, address) {
            Rule::Row { is_from_fp, cfa, fp, ra } => {
                follow((is_from_fp, cfa, fp, ra), registers, is_exact, read).map(|to| (to, false))
            }
            Rule::Computed => cache.compute(modules, address, registers, is_exact, read),
            Rule::First => Err(Stop::First),
            Rule::Uncovered if modules.is_outermost(registers.ip) => Err(Stop::First),
            Rule::Uncovered => {
                // What cannot be read proves nothing, and is no copy that is too short.
                let outer = infer(modules, cache, registers, is_exact, read);
                is_inferred |= outer.is_some();
                outer.map(|outer| (outer, false)).ok_or(Stop::Senseless)
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
    Walked { end, is_inferred, interrupted }
}

/// The caller of a frame without a table, if the code proves it.
fn infer(
    modules: &Modules,
    cache: &mut Cache,
    registers: Registers,
    is_exact: bool,
    read: &mut impl FnMut(u64) -> Result<u64, ()>,
) -> Option<Registers> {
    let Registers { ip, sp, fp, lr } = registers;
    let mut called = |ra: u64| {
        let function = modules.called_before(ra)?;
        let is_ours = function <= ip
            && ip - function < LONGEST
            && cache.rule(modules, function) == Rule::Uncovered;
        is_ours.then(|| modules.sets_frame_pointer(function).is_some_and(|after| after <= ip))
    };
    if is_exact {
        let (ra, above) = match cfg!(target_arch = "aarch64") {
            true => (lr, sp),
            false => (read(sp).ok()?, sp.checked_add(8)?),
        };
        if called(ra) == Some(false) {
            return caller(above, fp, ra, registers, true).ok();
        }
    }
    if fp < sp || !fp.is_multiple_of(8) {
        return None;
    }
    let (outer, ra) = (read(fp).ok()?, read(fp.checked_add(8)?).ok()?);
    if called(ra) != Some(true) {
        return None;
    }
    caller(fp.checked_add(16)?, outer, ra, registers, is_exact).ok()
}

#[cfg(all(test, target_os = "linux", target_arch = "x86_64"))]
#[path = "unwind_walk_tests.rs"]
mod tests;
