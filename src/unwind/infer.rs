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
use crate::unwind::function_search::{CODE_BYTES, find_function, is_near, read_code};
use crate::unwind::kept::ReplacedReturnAddress;
use crate::unwind::modules::LoadedModules;
use crate::unwind::rule::{CfaOffsetRow, StopReason, UnwindRule, apply_row, checked_caller};
use crate::unwind::tables::RuleCache;

/// Stack words examined for a return address.
const MAX_SCANNED_WORDS: u64 = 64;

/// Kind of the call instruction in front of a return address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum CallSite {
    /// Direct call of the function at this address.
    Direct(u64),
    /// Call through a pointer.
    Indirect,
}

/// Returns the caller's registers for a frame without a table, if machine code proves them.
pub(crate) fn infer_caller(
    modules: &LoadedModules,
    cache: &mut RuleCache,
    registers: Registers,
    is_interrupted: bool,
    read: &mut impl FnMut(u64) -> Result<u64, ()>,
) -> Result<Registers, StopReason> {
    let by_direct_call = caller_by_direct_call(modules, cache, registers, is_interrupted, read);
    if let Some(outer) = by_direct_call {
        return Ok(outer);
    }
    let Registers { ip, sp, fp, lr } = registers;
    let function = cache.cached_function(ip, || find_function(ip));
    let function =
        function.filter(|function| cache.rule(modules, function.start) == UnwindRule::NoUnwindInfo);
    let mut code = [0; CODE_BYTES];
    if is_interrupted && calls::starts_with_return(read_code(ip, &mut code)) {
        return caller_at_stack_top(modules, cache, registers, 0, read);
    }
    let Some(function) = function else {
        return scan_for_caller(modules, cache, registers, is_interrupted, read);
    };
    if is_interrupted && ip < function.prologue_end {
        let prologue_offset = ip - function.start;
        return match calls::return_address_offset(prologue_offset) {
            Some(offset) => caller_at_stack_top(modules, cache, registers, offset, read),
            None if is_plausible_call(modules, cache, ip, lr) => {
                checked_caller(sp, fp, lr, registers, true)
            }
            None => Err(StopReason::InvalidFrame),
        };
    }
    // If `fp` belongs to a function further out, the current frame and its return address lie
    // between `sp` and `fp`.
    if function.may_have_ended
        && fp > sp
        && (0..MAX_SCANNED_WORDS)
            .map_while(|word| sp.checked_add(word * 8))
            .take_while(|&at| at < fp)
            .any(|at| read(at).is_ok_and(|word| call_site_before(word).is_some()))
    {
        return scan_for_caller(modules, cache, registers, is_interrupted, read);
    }
    if fp < sp || !fp.is_multiple_of(8) {
        return Err(StopReason::InvalidFrame);
    }
    let above = fp.checked_add(8).ok_or(StopReason::InvalidFrame)?;
    let outer = read(fp).map_err(|()| StopReason::UnreadableMemory)?;
    let ra = read(above).map_err(|()| StopReason::UnreadableMemory)?;
    if !is_plausible_call(modules, cache, ip, ra) {
        return Err(StopReason::InvalidFrame);
    }
    checked_caller(fp.wrapping_add(16), outer, ra, registers, is_interrupted)
}

/// Accepts a direct call only, because its target identifies the current function.
fn caller_by_direct_call(
    modules: &LoadedModules,
    cache: &mut RuleCache,
    registers: Registers,
    is_interrupted: bool,
    read: &mut impl FnMut(u64) -> Result<u64, ()>,
) -> Option<Registers> {
    let Registers { ip, sp, fp, lr } = registers;
    let mut called = |ra: u64| {
        let CallSite::Direct(function) = call_site_before(ra)? else { return None };
        let is_current_function =
            is_near(function, ip) && cache.rule(modules, function) == UnwindRule::NoUnwindInfo;
        let mut code = [0; CODE_BYTES];
        let set = || calls::frame_pointer_prologue_len(read_code(function, &mut code));
        is_current_function.then(set).map(|set| set.is_some_and(|length| ip - function >= length))
    };
    if is_interrupted {
        let (ra, above) = match cfg!(target_arch = "aarch64") {
            true => (lr, sp),
            false => (read(sp).ok()?, sp.checked_add(8)?),
        };
        if called(ra) == Some(false) {
            return checked_caller(above, fp, ra, registers, true).ok();
        }
    }
    if fp < sp || !fp.is_multiple_of(8) {
        return None;
    }
    let outer = read(fp).ok()?;
    let ra = read(fp.checked_add(8)?).ok()?;
    if called(ra) != Some(true) {
        return None;
    }
    checked_caller(fp.checked_add(16)?, outer, ra, registers, is_interrupted).ok()
}

/// Returns the caller whose return address is at `sp + offset`, where `offset` is the number of
/// bytes pushed by the function.
fn caller_at_stack_top(
    modules: &LoadedModules,
    cache: &mut RuleCache,
    registers: Registers,
    offset: u64,
    read: &mut impl FnMut(u64) -> Result<u64, ()>,
) -> Result<Registers, StopReason> {
    let at = registers.sp.checked_add(offset).ok_or(StopReason::InvalidFrame)?;
    let ra = read(at).map_err(|()| StopReason::UnreadableMemory)?;
    if !is_plausible_call(modules, cache, registers.ip, ra) {
        return Err(StopReason::InvalidFrame);
    }
    checked_caller(at.wrapping_add(8), registers.fp, ra, registers, true)
}

/// Returns the caller at the nearest word that follows a call.
fn scan_for_caller(
    modules: &LoadedModules,
    cache: &mut RuleCache,
    registers: Registers,
    is_interrupted: bool,
    read: &mut impl FnMut(u64) -> Result<u64, ()>,
) -> Result<Registers, StopReason> {
    if cfg!(not(target_arch = "x86_64")) {
        return Err(StopReason::InvalidFrame);
    }
    for word in 0..MAX_SCANNED_WORDS {
        let at = registers.sp.checked_add(word * 8).ok_or(StopReason::InvalidFrame)?;
        let ra = read(at).map_err(|()| StopReason::UnreadableMemory)?;
        if call_site_before(ra).is_none() {
            continue;
        }
        if !is_plausible_call(modules, cache, registers.ip, ra) {
            return Err(StopReason::InvalidFrame);
        }
        let outer =
            checked_caller(at.wrapping_add(8), registers.fp, ra, registers, is_interrupted)?;
        let UnwindRule::CfaOffset { base_is_fp, cfa_offset, fp_slot, ra_slot } =
            cache.rule(modules, ra.wrapping_sub(1))
        else {
            return Err(StopReason::InvalidFrame);
        };
        let row = CfaOffsetRow { base_is_fp, cfa_offset, fp_slot, ra_slot };
        return match apply_row(row, outer, false, read) {
            Ok(next) if call_site_before(next.ip).is_some() => Ok(outer),
            // The thread's first function, or the end of the copy.
            Err(StopReason::RootFrame | StopReason::UnreadableMemory) => Ok(outer),
            _ => Err(StopReason::InvalidFrame),
        };
    }
    Err(StopReason::InvalidFrame)
}

/// Returns `true` if the code in front of `ra` may have called the function that contains `ip`.
fn is_plausible_call(modules: &LoadedModules, cache: &mut RuleCache, ip: u64, ra: u64) -> bool {
    match call_site_before(ra) {
        Some(CallSite::Direct(function)) => {
            is_near(function, ip) && cache.rule(modules, function) == UnwindRule::NoUnwindInfo
        }
        Some(CallSite::Indirect) => true,
        None => false,
    }
}

/// Returns `true` if the table confirms that the word can be a return address whose frame ends at
/// `outer`.
pub(crate) fn is_valid_frame(
    modules: &LoadedModules,
    cache: &mut RuleCache,
    replaced: &ReplacedReturnAddress,
) -> bool {
    let &ReplacedReturnAddress { return_address, pointer, outer } = replaced;
    let rule = cache.rule(modules, return_address.wrapping_sub(1));
    let reaches_outer = match rule {
        UnwindRule::CfaOffset { base_is_fp: false, cfa_offset: cfa, .. } => {
            pointer.wrapping_add_signed(cfa.into()) == outer
        }
        _ => false,
    };
    reaches_outer && call_site_before(return_address).is_some()
}

/// Returns the call that returns to `ra`.
fn call_site_before(ra: u64) -> Option<CallSite> {
    // The lowest pages are never mapped. This test saves a system call for small integers.
    if ra < 0x1_0000 || ra >> 47 != 0 {
        return None;
    }
    let mut code = [0; calls::MAX_CALL_BYTES as usize];
    let start = ra - calls::MAX_CALL_BYTES;
    if own_memory::read(start, &mut code) < code.len() {
        return None;
    }
    let direct = code.get((calls::MAX_CALL_BYTES - calls::DIRECT_CALL_BYTES) as usize..)?;
    match calls::direct_call_target(direct, ra) {
        Some(function) => Some(CallSite::Direct(function)),
        None => calls::ends_with_indirect_call(&code).then_some(CallSite::Indirect),
    }
}
