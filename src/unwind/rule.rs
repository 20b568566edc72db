//! Step from a frame to its caller: a row of an unwind table as a small value.
//!
//! Nearly every row has this form, which costs two reads and can be cached as
//! [`UnwindRule::CfaOffset`]:
//!
//! ```text
//! cfa = (sp or fp) + offset; ra = *(cfa + 8 * ra_words); fp = *(cfa + 8 * fp_words)
//! ```
//!
//! Other rows are expressions. [`crate::unwind::tables`] evaluates them in place.

use gimli::{CfaRule, Register, RegisterRule, UnwindTableRow};

use crate::os::stack_snapshot::Registers;
use crate::unwind::row_storage::RowStorage;

/// DWARF numbers of the stack pointer, the frame pointer and the return address.
#[cfg(target_arch = "x86_64")]
pub(crate) const DWARF_REGISTERS: [Register; 3] = [Register(7), Register(6), Register(16)];
#[cfg(target_arch = "aarch64")]
pub(crate) const DWARF_REGISTERS: [Register; 3] = [Register(31), Register(29), Register(30)];

/// Content of a table for an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum UnwindRule {
    /// No table covers the address.
    NoUnwindInfo,
    /// The thread's first function, which has no caller.
    RootFrame,
    /// `sp' = base + cfa`, `fp' = *(sp' + 8 * fp)`, `ra = *(sp' + 8 * ra)`. An offset of 0 means
    /// that the value is still in its register.
    CfaOffset { base_is_fp: bool, cfa_offset: i32, fp_slot: i16, ra_slot: i16 },
    /// The row is an expression.
    Expression,
}

/// A row of the form [`UnwindRule::CfaOffset`].
#[derive(Clone, Copy, Debug)]
pub(crate) struct CfaOffsetRow {
    pub(crate) base_is_fp: bool,
    pub(crate) cfa_offset: i32,
    pub(crate) fp_slot: i16,
    pub(crate) ra_slot: i16,
}

/// Reason why no caller was found.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum StopReason {
    /// The frame is that of the thread's first function.
    RootFrame,
    /// A required word of the stack cannot be read.
    UnreadableMemory,
    /// The table, or a value computed from it, is invalid.
    InvalidFrame,
}

impl UnwindRule {
    pub(crate) fn from_row(row: &UnwindTableRow<usize, RowStorage>) -> Self {
        let [sp, fp, ra] = DWARF_REGISTERS;
        if row.register(ra) == Some(RegisterRule::Undefined) {
            return Self::RootFrame;
        }
        let CfaRule::RegisterAndOffset { register, offset } = row.cfa() else {
            return Self::Expression;
        };
        let cfa = i32::try_from(*offset).ok().filter(|_| [sp, fp].contains(register));
        let slot = |saved| match saved {
            None | Some(RegisterRule::SameValue) => Some(0),
            Some(RegisterRule::Offset(offset)) if offset % 8 == 0 && offset != 0 => {
                i16::try_from(offset / 8).ok()
            }
            _ => None,
        };
        // An undefined frame pointer is not used by the callers, so it is treated as unchanged.
        let saved = row.register(fp).filter(|rule| *rule != RegisterRule::Undefined);
        match (cfa, slot(saved), slot(row.register(ra))) {
            (Some(cfa), Some(saved), Some(ra)) => Self::CfaOffset {
                base_is_fp: *register == fp,
                cfa_offset: cfa,
                fp_slot: saved,
                ra_slot: ra,
            },
            _ => Self::Expression,
        }
    }
}

/// Applies a row to `registers` and returns those of the caller. `is_interrupted` is `true` if the
/// frame was interrupted at its address and did not call.
#[inline]
pub(crate) fn apply_row(
    row: CfaOffsetRow,
    registers: Registers,
    is_interrupted: bool,
    read: &mut impl FnMut(u64) -> Result<u64, ()>,
) -> Result<Registers, StopReason> {
    let base = if row.base_is_fp { registers.fp } else { registers.sp };
    let cfa = base.wrapping_add_signed(row.cfa_offset.into());
    let slot_address = |words: i16| cfa.wrapping_add_signed(i64::from(words) * 8);
    let ra = match row.ra_slot {
        0 if cfg!(target_arch = "aarch64") && is_interrupted => registers.lr,
        0 => return Err(StopReason::InvalidFrame),
        words => read(slot_address(words)).map_err(|()| StopReason::UnreadableMemory)?,
    };
    let fp = match row.fp_slot {
        0 => registers.fp,
        words => match read(slot_address(words)) {
            Ok(fp) => fp,
            // In an epilogue the row may still name a popped word, which was not copied.
            Err(()) if is_interrupted && slot_address(words) < registers.sp => registers.fp,
            Err(()) => return Err(StopReason::UnreadableMemory),
        },
    };
    checked_caller(cfa, fp, ra, registers, is_interrupted)
}

/// Returns the caller's registers if the values are plausible.
pub(crate) fn checked_caller(
    cfa: u64,
    fp: u64,
    ra: u64,
    registers: Registers,
    is_interrupted: bool,
) -> Result<Registers, StopReason> {
    // User addresses have at most 48 bits. Libraries built with pointer authentication keep a
    // signature in the bits above.
    let ra = if cfg!(target_arch = "aarch64") { ra & (u64::MAX >> 16) } else { ra };
    if ra == 0 {
        return Err(StopReason::RootFrame);
    }
    // A leaf function on aarch64 may leave the stack unused.
    let is_leaf = cfg!(target_arch = "aarch64") && is_interrupted && cfa == registers.sp;
    if cfa <= registers.sp && !is_leaf {
        return Err(StopReason::InvalidFrame);
    }
    Ok(Registers { ip: ra, sp: cfa, fp, lr: ra })
}

#[cfg(test)]
mod tests {
    use super::*;

    const REGISTERS: Registers = Registers { ip: 0x40_0000, sp: 0x1000, fp: 0x1040, lr: 0 };

    /// A stack from 0x1000, where each word is its own address plus one and the last word is 0.
    fn read(address: u64) -> Result<u64, ()> {
        match address {
            0x1000..0x1080 if address.is_multiple_of(8) => Ok(address + 1),
            0x1080 => Ok(0),
            _ => Err(()),
        }
    }

    const fn row(base_is_fp: bool, cfa_offset: i32, fp_slot: i16, ra_slot: i16) -> CfaOffsetRow {
        CfaOffsetRow { base_is_fp, cfa_offset, fp_slot, ra_slot }
    }

    #[test]
    fn rows_give_the_caller_or_a_stop_reason() {
        let go = |row, exact| apply_row(row, REGISTERS, exact, &mut read);
        let to = |sp, fp, ip| Ok(Registers { ip, sp, fp, lr: ip });
        assert_eq!(go(row(false, 16, 0, -1), false), to(0x1010, 0x1040, 0x1009));
        assert_eq!(go(row(false, 32, -2, -1), false), to(0x1020, 0x1011, 0x1019));
        assert_eq!(go(row(true, 16, -2, -1), false), to(0x1050, 0x1041, 0x1049));
        assert_eq!(go(row(false, 0x88, 0, -1), false), Err(StopReason::RootFrame));
        assert_eq!(go(row(false, 0x90, 0, -1), false), Err(StopReason::UnreadableMemory));
        // The step leads to the same frame.
        assert_eq!(go(row(true, -0x40, 0, 1), false), Err(StopReason::InvalidFrame));
        assert_eq!(go(row(false, 0, 0, 1), false), Err(StopReason::InvalidFrame));
        // The frame pointer has been popped already.
        assert_eq!(go(row(false, 8, -2, -1), true), to(0x1008, 0x1040, 0x1001));
        assert_eq!(go(row(false, 8, -2, -1), false), Err(StopReason::UnreadableMemory));
    }
}
