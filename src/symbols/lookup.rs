//! Lookup of addresses in one pass over a symbol table.
//!
//! Two kinds of symbol name code:
//!
//! - A *sized* symbol covers `value..value + size`. If several cover an address, the one that
//!   begins last is the innermost and is used.
//! - A *loose* symbol (assembly without a `.size` directive) covers everything up to the next
//!   symbol in its section. It is used only if no sized symbol covers the address.

use std::ops::Range;

use object::elf;
use object::endian::Endianness;
use object::read::elf::Sym;

/// Bytes of the table read at once: a whole number of entries of either class (24 and 16 bytes).
pub(super) const CHUNK_BYTES: usize = 48 * 1280;

/// Number of symbol names stored per address. Folded code has typically two or three functions, or
/// dozens of drop glue functions. A C function has up to five names.
pub(super) const MAX_ALIASES: usize = 6;

/// The symbols that begin at one address, as offsets of their names in the string table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Aliases {
    names: [u32; MAX_ALIASES],
    /// Bit `i` is set if the symbol of `names[i]` is weak.
    weak: u8,
    count: u16,
}

impl Aliases {
    /// A value that no table contains, to fill memory with.
    pub(super) const FILLER: Self =
        Self { names: [u32::MAX; MAX_ALIASES], weak: u8::MAX, count: u16::MAX };

    fn new(name: u32, is_weak: bool) -> Self {
        let mut aliases = Self { names: [0; MAX_ALIASES], weak: 0, count: 0 };
        aliases.add(name, is_weak);
        aliases
    }

    fn add(&mut self, name: u32, is_weak: bool) {
        if self.names.iter().take(self.count.into()).any(|known| *known == name) {
            return;
        }
        if let Some(slot) = self.names.get_mut(usize::from(self.count)) {
            *slot = name;
            self.weak |= u8::from(is_weak) << self.count;
        }
        self.count = self.count.saturating_add(1);
    }

    /// Returns the stored names with `true` if their symbols are weak.
    pub(super) fn iter(&self) -> impl Iterator<Item = (u32, bool)> {
        let names = self.names.into_iter().take(self.count.into());
        let weak = self.weak;
        names.enumerate().map(move |(place, name)| (name, weak >> place & 1 == 1))
    }

    /// Returns the number of names beyond the stored ones.
    pub(super) fn omitted_count(&self) -> usize {
        usize::from(self.count).saturating_sub(MAX_ALIASES)
    }
}

/// A symbol that may contain an address.
#[derive(Clone, Copy)]
struct SymbolCandidate {
    start: u64,
    /// Binding of the symbol: 2 for global, 1 for weak, 0 for local. Of loose symbols at one
    /// address, the highest is used.
    binding_rank: u8,
    name: u32,
}

impl SymbolCandidate {
    fn is_better_than(&self, other: &Option<Self>) -> bool {
        other
            .is_none_or(|other| (self.start, self.binding_rank) > (other.start, other.binding_rank))
    }

    fn is_weak(&self) -> bool {
        self.binding_rank == 1
    }
}

/// The innermost sized symbols around an address.
#[derive(Clone, Copy)]
struct InnermostSymbol {
    start: u64,
    aliases: Aliases,
}

/// Addresses to look up, and the best symbols found for them. The vectors keep their capacity
/// between uses.
#[derive(Default)]
pub(super) struct SymbolLookup {
    /// Sorted addresses.
    addresses: Vec<u64>,
    /// The innermost sized symbols around each address.
    sized: Vec<Option<InnermostSymbol>>,
    /// `loose[i]`: the last loose symbol in `(addresses[i - 1], addresses[i]]`.
    loose: Vec<Option<SymbolCandidate>>,
    /// `begins[i]`: the start of the last sized symbol in the same range.
    sized_starts: Vec<u64>,
    /// Part of the table being scanned.
    pub(super) buffer: Vec<u8>,
    /// Number of symbols examined and of addresses that they cover.
    pub(super) steps: u64,
}

impl SymbolLookup {
    /// Creates buffers for `most` addresses, filled so that their pages exist.
    pub(super) fn with_capacity(max_addresses: usize) -> Self {
        let filler = SymbolCandidate { start: u64::MAX, binding_rank: u8::MAX, name: u32::MAX };
        Self {
            addresses: vec![u64::MAX; max_addresses],
            sized: vec![
                Some(InnermostSymbol { start: u64::MAX, aliases: Aliases::FILLER });
                max_addresses
            ],
            loose: vec![Some(filler); max_addresses],
            sized_starts: vec![u64::MAX; max_addresses],
            buffer: vec![u8::MAX; CHUNK_BYTES],
            steps: 0,
        }
    }

    /// Sets the addresses to look up, which must be sorted, and resets the results.
    pub(super) fn set_addresses(&mut self, addresses: impl Iterator<Item = u64>) {
        self.addresses.clear();
        self.addresses.extend(addresses);
        let count = self.addresses.len();
        self.sized.clear();
        self.sized.resize(count, None);
        self.loose.clear();
        self.loose.resize(count, None);
        self.sized_starts.clear();
        self.sized_starts.resize(count, 0);
        self.steps = 0;
    }

    /// Returns `true` if there is no address to look up.
    pub(super) fn is_empty(&self) -> bool {
        self.addresses.is_empty()
    }

    /// Returns the address at index `place`.
    pub(super) fn address(&self, index: usize) -> Option<u64> {
        self.addresses.get(index).copied()
    }

    /// Records the symbol for the addresses that it covers.
    pub(super) fn add_symbol<S: Sym<Endian = Endianness>>(
        &mut self,
        symbol: &S,
        endian: Endianness,
    ) {
        self.steps += 1;
        let size: u64 = symbol.st_size(endian).into();
        let kind = symbol.st_type();
        let is_function = kind == elf::STT_FUNC || kind == elf::STT_GNU_IFUNC;
        let section = symbol.st_shndx(endian);
        if symbol.st_name(endian) == 0
            || section == elf::SHN_UNDEF
            || section == elf::SHN_ABS
            || !(is_function || kind == elf::STT_NOTYPE && size == 0)
        {
            return;
        }
        let mut start: u64 = symbol.st_value(endian).into();
        if cfg!(target_arch = "arm") && is_function {
            // The lowest bit marks Thumb code and is not part of the address.
            start &= !1;
        }
        let rank = match symbol.st_bind() {
            elf::STB_GLOBAL => 2,
            elf::STB_WEAK => 1,
            _ => 0,
        };
        let candidate = SymbolCandidate { start, binding_rank: rank, name: symbol.st_name(endian) };
        self.record_candidate(candidate, size);
    }

    fn record_candidate(&mut self, candidate: SymbolCandidate, size: u64) {
        let first = self.addresses.partition_point(|&address| address < candidate.start);
        if size == 0 {
            match self.loose.get_mut(first) {
                Some(slot) if candidate.is_better_than(slot) => *slot = Some(candidate),
                _ => {}
            }
            return;
        }
        if let Some(start) = self.sized_starts.get_mut(first) {
            *start = candidate.start.max(*start);
        }
        let end = candidate.start.saturating_add(size);
        for (slot, _) in self
            .sized
            .iter_mut()
            .zip(&self.addresses)
            .skip(first)
            .take_while(|&(_, &address)| address < end)
        {
            self.steps += 1;
            match slot {
                Some(known) if known.start > candidate.start => {}
                Some(known) if known.start == candidate.start => {
                    known.aliases.add(candidate.name, candidate.is_weak());
                }
                _ => {
                    let aliases = Aliases::new(candidate.name, candidate.is_weak());
                    *slot = Some(InnermostSymbol { start: candidate.start, aliases });
                }
            }
        }
    }

    /// Calls `see` with the index of each address and its symbols, if there are any. `code` lists
    /// the address ranges of the sections with code.
    pub(super) fn visit_symbols<E>(
        &self,
        code: &[Range<u64>],
        mut visit: impl FnMut(usize, Option<Aliases>) -> Result<(), E>,
    ) -> Result<(), E> {
        let mut loose = None::<SymbolCandidate>;
        let mut begin = 0;
        let found = self.sized.iter().zip(&self.loose).zip(&self.sized_starts);
        for (index, (&address, ((sized, loose_here), begins_here))) in
            self.addresses.iter().zip(found).enumerate()
        {
            loose = loose_here.filter(|here| here.is_better_than(&loose)).or(loose);
            begin = begin.max(*begins_here);
            let reaching = loose.filter(|loose| {
                let both =
                    |part: &Range<u64>| part.contains(&address) && part.contains(&loose.start);
                loose.start > begin && code.iter().any(both)
            });
            let reaching = reaching.map(|loose| Aliases::new(loose.name, loose.is_weak()));
            visit(index, sized.map(|sized| sized.aliases).or(reaching))?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use std::convert::Infallible;

    use super::*;

    /// Returns the names (here: numbers) given to `addresses` by symbols of (start, size, rank,
    /// name).
    fn names(addresses: &[u64], symbols: &[(u64, u64, u8, u32)]) -> Vec<Option<u32>> {
        let first = |aliases: Aliases| aliases.iter().next().unwrap().0;
        aliases(addresses, symbols).into_iter().map(|found| found.map(first)).collect()
    }

    fn aliases(addresses: &[u64], symbols: &[(u64, u64, u8, u32)]) -> Vec<Option<Aliases>> {
        let mut wants = SymbolLookup::default();
        wants.set_addresses(addresses.iter().copied());
        for &(start, size, rank, name) in symbols {
            wants.record_candidate(SymbolCandidate { start, binding_rank: rank, name }, size);
        }
        let mut names = Vec::new();
        let Ok(()) = wants.visit_symbols::<Infallible>(&[0x100..0x200, 0x200..0x300], |_, name| {
            names.push(name);
            Ok(())
        });
        names
    }

    #[test]
    fn sized_symbol_covers_exactly_its_size() {
        let table = [(0x110, 0x10, 0, 7)];
        let at = [0x10f, 0x110, 0x11f, 0x120];
        assert_eq!(names(&at, &table), [None, Some(7), Some(7), None]);
    }

    #[test]
    fn innermost_symbol_wins_and_same_start_are_aliases() {
        let table = [(0x100, 0x80, 2, 1), (0x110, 0x10, 0, 2), (0x110, 0x10, 1, 3)];
        let found = aliases(&[0x100, 0x118, 0x130], &table);
        let names_at = |place: usize| found[place].unwrap().iter().collect::<Vec<_>>();
        assert_eq!(names_at(0), [(1, false)]);
        assert_eq!(names_at(1), [(2, false), (3, true)]);
        assert_eq!(names_at(2), [(1, false)]);
    }

    #[test]
    fn aliases_beyond_maximum_are_counted() {
        for count in [MAX_ALIASES - 1, MAX_ALIASES, MAX_ALIASES + 1] {
            let table: Vec<_> = (1..=count as u32).map(|name| (0x110, 0x10, 0, name)).collect();
            let found = aliases(&[0x118], &table)[0].unwrap();
            assert_eq!(found.iter().count(), count.min(MAX_ALIASES));
            assert_eq!(found.omitted_count(), count - found.iter().count());
        }
    }

    #[test]
    fn loose_symbol_covers_up_to_next_symbol_in_section() {
        let table = [(0x140, 0x10, 0, 2), (0x110, 0, 0, 1), (0x180, 0, 0, 3)];
        let at = [0x10f, 0x110, 0x13f, 0x145, 0x150, 0x190, 0x1ff, 0x200];
        let expected = [None, Some(1), Some(1), Some(2), None, Some(3), Some(3), None];
        assert_eq!(names(&at, &table), expected);
    }

    #[test]
    fn symbol_end_beyond_address_space_does_not_wrap() {
        assert_eq!(names(&[0x150, u64::MAX], &[(0x140, u64::MAX, 0, 1)]), [Some(1), None]);
    }
}
