//! Search of machine code for the function that contains an address, where no table gives it.
//!
//! Code is read in its current state, by `pread`.

use crate::os::own_memory;
use crate::unwind::calls;

/// Maximum length of a function without a table.
const MAX_FUNCTION_BYTES: u64 = 4 << 10;

/// Instruction bytes read at once.
const CHUNK_BYTES: u64 = 512;

/// Instruction bytes examined at one address.
pub(crate) const CODE_BYTES: usize = 16;

/// Function that presumably contains the current address.
#[derive(Clone, Copy)]
pub(crate) struct FunctionRange {
    /// Address of its first instruction.
    pub(crate) start: u64,
    /// Address at which its frame pointer is set.
    pub(crate) prologue_end: u64,
    /// `true` if it may end before the current address, which may then belong to the next function.
    pub(crate) may_have_ended: bool,
}

/// Returns `true` if the function that begins at `function` may contain `ip`.
pub(crate) fn is_near(function: u64, ip: u64) -> bool {
    function <= ip && ip - function < MAX_FUNCTION_BYTES
}

/// Returns the nearest function at or below `ip` that sets the frame pointer.
pub(crate) fn find_function(ip: u64) -> Option<FunctionRange> {
    // Pieces overlap by the length of a pattern that may cross their border.
    const OVERLAP: u64 = 8;
    let mut may_have_left = false;
    for piece in 0..MAX_FUNCTION_BYTES / CHUNK_BYTES {
        let end = ip.checked_sub(piece * CHUNK_BYTES)?;
        let start = end.checked_sub(CHUNK_BYTES)?;
        let mut bytes = [0; (CHUNK_BYTES + OVERLAP) as usize];
        // The function may be the first of its mapping.
        let mut from = start;
        while own_memory::read(from, &mut bytes) <= usize::try_from(end - from).ok()? {
            let page = (from | 0xfff) + 1;
            if from >= page || page > end {
                return None;
            }
            from = page;
        }
        let limit = usize::try_from(end - from).ok()?;
        let is_there = |at: &usize| {
            bytes
                .get(*at..)
                .and_then(|code| {
                    calls::frame_pointer_prologue_len(code.get(..CODE_BYTES.min(code.len()))?)
                })
                .is_some()
        };
        let found = (0..=limit).rev().find(is_there);
        let passed = bytes.get(found.unwrap_or(0)..limit).unwrap_or_default();
        may_have_left |= calls::contains_epilogue(passed);
        if let Some(at) = found {
            let length = bytes.get(at..).and_then(calls::frame_pointer_prologue_len)?;
            let start = from + at as u64;
            return Some(FunctionRange {
                start,
                prologue_end: start + length,
                may_have_ended: may_have_left,
            });
        }
        if from > start {
            return None;
        }
    }
    None
}

/// Returns the code at `address`, up to the first unreadable byte.
pub(crate) fn read_code(address: u64, buffer: &mut [u8; CODE_BYTES]) -> &[u8] {
    let length = own_memory::read(address, buffer);
    buffer.get(..length).unwrap_or_default()
}
