//! Working storage of gimli for the rows of an unwind table.

use gimli::{
    EndianSlice, EvaluationStorage, LittleEndian, Piece, Register, RegisterRule,
    UnwindContextStorage, UnwindTableRow, Value,
};

/// Bytes of an unwind table.
pub(crate) type SectionBytes<'a> = EndianSlice<'a, LittleEndian>;

/// Storage for gimli without heap allocation. A row has rules for at most 64 registers, and
/// compilers emit `remember_state` at most three levels deep.
pub(crate) struct RowStorage;

impl UnwindContextStorage<usize> for RowStorage {
    type Rules = [(Register, RegisterRule<usize>); 64];
    type Stack = [UnwindTableRow<usize, Self>; 4];
}

impl<'a> EvaluationStorage<SectionBytes<'a>> for RowStorage {
    type Stack = [Value; 32];
    type ExpressionStack = [(SectionBytes<'a>, SectionBytes<'a>); 1];
    type Result = [Piece<SectionBytes<'a>>; 1];
}
