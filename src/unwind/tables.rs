//! Reading unwind tables: `.eh_frame`, and `.debug_frame` where that has nothing.
//!
//! Neither locks nor allocates. A row is found through the table's index (`.eh_frame_hdr`, or one that was
//! made when the file was read) in a microsecond or two, and kept in a [`Cache`] as a [`Rule`], by address.
//!
//! Registers other than those of [`Registers`] are not known: a row that needs one is no way on.

use gimli::{
    BaseAddresses, CfaRule, DebugFrame, EhFrame, Encoding, EndianSlice, Evaluation,
    EvaluationResult, EvaluationStorage, LittleEndian, Piece, Register, RegisterRule,
    UnwindContext, UnwindContextStorage, UnwindExpression, UnwindSection, UnwindTableRow, Value,
};

use crate::os::copied::Registers;
use crate::unwind::infer::Function;
use crate::unwind::modules::{Module, Modules};
use crate::unwind::rule::{NUMBERS, Rule, Stop, caller};

pub(crate) type Bytes<'a> = EndianSlice<'a, LittleEndian>;

/// Room for what gimli needs, without the heap: a row has at most the rules of 64 registers, and rows are
/// remembered at most three deep by what compilers emit.
pub(crate) struct Storage;

impl UnwindContextStorage<usize> for Storage {
    type Rules = [(Register, RegisterRule<usize>); 64];
    type Stack = [UnwindTableRow<usize, Self>; 4];
}

impl<'a> EvaluationStorage<Bytes<'a>> for Storage {
    type Stack = [Value; 32];
    type ExpressionStack = [(Bytes<'a>, Bytes<'a>); 1];
    type Result = [Piece<Bytes<'a>>; 1];
}

/// No expression of a table is longer; a loop in one ends.
const MAX_OPERATIONS: u32 = 256;

/// Rules by address, and room to work in.
pub(crate) struct Cache {
    entries: Box<[Entry]>,
    context: Box<UnwindContext<usize, Storage>>,
    /// What functions without tables were found around addresses: those that were asked for last.
    functions: Box<[(u64, Option<Function>); FUNCTIONS]>,
}

/// The places for functions without tables.
const FUNCTIONS: usize = 64;

#[derive(Clone, Copy)]
struct Entry {
    address: u64,
    /// That of the table it was read from; 0: of none.
    generation: u32,
    rule: Rule,
}

impl Cache {
    /// Holds 2 to the `bits` rules of 24 bytes.
    pub(crate) fn new(bits: u32) -> Self {
        let none = Entry { address: 0, generation: 0, rule: Rule::Uncovered };
        let entries = vec![none; 1 << bits.clamp(1, 16)].into_boxed_slice();
        let functions = Box::new([(0, None); FUNCTIONS]);
        Self { entries, context: Box::new(UnwindContext::new_in()), functions }
    }

    /// What `find` finds for this address, or what it found before: code may have been replaced since, so it only
    /// tells where to look.
    pub(crate) fn function(
        &mut self,
        address: u64,
        find: impl FnOnce() -> Option<Function>,
    ) -> Option<Function> {
        let hash = (address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize;
        let Some(place) = self.functions.get_mut(hash % FUNCTIONS) else { return find() };
        if place.0 != address {
            *place = (address, find());
        }
        place.1
    }

    /// What the table says about the code at `address`.
    #[inline]
    pub(crate) fn rule(&mut self, modules: &Modules, address: u64) -> Rule {
        // Knuth's multiplier: functions are aligned, so the lower bits are much alike.
        let hash = (address.wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 40) as usize;
        let place = hash & (self.entries.len() - 1);
        let Some(entry) = self.entries.get_mut(place) else { return Rule::Uncovered };
        if entry.address != address || entry.generation != modules.generation {
            let rule = modules.at(address).map_or(Rule::Uncovered, |module| {
                module
                    .row(&mut self.context, address, |row, _| Rule::of(row), |row, _| Rule::of(row))
                    .unwrap_or(Rule::Uncovered)
            });
            *entry = Entry { address, generation: modules.generation, rule };
        }
        entry.rule
    }

    /// Follows a row of expressions; says whether the caller was interrupted rather than calling.
    pub(crate) fn compute(
        &mut self,
        modules: &Modules,
        address: u64,
        registers: Registers,
        is_exact: bool,
        read: &mut impl FnMut(u64) -> Result<u64, ()>,
    ) -> Result<(Registers, bool), Stop> {
        let module = modules.at(address).ok_or(Stop::Senseless)?;
        // One of the two is called.
        let read = std::cell::RefCell::new(read);
        module
            .row(
                &mut self.context,
                address,
                |row, at| compute(row, at, registers, is_exact, *read.borrow_mut()),
                |row, at| compute(row, at, registers, is_exact, *read.borrow_mut()),
            )
            .unwrap_or(Err(Stop::Senseless))
    }
}

/// Where a row stands.
pub(crate) struct At<'s, S> {
    section: &'s S,
    encoding: Encoding,
    is_signal_frame: bool,
}

type Row = UnwindTableRow<usize, Storage>;

impl Module {
    /// The row for `address`, handed to the one closure or the other, by the section it is in.
    pub(crate) fn row<'a, T>(
        &'a self,
        context: &mut UnwindContext<usize, Storage>,
        address: u64,
        eh: impl FnOnce(&Row, &At<'_, EhFrame<Bytes<'a>>>) -> T,
        debug: impl FnOnce(&Row, &At<'_, DebugFrame<Bytes<'a>>>) -> T,
    ) -> Option<T> {
        let address = address.wrapping_sub(self.bias);
        if let Some((bytes, offset)) = self.eh_entry(address) {
            let mut section = EhFrame::new(bytes, LittleEndian);
            section.set_address_size(8);
            if let Some((row, encoding, is_signal_frame)) =
                row_in(&section, &self.bases, offset.into(), context, address)
            {
                return Some(eh(row, &At { section: &section, encoding, is_signal_frame }));
            }
        }
        let (bytes, offset) = self.debug_entry(address)?;
        let mut section = DebugFrame::new(bytes, LittleEndian);
        section.set_address_size(8);
        let offset = gimli::DebugFrameOffset(offset);
        let (row, encoding, is_signal_frame) =
            row_in(&section, &self.bases, offset, context, address)?;
        Some(debug(row, &At { section: &section, encoding, is_signal_frame }))
    }
}

fn row_in<'c, 'a, S: UnwindSection<Bytes<'a>>>(
    section: &S,
    bases: &BaseAddresses,
    offset: S::Offset,
    context: &'c mut UnwindContext<usize, Storage>,
    address: u64,
) -> Option<(&'c Row, Encoding, bool)> {
    let fde = section.fde_from_offset(bases, offset, S::cie_from_offset).ok()?;
    if !fde.contains(address) {
        return None;
    }
    let (encoding, is_signal_frame) = (fde.cie().encoding(), fde.is_signal_trampoline());
    let row = fde.unwind_info_for_address(section, bases, context, address).ok()?;
    Some((row, encoding, is_signal_frame))
}

fn compute<'a, S: UnwindSection<Bytes<'a>>>(
    row: &Row,
    at: &At<'_, S>,
    registers: Registers,
    is_exact: bool,
    read: &mut impl FnMut(u64) -> Result<u64, ()>,
) -> Result<(Registers, bool), Stop> {
    let cfa = match row.cfa() {
        CfaRule::RegisterAndOffset { register, offset } => {
            value_of(*register, registers).ok_or(Stop::Senseless)?.wrapping_add_signed(*offset)
        }
        CfaRule::Expression(expression) => evaluate(at, expression, None, registers, read)?,
    };
    let mut restore = |number: Register, kept: Option<u64>| {
        let value = match row.register(number) {
            None | Some(RegisterRule::SameValue) => return kept.ok_or(Stop::Senseless),
            Some(RegisterRule::Offset(offset)) => {
                return word(cfa.wrapping_add_signed(offset), read);
            }
            Some(RegisterRule::ValOffset(offset)) => Some(cfa.wrapping_add_signed(offset)),
            Some(RegisterRule::Register(other)) => value_of(other, registers),
            Some(RegisterRule::Expression(expression)) => {
                return word(evaluate(at, &expression, Some(cfa), registers, read)?, read);
            }
            Some(RegisterRule::ValExpression(expression)) => {
                Some(evaluate(at, &expression, Some(cfa), registers, read)?)
            }
            Some(_) => None,
        };
        value.ok_or(Stop::Senseless)
    };
    let [sp, fp, ra] = NUMBERS;
    let in_register = (cfg!(target_arch = "aarch64") && is_exact).then_some(registers.lr);
    let ra = restore(ra, in_register)?;
    let fp = restore(fp, Some(registers.fp))?;
    let sp = restore(sp, Some(cfa))?;
    // A signal's frame may lie on a stack of its own, above the one that was interrupted.
    let before = if at.is_signal_frame { Registers { sp: 0, ..registers } } else { registers };
    Ok((caller(sp, fp, ra, before, is_exact)?, at.is_signal_frame))
}

fn word(address: u64, read: &mut impl FnMut(u64) -> Result<u64, ()>) -> Result<u64, Stop> {
    read(address).map_err(|()| Stop::Unread)
}

fn value_of(register: Register, registers: Registers) -> Option<u64> {
    let [sp, fp, ra] = NUMBERS;
    [(sp, registers.sp), (fp, registers.fp), (ra, registers.ip)]
        .into_iter()
        .find_map(|(number, value)| (number == register).then_some(value))
}

fn evaluate<'a, S: UnwindSection<Bytes<'a>>>(
    at: &At<'_, S>,
    expression: &UnwindExpression<usize>,
    first: Option<u64>,
    registers: Registers,
    read: &mut impl FnMut(u64) -> Result<u64, ()>,
) -> Result<u64, Stop> {
    let expression = expression.get(at.section).map_err(|_| Stop::Senseless)?;
    let mut evaluation = Evaluation::<Bytes<'a>, Storage>::new_in(expression.0, at.encoding);
    evaluation.set_max_iterations(MAX_OPERATIONS);
    if let Some(first) = first {
        evaluation.set_initial_value(first);
    }
    let mut result = evaluation.evaluate();
    loop {
        result = match result.map_err(|_| Stop::Senseless)? {
            EvaluationResult::Complete => break,
            EvaluationResult::RequiresRegister { register, .. } => {
                let value = value_of(register, registers).ok_or(Stop::Senseless)?;
                evaluation.resume_with_register(Value::Generic(value))
            }
            EvaluationResult::RequiresMemory { address, size: 8, .. } => {
                evaluation.resume_with_memory(Value::Generic(word(address, read)?))
            }
            _ => return Err(Stop::Senseless),
        };
    }
    let value = evaluation.value_result().ok_or(Stop::Senseless)?;
    value.to_u64(u64::MAX).map_err(|_| Stop::Senseless)
}
