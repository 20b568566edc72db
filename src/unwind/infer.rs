//! The caller of code without unwind tables: generated code, hand-written assembly.
//!
//! Such code is not walked by the frame pointer alone: where it was built without frame pointers, that
//! register still holds the frame of some function further out, the walk would go on from there, skip all
//! that lies between and look whole. So a return address is believed only as far as code speaks for it:
//!
//! ```text
//! call f   in front of the return address, direct     f must be the function we are in: shortly below us, and
//!                                                     without a table too
//! call *r  in front of it, through a pointer          leads anywhere; a function whose first instructions push and
//!                                                     set the frame pointer must lie shortly below us
//! ```
//!
//! and it is taken from where the function's first instructions put it:
//!
//! ```text
//! past them                              behind the word the frame pointer leads to
//! interrupted among them, or at a `ret`  at the top of the stack
//! there are none                         at the nearest word that follows a call; of calls through pointers only if
//!                                        that code has a table and its own caller follows a call too
//! ```
//!
//! Elsewhere the walk ends. What was passed this way is told: the function we are in is taken for the one
//! that was called because they are near each other, and between a function's return and the next function's frame
//! that need not be so. Code is read as it is at this moment, by `pread`.

use crate::os::copied::Registers;
use crate::os::own_memory;
use crate::unwind::calls;
use crate::unwind::kept::Replaced;
use crate::unwind::modules::Modules;
use crate::unwind::rule::{Rule, Stop, caller, follow};
use crate::unwind::tables::Cache;

/// A function without a table is taken to be no longer.
const LONGEST: u64 = 4 << 10;

/// Instruction bytes read at once.
const PIECE: u64 = 512;

/// Instruction bytes looked at in one place.
const CODE: usize = 16;

/// Words of the stack looked at for a return address.
const SCANNED: u64 = 64;

/// What stands in front of a return address.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Call {
    /// A call of the function at this address.
    Direct(u64),
    /// A call through a pointer.
    Indirect,
}

/// The function we seem to be in.
#[derive(Clone, Copy)]
pub(crate) struct Function {
    /// Its first instruction.
    start: u64,
    /// Where its frame pointer is set.
    is_set: u64,
    /// Whether it may have returned before we get here, so that we may be in the next one.
    may_have_left: bool,
}

/// The registers of the caller of a frame without a table, if the code proves them.
pub(crate) fn infer(
    modules: &Modules,
    cache: &mut Cache,
    registers: Registers,
    is_exact: bool,
    read: &mut impl FnMut(u64) -> Result<u64, ()>,
) -> Result<Registers, Stop> {
    let by_direct_call = by_direct_call(modules, cache, registers, is_exact, read);
    if let Some(outer) = by_direct_call {
        return Ok(outer);
    }
    let Registers { ip, sp, fp, lr } = registers;
    let function = cache.function(ip, || function_around(ip));
    let function =
        function.filter(|function| cache.rule(modules, function.start) == Rule::Uncovered);
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
            None => Err(Stop::Senseless),
        };
    }
    // A frame of some function further out has ours, and its return address, between the stack pointer and itself.
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
        return Err(Stop::Senseless);
    }
    let above = fp.checked_add(8).ok_or(Stop::Senseless)?;
    let (outer, ra) =
        (read(fp).map_err(|()| Stop::Unread)?, read(above).map_err(|()| Stop::Unread)?);
    if !believed(modules, cache, ip, ra) {
        return Err(Stop::Senseless);
    }
    caller(fp.wrapping_add(16), outer, ra, registers, is_exact)
}

/// As far as the call is direct, so that it says which function we are in.
fn by_direct_call(
    modules: &Modules,
    cache: &mut Cache,
    registers: Registers,
    is_exact: bool,
    read: &mut impl FnMut(u64) -> Result<u64, ()>,
) -> Option<Registers> {
    let Registers { ip, sp, fp, lr } = registers;
    let mut called = |ra: u64| {
        let Call::Direct(function) = call_before(ra)? else { return None };
        let is_ours = is_near(function, ip) && cache.rule(modules, function) == Rule::Uncovered;
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

/// The caller whose address is at the top of the stack, above `offset` bytes that the function has pushed.
fn at_top(
    modules: &Modules,
    cache: &mut Cache,
    registers: Registers,
    offset: u64,
    read: &mut impl FnMut(u64) -> Result<u64, ()>,
) -> Result<Registers, Stop> {
    let at = registers.sp.checked_add(offset).ok_or(Stop::Senseless)?;
    let ra = read(at).map_err(|()| Stop::Unread)?;
    if !believed(modules, cache, registers.ip, ra) {
        return Err(Stop::Senseless);
    }
    caller(at.wrapping_add(8), registers.fp, ra, registers, true)
}

/// The caller at the nearest word that follows a call.
fn scan(
    modules: &Modules,
    cache: &mut Cache,
    registers: Registers,
    is_exact: bool,
    read: &mut impl FnMut(u64) -> Result<u64, ()>,
) -> Result<Registers, Stop> {
    if cfg!(not(target_arch = "x86_64")) {
        return Err(Stop::Senseless);
    }
    for word in 0..SCANNED {
        let at = registers.sp.checked_add(word * 8).ok_or(Stop::Senseless)?;
        let ra = read(at).map_err(|()| Stop::Unread)?;
        if call_before(ra).is_none() {
            continue;
        }
        if !believed(modules, cache, registers.ip, ra) {
            return Err(Stop::Senseless);
        }
        let outer = caller(at.wrapping_add(8), registers.fp, ra, registers, is_exact)?;
        let Rule::Row { is_from_fp, cfa, fp, ra } = cache.rule(modules, ra.wrapping_sub(1)) else {
            return Err(Stop::Senseless);
        };
        return match follow((is_from_fp, cfa, fp, ra), outer, false, read) {
            Ok(next) if call_before(next.ip).is_some() => Ok(outer),
            // At the thread's first function, or beyond the copy.
            Err(Stop::First | Stop::Unread) => Ok(outer),
            _ => Err(Stop::Senseless),
        };
    }
    Err(Stop::Senseless)
}

/// Whether the code in front of `ra` may have called the function that `ip` is in.
fn believed(modules: &Modules, cache: &mut Cache, ip: u64, ra: u64) -> bool {
    match call_before(ra) {
        Some(Call::Direct(function)) => {
            is_near(function, ip) && cache.rule(modules, function) == Rule::Uncovered
        }
        Some(Call::Indirect) => true,
        None => false,
    }
}

fn is_near(function: u64, ip: u64) -> bool {
    function <= ip && ip - function < LONGEST
}

/// Whether a word can be a return address into a frame with the frame `outer` beyond it, by the table of its code.
pub(crate) fn is_frame(modules: &Modules, cache: &mut Cache, replaced: &Replaced) -> bool {
    let &Replaced { return_address, pointer, outer } = replaced;
    let rule = cache.rule(modules, return_address.wrapping_sub(1));
    let leads_there = match rule {
        Rule::Row { is_from_fp: false, cfa, .. } => {
            pointer.wrapping_add_signed(cfa.into()) == outer
        }
        _ => false,
    };
    leads_there && call_before(return_address).is_some()
}

/// The call that returns to `ra`.
fn call_before(ra: u64) -> Option<Call> {
    // The lowest pages are never mapped: numbers cost no system call.
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
        Some(function) => Some(Call::Direct(function)),
        None => calls::ends_with_indirect_call(&code).then_some(Call::Indirect),
    }
}

/// The nearest function at or below `ip` that sets the frame pointer.
fn function_around(ip: u64) -> Option<Function> {
    // Pieces overlap by what may stand across their border.
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
            return Some(Function { start, is_set: start + length, may_have_left });
        }
        if from > start {
            return None;
        }
    }
    None
}

/// The code at `address`, as far as it can be read.
fn code_at(address: u64, into: &mut [u8; CODE]) -> &[u8] {
    let length = own_memory::read(address, into);
    into.get(..length).unwrap_or_default()
}
