//! How to get from a frame to its caller: a row of an unwind table as a small value.
//!
//! Nearly every row says: the caller's stack pointer is so far from `sp` or the frame pointer, the
//! return address and the caller's frame pointer lie so far below that. Such a row is a [`Rule::Row`], which
//! costs two reads to follow and can be kept. The others are expressions and are evaluated where they
//! stand ([`crate::unwind::tables`]).

use gimli::{CfaRule, Register, RegisterRule, UnwindTableRow};

use crate::os::copied::Registers;
use crate::unwind::tables::Storage;

/// The numbers of the stack pointer, the frame pointer and the return address in the tables.
#[cfg(target_arch = "x86_64")]
pub(crate) const NUMBERS: [Register; 3] = [Register(7), Register(6), Register(16)];
#[cfg(target_arch = "aarch64")]
pub(crate) const NUMBERS: [Register; 3] = [Register(31), Register(29), Register(30)];

/// What a table says about an address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Rule {
    /// There is no table for it.
    Uncovered,
    /// Nobody called this: the thread's first function.
    First,
    /// The caller's stack pointer is `cfa` bytes above the base; its frame pointer and the return address
    /// are so many *words* from there, 0: still in their registers.
    Row { is_from_fp: bool, cfa: i32, fp: i16, ra: i16 },
    /// An expression.
    Computed,
}

/// Why there is no caller to be told of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Stop {
    /// This was the thread's first function.
    First,
    /// What has to be read is not there.
    Unread,
    /// The table, or what it led to, makes no sense.
    Senseless,
}

impl Rule {
    pub(crate) fn of(row: &UnwindTableRow<usize, Storage>) -> Self {
        let [sp, fp, ra] = NUMBERS;
        if row.register(ra) == Some(RegisterRule::Undefined) {
            return Self::First;
        }
        let CfaRule::RegisterAndOffset { register, offset } = row.cfa() else {
            return Self::Computed;
        };
        let cfa = i32::try_from(*offset).ok().filter(|_| [sp, fp].contains(register));
        let words = |saved| match saved {
            None | Some(RegisterRule::SameValue) => Some(0),
            Some(RegisterRule::Offset(offset)) if offset % 8 == 0 && offset != 0 => {
                i16::try_from(offset / 8).ok()
            }
            _ => None,
        };
        // Code that says that the frame pointer is lost uses it no more.
        let saved = row.register(fp).filter(|rule| *rule != RegisterRule::Undefined);
        match (cfa, words(saved), words(row.register(ra))) {
            (Some(cfa), Some(saved), Some(ra)) => {
                Self::Row { is_from_fp: *register == fp, cfa, fp: saved, ra }
            }
            _ => Self::Computed,
        }
    }
}

/// Follows a row to the caller's registers. `is_exact`: the frame was interrupted where it is and did not
/// call.
#[inline]
pub(crate) fn follow(
    (is_from_fp, cfa, fp, ra): (bool, i32, i16, i16),
    registers: Registers,
    is_exact: bool,
    read: &mut impl FnMut(u64) -> Result<u64, ()>,
) -> Result<Registers, Stop> {
    let base = if is_from_fp { registers.fp } else { registers.sp };
    let cfa = base.wrapping_add_signed(cfa.into());
    let at = |words: i16| cfa.wrapping_add_signed(i64::from(words) * 8);
    let ra = match ra {
        0 if cfg!(target_arch = "aarch64") && is_exact => registers.lr,
        0 => return Err(Stop::Senseless),
        words => read(at(words)).map_err(|()| Stop::Unread)?,
    };
    let fp = match fp {
        0 => registers.fp,
        words => match read(at(words)) {
            Ok(fp) => fp,
            // In an epilogue the row may still name a place that is popped, which was not copied.
            Err(()) if is_exact && at(words) < registers.sp => registers.fp,
            Err(()) => return Err(Stop::Unread),
        },
    };
    caller(cfa, fp, ra, registers, is_exact)
}

/// The caller's registers, if these can be those of one.
pub(crate) fn caller(
    cfa: u64,
    fp: u64,
    ra: u64,
    registers: Registers,
    is_exact: bool,
) -> Result<Registers, Stop> {
    // User addresses have at most 48 bits; libraries built with pointer authentication keep a
    // signature in the bits above.
    let ra = if cfg!(target_arch = "aarch64") { ra & (u64::MAX >> 16) } else { ra };
    if ra == 0 {
        return Err(Stop::First);
    }
    // A leaf of aarch64 need not use the stack.
    let is_leaf = cfg!(target_arch = "aarch64") && is_exact && cfa == registers.sp;
    if cfa <= registers.sp && !is_leaf {
        return Err(Stop::Senseless);
    }
    Ok(Registers { ip: ra, sp: cfa, fp, lr: ra })
}

#[cfg(test)]
mod tests {
    use super::*;

    const AT: Registers = Registers { ip: 0x40_0000, sp: 0x1000, fp: 0x1040, lr: 0 };

    /// A stack from 0x1000 on, whose words are their own addresses plus one, the last one 0.
    fn read(address: u64) -> Result<u64, ()> {
        match address {
            0x1000..0x1080 if address.is_multiple_of(8) => Ok(address + 1),
            0x1080 => Ok(0),
            _ => Err(()),
        }
    }

    #[test]
    fn rows_lead_to_the_caller_or_say_why_not() {
        let go = |row, exact| follow(row, AT, exact, &mut read);
        let to = |sp, fp, ip| Ok(Registers { ip, sp, fp, lr: ip });
        assert_eq!(go((false, 16, 0, -1), false), to(0x1010, 0x1040, 0x1009));
        assert_eq!(go((false, 32, -2, -1), false), to(0x1020, 0x1011, 0x1019));
        assert_eq!(go((true, 16, -2, -1), false), to(0x1050, 0x1041, 0x1049));
        assert_eq!(go((false, 0x88, 0, -1), false), Err(Stop::First));
        assert_eq!(go((false, 0x90, 0, -1), false), Err(Stop::Unread));
        // To where it is.
        assert_eq!(go((true, -0x40, 0, 1), false), Err(Stop::Senseless));
        assert_eq!(go((false, 0, 0, 1), false), Err(Stop::Senseless));
        // The frame pointer was popped already.
        assert_eq!(go((false, 8, -2, -1), true), to(0x1008, 0x1040, 0x1001));
        assert_eq!(go((false, 8, -2, -1), false), Err(Stop::Unread));
    }
}
