//! Reader of unwind tables: `.eh_frame`, and `.debug_frame` for addresses that it does not cover.
//!
//! Reading neither locks nor allocates. A row is found through the table's index (`.eh_frame_hdr`,
//! or one built when the file was read) in a microsecond or two. A [`RuleCache`] keeps it by
//! address, as a [`UnwindRule`].
//!
//! Only the registers in [`Registers`] are tracked: a row that needs another one ends the walk.

use gimli::{
    BaseAddresses, CfaRule, DebugFrame, EhFrame, Encoding, Evaluation, EvaluationResult,
    LittleEndian, Register, RegisterRule, UnwindContext, UnwindExpression, UnwindSection,
    UnwindTableRow, Value,
};

use crate::os::stack_snapshot::Registers;
use crate::unwind::function_search::FunctionRange;
use crate::unwind::modules::{LoadedModule, LoadedModules};
use crate::unwind::row_storage::{RowStorage, SectionBytes};
use crate::unwind::rule::{DWARF_REGISTERS, StopReason, UnwindRule, checked_caller};

/// Limit of operations per expression. No real expression is longer; the limit ends a loop in one.
const MAX_OPERATIONS: u32 = 256;

/// Rules by address, with gimli's working storage.
pub(crate) struct RuleCache {
    entries: Box<[Entry]>,
    context: Box<UnwindContext<usize, RowStorage>>,
    /// Results of the latest searches for functions without tables, by address.
    functions: Box<[(u64, Option<FunctionRange>); MAX_CACHED_FUNCTIONS]>,
}

/// Number of entries for functions without tables.
const MAX_CACHED_FUNCTIONS: usize = 64;

#[derive(Clone, Copy)]
struct Entry {
    address: u64,
    /// Generation of the table it was read from; 0 if none.
    generation: u32,
    rule: UnwindRule,
}

impl RuleCache {
    /// Allocates room for `2^bits` rules of 24 bytes.
    pub(crate) fn new(bits: u32) -> Self {
        let empty = Entry { address: 0, generation: 0, rule: UnwindRule::NoUnwindInfo };
        let entries = vec![empty; 1 << bits.clamp(1, 16)].into_boxed_slice();
        let functions = Box::new([(0, None); MAX_CACHED_FUNCTIONS]);
        Self { entries, context: Box::new(UnwindContext::new_in()), functions }
    }

    /// Returns the cached result of `find` for this address, or calls `find`. Code may have been
    /// replaced since, so the result is only a hint.
    pub(crate) fn cached_function(
        &mut self,
        address: u64,
        find: impl FnOnce() -> Option<FunctionRange>,
    ) -> Option<FunctionRange> {
        let hash = (address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize;
        let Some(place) = self.functions.get_mut(hash % MAX_CACHED_FUNCTIONS) else {
            return find();
        };
        if place.0 != address {
            *place = (address, find());
        }
        place.1
    }

    /// Returns the table's rule for the code at `address`.
    #[inline]
    pub(crate) fn rule(&mut self, modules: &LoadedModules, address: u64) -> UnwindRule {
        // Multiplicative (Knuth) hashing: functions are aligned, so the low bits carry little
        // information.
        let hash = (address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize;
        let place = hash & (self.entries.len() - 1);
        let Some(entry) = self.entries.get_mut(place) else { return UnwindRule::NoUnwindInfo };
        if entry.address != address || entry.generation != modules.generation {
            let rule = modules.module_at(address).map_or(UnwindRule::NoUnwindInfo, |module| {
                module
                    .row(
                        &mut self.context,
                        address,
                        |row, _| UnwindRule::from_row(row),
                        |row, _| UnwindRule::from_row(row),
                    )
                    .unwrap_or(UnwindRule::NoUnwindInfo)
            });
            *entry = Entry { address, generation: modules.generation, rule };
        }
        entry.rule
    }

    /// Evaluates a row of expressions. Also returns `true` if the caller was interrupted by a
    /// signal and did not call.
    pub(crate) fn evaluate_row(
        &mut self,
        modules: &LoadedModules,
        address: u64,
        registers: Registers,
        is_interrupted: bool,
        read: &mut impl FnMut(u64) -> Result<u64, ()>,
    ) -> Result<(Registers, bool), StopReason> {
        let module = modules.module_at(address).ok_or(StopReason::InvalidFrame)?;
        // Exactly one of the two closures is called.
        let read = std::cell::RefCell::new(read);
        module
            .row(
                &mut self.context,
                address,
                |row, at| {
                    evaluate_expression_row(row, at, registers, is_interrupted, *read.borrow_mut())
                },
                |row, at| {
                    evaluate_expression_row(row, at, registers, is_interrupted, *read.borrow_mut())
                },
            )
            .unwrap_or(Err(StopReason::InvalidFrame))
    }
}

/// Section and entry that a row belongs to.
pub(crate) struct RowContext<'s, S> {
    section: &'s S,
    encoding: Encoding,
    is_signal_frame: bool,
}

type Row = UnwindTableRow<usize, RowStorage>;

impl LoadedModule {
    /// Finds the row for `address` and passes it to the closure of the section that has it.
    pub(crate) fn row<'a, T>(
        &'a self,
        context: &mut UnwindContext<usize, RowStorage>,
        address: u64,
        eh: impl FnOnce(&Row, &RowContext<'_, EhFrame<SectionBytes<'a>>>) -> T,
        debug: impl FnOnce(&Row, &RowContext<'_, DebugFrame<SectionBytes<'a>>>) -> T,
    ) -> Option<T> {
        let address = address.wrapping_sub(self.bias);
        if let Some((bytes, offset)) = self.eh_entry(address) {
            let mut section = EhFrame::new(bytes, LittleEndian);
            section.set_address_size(8);
            if let Some((row, encoding, is_signal_frame)) =
                find_row(&section, &self.bases, offset.into(), context, address)
            {
                return Some(eh(row, &RowContext { section: &section, encoding, is_signal_frame }));
            }
        }
        let (bytes, offset) = self.debug_entry(address)?;
        let mut section = DebugFrame::new(bytes, LittleEndian);
        section.set_address_size(8);
        let offset = gimli::DebugFrameOffset(offset);
        let (row, encoding, is_signal_frame) =
            find_row(&section, &self.bases, offset, context, address)?;
        Some(debug(row, &RowContext { section: &section, encoding, is_signal_frame }))
    }
}

fn find_row<'c, 'a, S: UnwindSection<SectionBytes<'a>>>(
    section: &S,
    bases: &BaseAddresses,
    offset: S::Offset,
    context: &'c mut UnwindContext<usize, RowStorage>,
    address: u64,
) -> Option<(&'c Row, Encoding, bool)> {
    let fde = section.fde_from_offset(bases, offset, S::cie_from_offset).ok()?;
    if !fde.contains(address) {
        return None;
    }
    let encoding = fde.cie().encoding();
    let is_signal_frame = fde.is_signal_trampoline();
    let row = fde.unwind_info_for_address(section, bases, context, address).ok()?;
    Some((row, encoding, is_signal_frame))
}

fn evaluate_expression_row<'a, S: UnwindSection<SectionBytes<'a>>>(
    row: &Row,
    at: &RowContext<'_, S>,
    registers: Registers,
    is_interrupted: bool,
    read: &mut impl FnMut(u64) -> Result<u64, ()>,
) -> Result<(Registers, bool), StopReason> {
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => register_value(*register, registers)
            .ok_or(StopReason::InvalidFrame)?
            .wrapping_add_signed(*offset),
        CfaRule::Expression(expression) => {
            evaluate_expression(at, expression, None, registers, read)?
        }
    };
    let mut restore = |number: Register, unsaved: Option<u64>| {
        let value = match row.register(number) {
            None | Some(RegisterRule::SameValue) => return unsaved.ok_or(StopReason::InvalidFrame),
            Some(RegisterRule::Offset(offset)) => {
                return read_word(cfa.wrapping_add_signed(offset), read);
            }
            Some(RegisterRule::ValOffset(offset)) => Some(cfa.wrapping_add_signed(offset)),
            Some(RegisterRule::Register(other)) => register_value(other, registers),
            Some(RegisterRule::Expression(expression)) => {
                return read_word(
                    evaluate_expression(at, &expression, Some(cfa), registers, read)?,
                    read,
                );
            }
            Some(RegisterRule::ValExpression(expression)) => {
                Some(evaluate_expression(at, &expression, Some(cfa), registers, read)?)
            }
            Some(_) => None,
        };
        value.ok_or(StopReason::InvalidFrame)
    };
    let [sp, fp, ra] = DWARF_REGISTERS;
    let in_register = (cfg!(target_arch = "aarch64") && is_interrupted).then_some(registers.lr);
    let ra = restore(ra, in_register)?;
    let fp = restore(fp, Some(registers.fp))?;
    let sp = restore(sp, Some(cfa))?;
    // A signal frame may lie on another stack, above the interrupted one.
    let before = if at.is_signal_frame { Registers { sp: 0, ..registers } } else { registers };
    Ok((checked_caller(sp, fp, ra, before, is_interrupted)?, at.is_signal_frame))
}

fn read_word(
    address: u64,
    read: &mut impl FnMut(u64) -> Result<u64, ()>,
) -> Result<u64, StopReason> {
    read(address).map_err(|()| StopReason::UnreadableMemory)
}

fn register_value(register: Register, registers: Registers) -> Option<u64> {
    let [sp, fp, ra] = DWARF_REGISTERS;
    [(sp, registers.sp), (fp, registers.fp), (ra, registers.ip)]
        .into_iter()
        .find_map(|(number, value)| (number == register).then_some(value))
}

fn evaluate_expression<'a, S: UnwindSection<SectionBytes<'a>>>(
    at: &RowContext<'_, S>,
    expression: &UnwindExpression<usize>,
    initial_value: Option<u64>,
    registers: Registers,
    read: &mut impl FnMut(u64) -> Result<u64, ()>,
) -> Result<u64, StopReason> {
    let expression = expression.get(at.section).map_err(|_| StopReason::InvalidFrame)?;
    let mut evaluation =
        Evaluation::<SectionBytes<'a>, RowStorage>::new_in(expression.0, at.encoding);
    evaluation.set_max_iterations(MAX_OPERATIONS);
    if let Some(first) = initial_value {
        evaluation.set_initial_value(first);
    }
    let mut result = evaluation.evaluate();
    loop {
        result = match result.map_err(|_| StopReason::InvalidFrame)? {
            EvaluationResult::Complete => break,
            EvaluationResult::RequiresRegister { register, .. } => {
                let value = register_value(register, registers).ok_or(StopReason::InvalidFrame)?;
                evaluation.resume_with_register(Value::Generic(value))
            }
            EvaluationResult::RequiresMemory { address, size: 8, .. } => {
                evaluation.resume_with_memory(Value::Generic(read_word(address, read)?))
            }
            _ => return Err(StopReason::InvalidFrame),
        };
    }
    let value = evaluation.value_result().ok_or(StopReason::InvalidFrame)?;
    value.to_u64(u64::MAX).map_err(|_| StopReason::InvalidFrame)
}
