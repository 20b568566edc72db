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
use object::pod;
use object::read::elf::Sym;

use super::Error;
use super::image::ElfImage;

/// Bytes of the table read at once: a whole number of entries of either class (24 and 16 bytes).
const CHUNK: usize = 48 * 1280;

/// A limit on the size of a table: 44 million symbols, twenty times as many as a browser has.
const MAX_TABLE: u64 = 1 << 30;

/// A limit on steps (symbols, and addresses that they cover), about one second. A sound table takes
/// one step per symbol and one per address. A table in which every symbol covers everything takes
/// their product.
const MAX_STEPS: u64 = 1 << 27;

/// File ranges of the symbols and their names.
pub(super) struct SymbolTable {
    /// The symbols.
    pub(super) entries: Range<u64>,
    /// The string table their names are in.
    pub(super) strings: Range<u64>,
}

impl SymbolTable {
    /// Passes every symbol of the table to `wants`.
    pub(super) fn scan<S: Sym<Endian = Endianness>>(
        &self,
        image: &ElfImage,
        endian: Endianness,
        wants: &mut Wants,
    ) -> Result<(), Error> {
        if wants.addresses.is_empty() {
            return Ok(());
        }
        if self.entries.end - self.entries.start > MAX_TABLE {
            return Err(image.too_large("its symbol table in bytes", MAX_TABLE));
        }
        let mut buffer = std::mem::take(&mut wants.buffer);
        buffer.resize(CHUNK, 0);
        let scanned = self.scan_with::<S>(image, endian, wants, &mut buffer);
        wants.buffer = buffer;
        scanned
    }

    fn scan_with<S: Sym<Endian = Endianness>>(
        &self,
        image: &ElfImage,
        endian: Endianness,
        wants: &mut Wants,
        buffer: &mut [u8],
    ) -> Result<(), Error> {
        let mut at = self.entries.start;
        while at < self.entries.end {
            let size = (self.entries.end - at).min(CHUNK as u64);
            let chunk = buffer.get_mut(..size as usize).unwrap_or_default();
            image.read_exact(chunk, at)?;
            let whole = chunk.len() / size_of::<S>();
            let (symbols, _) = pod::slice_from_bytes::<S>(chunk, whole)
                .map_err(|()| image.malformed("its symbol table is cut"))?;
            for symbol in symbols {
                wants.offer(symbol, endian);
            }
            if wants.steps > MAX_STEPS {
                return Err(image.too_large("the work its symbol table asks for", MAX_STEPS));
            }
            at += size;
        }
        Ok(())
    }
}

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
    pub(super) const UNLIKELY: Self =
        Self { names: [u32::MAX; MAX_ALIASES], weak: u8::MAX, count: u16::MAX };

    fn of(name: u32, is_weak: bool) -> Self {
        let mut aliases = Self { names: [0; MAX_ALIASES], weak: 0, count: 0 };
        aliases.add(name, is_weak);
        aliases
    }

    fn add(&mut self, name: u32, is_weak: bool) {
        if self.names.iter().take(self.count.into()).any(|known| *known == name) {
            return;
        }
        if let Some(place) = self.names.get_mut(usize::from(self.count)) {
            *place = name;
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
    pub(super) fn beyond(&self) -> usize {
        usize::from(self.count).saturating_sub(MAX_ALIASES)
    }
}

/// A symbol that may contain an address.
#[derive(Clone, Copy)]
struct SymbolCandidate {
    start: u64,
    /// Binding of the symbol: 2 for global, 1 for weak, 0 for local. Of loose symbols at one
    /// address, the highest is used.
    rank: u8,
    name: u32,
}

impl SymbolCandidate {
    fn beats(&self, other: &Option<Self>) -> bool {
        other.is_none_or(|other| (self.start, self.rank) > (other.start, other.rank))
    }

    fn is_weak(&self) -> bool {
        self.rank == 1
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
pub(super) struct Wants {
    /// Sorted addresses.
    addresses: Vec<u64>,
    /// The innermost sized symbols around each address.
    sized: Vec<Option<InnermostSymbol>>,
    /// `loose[i]`: the last loose symbol in `(addresses[i - 1], addresses[i]]`.
    loose: Vec<Option<SymbolCandidate>>,
    /// `begins[i]`: the start of the last sized symbol in the same range.
    begins: Vec<u64>,
    /// Part of the table being scanned.
    buffer: Vec<u8>,
    steps: u64,
}

impl Wants {
    /// Creates buffers for `most` addresses, filled so that their pages exist.
    pub(super) fn reserve(most: usize) -> Self {
        let unlikely = SymbolCandidate { start: u64::MAX, rank: u8::MAX, name: u32::MAX };
        Self {
            addresses: vec![u64::MAX; most],
            sized: vec![
                Some(InnermostSymbol { start: u64::MAX, aliases: Aliases::UNLIKELY });
                most
            ],
            loose: vec![Some(unlikely); most],
            begins: vec![u64::MAX; most],
            buffer: vec![u8::MAX; CHUNK],
            steps: 0,
        }
    }

    /// Sets the addresses to look up, which must be sorted, and resets the results.
    pub(super) fn set(&mut self, addresses: impl Iterator<Item = u64>) {
        self.addresses.clear();
        self.addresses.extend(addresses);
        let count = self.addresses.len();
        self.sized.clear();
        self.sized.resize(count, None);
        self.loose.clear();
        self.loose.resize(count, None);
        self.begins.clear();
        self.begins.resize(count, 0);
        self.steps = 0;
    }

    /// Returns the address at index `place`.
    pub(super) fn address(&self, place: usize) -> Option<u64> {
        self.addresses.get(place).copied()
    }

    fn offer<S: Sym<Endian = Endianness>>(&mut self, symbol: &S, endian: Endianness) {
        self.steps += 1;
        let size: u64 = symbol.st_size(endian).into();
        let kind = symbol.st_type();
        let function = kind == elf::STT_FUNC || kind == elf::STT_GNU_IFUNC;
        let section = symbol.st_shndx(endian);
        if symbol.st_name(endian) == 0
            || section == elf::SHN_UNDEF
            || section == elf::SHN_ABS
            || !(function || kind == elf::STT_NOTYPE && size == 0)
        {
            return;
        }
        let mut start: u64 = symbol.st_value(endian).into();
        if cfg!(target_arch = "arm") && function {
            // The lowest bit marks Thumb code and is not part of the address.
            start &= !1;
        }
        let rank = match symbol.st_bind() {
            elf::STB_GLOBAL => 2,
            elf::STB_WEAK => 1,
            _ => 0,
        };
        let candidate = SymbolCandidate { start, rank, name: symbol.st_name(endian) };
        self.place(candidate, size);
    }

    fn place(&mut self, candidate: SymbolCandidate, size: u64) {
        let first = self.addresses.partition_point(|&address| address < candidate.start);
        if size == 0 {
            match self.loose.get_mut(first) {
                Some(slot) if candidate.beats(slot) => *slot = Some(candidate),
                _ => {}
            }
            return;
        }
        if let Some(begin) = self.begins.get_mut(first) {
            *begin = candidate.start.max(*begin);
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
                    let aliases = Aliases::of(candidate.name, candidate.is_weak());
                    *slot = Some(InnermostSymbol { start: candidate.start, aliases });
                }
            }
        }
    }

    /// Calls `see` with the index of each address and its symbols, if there are any. `code` lists
    /// the address ranges of the sections with code.
    pub(super) fn names<E>(
        &self,
        code: &[Range<u64>],
        mut see: impl FnMut(usize, Option<Aliases>) -> Result<(), E>,
    ) -> Result<(), E> {
        let (mut loose, mut begin) = (None::<SymbolCandidate>, 0);
        let seen = self.sized.iter().zip(&self.loose).zip(&self.begins);
        for (at, (&address, ((sized, loose_here), begins_here))) in
            self.addresses.iter().zip(seen).enumerate()
        {
            loose = loose_here.filter(|here| here.beats(&loose)).or(loose);
            begin = begin.max(*begins_here);
            let reaching = loose.filter(|loose| {
                let both =
                    |part: &Range<u64>| part.contains(&address) && part.contains(&loose.start);
                loose.start > begin && code.iter().any(both)
            });
            let reaching = reaching.map(|loose| Aliases::of(loose.name, loose.is_weak()));
            see(at, sized.map(|sized| sized.aliases).or(reaching))?;
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
        let mut wants = Wants::default();
        wants.set(addresses.iter().copied());
        for &(start, size, rank, name) in symbols {
            wants.place(SymbolCandidate { start, rank, name }, size);
        }
        let mut names = Vec::new();
        let Ok(()) = wants.names::<Infallible>(&[0x100..0x200, 0x200..0x300], |_, name| {
            names.push(name);
            Ok(())
        });
        names
    }

    #[test]
    fn a_sized_symbol_covers_its_bytes_and_no_more() {
        let table = [(0x110, 0x10, 0, 7)];
        let at = [0x10f, 0x110, 0x11f, 0x120];
        assert_eq!(names(&at, &table), [None, Some(7), Some(7), None]);
    }

    #[test]
    fn the_innermost_win_and_those_that_begin_together_are_all_kept() {
        let table = [(0x100, 0x80, 2, 1), (0x110, 0x10, 0, 2), (0x110, 0x10, 1, 3)];
        let found = aliases(&[0x100, 0x118, 0x130], &table);
        let kept = |place: usize| found[place].unwrap().iter().collect::<Vec<_>>();
        assert_eq!(kept(0), [(1, false)]);
        assert_eq!(kept(1), [(2, false), (3, true)]);
        assert_eq!(kept(2), [(1, false)]);
    }

    #[test]
    fn symbols_beyond_the_room_are_counted() {
        for count in [MAX_ALIASES - 1, MAX_ALIASES, MAX_ALIASES + 1] {
            let table: Vec<_> = (1..=count as u32).map(|name| (0x110, 0x10, 0, name)).collect();
            let found = aliases(&[0x118], &table)[0].unwrap();
            assert_eq!(found.iter().count(), count.min(MAX_ALIASES));
            assert_eq!(found.beyond(), count - found.iter().count());
        }
    }

    #[test]
    fn a_loose_symbol_reaches_to_what_begins_next_in_its_section() {
        let table = [(0x140, 0x10, 0, 2), (0x110, 0, 0, 1), (0x180, 0, 0, 3)];
        let at = [0x10f, 0x110, 0x13f, 0x145, 0x150, 0x190, 0x1ff, 0x200];
        let expected = [None, Some(1), Some(1), Some(2), None, Some(3), Some(3), None];
        assert_eq!(names(&at, &table), expected);
    }

    #[test]
    fn ends_beyond_the_address_space_do_not_wrap() {
        assert_eq!(names(&[0x150, u64::MAX], &[(0x140, u64::MAX, 0, 1)]), [Some(1), None]);
    }
}
