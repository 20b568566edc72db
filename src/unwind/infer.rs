//! Callers of code without unwind tables, such as generated code and hand-written assembly.
//!
//! Such code is not walked by the frame pointer alone. In code built without frame pointers, that
//! register still holds the frame of a function further out. The walk would continue there, skip
//! the frames in between and appear complete. A return address is therefore accepted only if
//! machine code confirms it:
//!
//! ```text
//! call f   direct, in front of the return address    f must be the current function: shortly below
//!                                                    the current address, and without a table too
//! call *r  through a pointer, in front of it         the target is unknown; a function whose first
//!                                                    instructions push and set the frame pointer
//!                                                    must lie shortly below the current address
//! ```
//!
//! The return address is read from the place that the function's first instructions imply:
//!
//! ```text
//! past them                              *(fp + 8)
//! interrupted among them, or at a `ret`  top of the stack
//! there are none                         nearest word that follows a call; for calls through
//!                                        pointers only if that code has a table and its own
//!                                        caller follows a call too
//! ```
//!
//! In all other cases the walk ends. The result is marked as inferred: the current function is
//! equated with the called one because the two are close together. That may be wrong between the
//! return of a function and the frame of the next. Code is read in its current state, by `pread`.

use crate::os::own_memory;
use crate::os::stack_snapshot::Registers;
use crate::unwind::calls;
use crate::unwind::kept::ReplacedFrames;
use crate::unwind::modules::LoadedModules;
use crate::unwind::rule::{StopReason, UnwindRule, caller, follow};
use crate::unwind::tables::RuleCache;

/// Maximum length of a function without a table.
const LONGEST: u64 = 4 << 10;

/// Instruction bytes read at once.
const PIECE: u64 = 512;

/// Instruction bytes examined at one address.
const CODE: usize = 16;

/// Stack words examined for a return address.
const SCANNED: u64 = 64;

/// Kind of the call instruction in front of a return address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CallSite {
    /// Direct call of the function at this address.
    Direct(u64),
    /// Call through a pointer.
    Indirect,
}

/// Function that presumably contains the current address.
#[derive(Clone, Copy)]
pub(crate) struct FunctionRange {
    /// Address of its first instruction.
    start: u64,
    /// Address at which its frame pointer is set.
    is_set: u64,
    /// `true` if it may end before the current address, which may then belong to the next function.
    may_have_left: bool,
}

/// Returns the caller's registers for a frame without a table, if machine code proves them.
pub(crate) fn infer(
    modules: &LoadedModules,
    cache: &mut RuleCache,
    registers: Registers,
    is_exact: bool,
    read: &mut impl FnMut(u64) -> Result<u64, ()>,
) -> Result<Registers, StopReason> {
    let by_direct_call = by_direct_call(modules, cache, registers, is_exact, read);
    if let Some(outer) = by_direct_call {
        return Ok(outer);
    }
    let Registers { ip, sp, fp, lr } = registers;
    let function = cache.function(ip, || function_around(ip));
    let function =
        function.filter(|function| cache.rule(modules, function.start) == UnwindRule::Uncovered);
    let mut code = [0; CODE];
    if is_exact && calls::returns(code_at(ip, &mut code)) {
        return at_top(modules, cache, registers, 0, read);
    }
    let Some(function) = function else {
        return scan(modules, cache, registers, is_exact, read);
    };
    if is_exact && ip < function.is_set {
        let done = ip - function.start;
        return match calls::pushed_after(done) {
            Some(offset) => at_top(modules, cache, registers, offset, read),
            None if believed(modules, cache, ip, lr) => caller(sp, fp, lr, registers, true),
            None => Err(StopReason::Senseless),
        };
    }
    // If `fp` belongs to a function further out, the current frame and its return address lie
    // between `sp` and `fp`.
    if function.may_have_left
        && fp > sp
        && (0..SCANNED)
            .map_while(|word| sp.checked_add(word * 8))
            .take_while(|&at| at < fp)
            .any(|at| read(at).is_ok_and(|word| call_before(word).is_some()))
    {
        return scan(modules, cache, registers, is_exact, read);
    }
    if fp < sp || !fp.is_multiple_of(8) {
        return Err(StopReason::Senseless);
    }
    let above = fp.checked_add(8).ok_or(StopReason::Senseless)?;
    let (outer, ra) =
        (read(fp).map_err(|()| StopReason::Unread)?, read(above).map_err(|()| StopReason::Unread)?);
    if !believed(modules, cache, ip, ra) {
        return Err(StopReason::Senseless);
    }
    caller(fp.wrapping_add(16), outer, ra, registers, is_exact)
}

/// Accepts a direct call only, because its target identifies the current function.
fn by_direct_call(
    modules: &LoadedModules,
    cache: &mut RuleCache,
    registers: Registers,
    is_exact: bool,
    read: &mut impl FnMut(u64) -> Result<u64, ()>,
) -> Option<Registers> {
    let Registers { ip, sp, fp, lr } = registers;
    let mut called = |ra: u64| {
        let CallSite::Direct(function) = call_before(ra)? else { return None };
        let is_ours =
            is_near(function, ip) && cache.rule(modules, function) == UnwindRule::Uncovered;
        let mut code = [0; CODE];
        let set = || calls::sets_frame_pointer(code_at(function, &mut code));
        is_ours.then(set).map(|set| set.is_some_and(|length| ip - function >= length))
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

/// Returns the caller whose return address is at `sp + offset`, where `offset` is the number of
/// bytes pushed by the function.
fn at_top(
    modules: &LoadedModules,
    cache: &mut RuleCache,
    registers: Registers,
    offset: u64,
    read: &mut impl FnMut(u64) -> Result<u64, ()>,
) -> Result<Registers, StopReason> {
    let at = registers.sp.checked_add(offset).ok_or(StopReason::Senseless)?;
    let ra = read(at).map_err(|()| StopReason::Unread)?;
    if !believed(modules, cache, registers.ip, ra) {
        return Err(StopReason::Senseless);
    }
    caller(at.wrapping_add(8), registers.fp, ra, registers, true)
}

/// Returns the caller at the nearest word that follows a call.
fn scan(
    modules: &LoadedModules,
    cache: &mut RuleCache,
    registers: Registers,
    is_exact: bool,
    read: &mut impl FnMut(u64) -> Result<u64, ()>,
) -> Result<Registers, StopReason> {
    if cfg!(not(target_arch = "x86_64")) {
        return Err(StopReason::Senseless);
    }
    for word in 0..SCANNED {
        let at = registers.sp.checked_add(word * 8).ok_or(StopReason::Senseless)?;
        let ra = read(at).map_err(|()| StopReason::Unread)?;
        if call_before(ra).is_none() {
            continue;
        }
        if !believed(modules, cache, registers.ip, ra) {
            return Err(StopReason::Senseless);
        }
        let outer = caller(at.wrapping_add(8), registers.fp, ra, registers, is_exact)?;
        let UnwindRule::Row { is_from_fp, cfa, fp, ra } = cache.rule(modules, ra.wrapping_sub(1))
        else {
            return Err(StopReason::Senseless);
        };
        return match follow((is_from_fp, cfa, fp, ra), outer, false, read) {
            Ok(next) if call_before(next.ip).is_some() => Ok(outer),
            // The thread's first function, or the end of the copy.
            Err(StopReason::First | StopReason::Unread) => Ok(outer),
            _ => Err(StopReason::Senseless),
        };
    }
    Err(StopReason::Senseless)
}

/// Returns `true` if the code in front of `ra` may have called the function that contains `ip`.
fn believed(modules: &LoadedModules, cache: &mut RuleCache, ip: u64, ra: u64) -> bool {
    match call_before(ra) {
        Some(CallSite::Direct(function)) => {
            is_near(function, ip) && cache.rule(modules, function) == UnwindRule::Uncovered
        }
        Some(CallSite::Indirect) => true,
        None => false,
    }
}

fn is_near(function: u64, ip: u64) -> bool {
    function <= ip && ip - function < LONGEST
}

/// Returns `true` if the table confirms that the word can be a return address whose frame ends at
/// `outer`.
pub(crate) fn is_frame(
    modules: &LoadedModules,
    cache: &mut RuleCache,
    replaced: &ReplacedFrames,
) -> bool {
    let &ReplacedFrames { return_address, pointer, outer } = replaced;
    let rule = cache.rule(modules, return_address.wrapping_sub(1));
    let leads_there = match rule {
        UnwindRule::Row { is_from_fp: false, cfa, .. } => {
            pointer.wrapping_add_signed(cfa.into()) == outer
        }
        _ => false,
    };
    leads_there && call_before(return_address).is_some()
}

/// Returns the call that returns to `ra`.
fn call_before(ra: u64) -> Option<CallSite> {
    // The lowest pages are never mapped. This test saves a system call for small integers.
    if ra < 0x1_0000 || ra >> 47 != 0 {
        return None;
    }
    let mut code = [0; calls::BEFORE as usize];
    let start = ra - calls::BEFORE;
    if own_memory::read(start, &mut code) < code.len() {
        return None;
    }
    let direct = code.get((calls::BEFORE - calls::CALL) as usize..)?;
    match calls::target(direct, ra) {
        Some(function) => Some(CallSite::Direct(function)),
        None => calls::ends_with_indirect_call(&code).then_some(CallSite::Indirect),
    }
}

/// Returns the nearest function at or below `ip` that sets the frame pointer.
fn function_around(ip: u64) -> Option<FunctionRange> {
    // Pieces overlap by the length of a pattern that may cross their border.
    const OVERLAP: u64 = 8;
    let mut may_have_left = false;
    for piece in 0..LONGEST / PIECE {
        let end = ip.checked_sub(piece * PIECE)?;
        let start = end.checked_sub(PIECE)?;
        let mut bytes = [0; (PIECE + OVERLAP) as usize];
        // The function may be the first of its mapping.
        let mut from = start;
        while own_memory::read(from, &mut bytes) <= usize::try_from(end - from).ok()? {
            let page = (from | 0xfff) + 1;
            if from >= page || page > end {
                return None;
            }
            from = page;
        }
        let up_to = usize::try_from(end - from).ok()?;
        let is_there = |at: &usize| {
            bytes
                .get(*at..)
                .and_then(|code| calls::sets_frame_pointer(code.get(..CODE.min(code.len()))?))
                .is_some()
        };
        let found = (0..=up_to).rev().find(is_there);
        let passed = bytes.get(found.unwrap_or(0)..up_to).unwrap_or_default();
        may_have_left |= calls::leaves(passed);
        if let Some(at) = found {
            let length = bytes.get(at..).and_then(calls::sets_frame_pointer)?;
            let start = from + at as u64;
            return Some(FunctionRange { start, is_set: start + length, may_have_left });
        }
        if from > start {
            return None;
        }
    }
    None
}

/// Returns the code at `address`, up to the first unreadable byte.
fn code_at(address: u64, into: &mut [u8; CODE]) -> &[u8] {
    let length = own_memory::read(address, into);
    into.get(..length).unwrap_or_default()
}
