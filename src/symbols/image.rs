//! An ELF file: its build ID, segments and symbol tables.
//!
//! Headers are read through `object`'s read cache, which stores them on the heap. Every size in a
//! header is checked against a limit first. 64-bit and 32-bit ELF of either byte order are
//! supported.

mod table;

use std::ffi::{OsStr, OsString};
use std::fmt::Write;
use std::io;
use std::ops::Range;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use object::elf;
use object::endian::Endianness;
use object::read::elf::{FileHeader, ProgramHeader, SectionHeader};
use object::read::{ReadCache, ReadCacheOps, ReadRef};

use super::Error;
use super::lookup::{Aliases, SymbolLookup};
use crate::base::CodeFile;
use table::SymbolTable;

/// A limit on program headers; linkers write about a dozen.
const MAX_SEGMENTS: u32 = 1 << 10;

/// A limit on section headers: 4 MiB of them. Object files with a section per function are not
/// mapped.
const MAX_SECTIONS: u32 = 1 << 16;

/// A limit on the bytes of section names. Names beyond it are ignored: linkers write about 400
/// bytes, and no section used here is behind a megabyte of other names.
const MAX_SECTION_NAMES: u64 = 1 << 20;

/// A limit on the bytes of notes; a build ID is 36 bytes.
const MAX_NOTES: u64 = 1 << 16;

/// A limit on a debug link: the longest file name and a checksum.
const MAX_DEBUG_LINK: u64 = 512;

/// A limit on the length of a symbol name in bytes. Longer names, which no compiler writes, are
/// left out.
pub(super) const MAX_SYSTEM_NAME: usize = 16 << 10;

/// Layout of the file's structures.
#[derive(Clone, Copy)]
enum Class {
    Elf32,
    Elf64,
}

/// A part of the file that is loaded, with the address given by the linker.
struct LoadSegment {
    file_range: Range<u64>,
    address: u64,
    is_executable: bool,
}

/// An open ELF file whose headers have been read.
pub(super) struct ElfImage {
    path: PathBuf,
    file: Arc<CodeFile>,
    class: Class,
    endian: Endianness,
    build_id: String,
    segments: Vec<LoadSegment>,
    /// Address ranges of the sections with code.
    code_ranges: Vec<Range<u64>>,
    symbols: Option<SymbolTable>,
    /// `true` for a complete table, `false` for the exported symbols that `strip` leaves.
    has_all_symbols: bool,
    #[cfg(feature = "cli")]
    has_dwarf: bool,
    #[cfg(feature = "cli")]
    has_code: bool,
    /// Name of the file with the stripped symbols, if the file has a debug link.
    debug_link: Option<OsString>,
}

impl ElfImage {
    /// Opens the file at `path` and reads its headers.
    pub(super) fn open(path: &Path) -> Result<Self, Error> {
        let file = CodeFile::open(path).map_err(|source| match source.kind() {
            io::ErrorKind::InvalidInput => Error::NotRegularFile { path: path.to_owned() },
            _ => Error::Read { path: path.to_owned(), source },
        })?;
        Self::read(Arc::new(file), path)
    }

    /// Reads the headers of `file`, which was opened at `path`.
    pub(super) fn read(file: Arc<CodeFile>, path: &Path) -> Result<Self, Error> {
        let mut image = Self {
            path: path.to_owned(),
            file,
            class: Class::Elf64,
            endian: Endianness::default(),
            build_id: String::new(),
            segments: Vec::new(),
            code_ranges: Vec::new(),
            symbols: None,
            has_all_symbols: false,
            #[cfg(feature = "cli")]
            has_dwarf: false,
            #[cfg(feature = "cli")]
            has_code: false,
            debug_link: None,
        };
        let mut ident = [0; 5];
        image.read_exact(&mut ident, 0)?;
        image.class = match ident.strip_prefix(&elf::ELFMAG) {
            Some(&[class]) if class == elf::ELFCLASS64.0 => Class::Elf64,
            Some(&[class]) if class == elf::ELFCLASS32.0 => Class::Elf32,
            _ => return Err(image.malformed("the first bytes are not those of an ELF file")),
        };
        match image.class {
            Class::Elf64 => image.read_headers::<elf::FileHeader64<Endianness>>()?,
            Class::Elf32 => image.read_headers::<elf::FileHeader32<Endianness>>()?,
        }
        Ok(image)
    }

    /// Returns the GNU build ID in lower-case hex, or an empty string if there is none.
    pub(super) fn build_id(&self) -> &str {
        &self.build_id
    }

    /// Returns `true` if the file has its complete symbol table.
    pub(super) fn has_all_symbols(&self) -> bool {
        self.has_all_symbols
    }

    /// Returns `true` if the file has line information: all debug information contains
    /// `.debug_line`.
    #[cfg(feature = "cli")]
    pub(super) fn has_dwarf(&self) -> bool {
        self.has_dwarf
    }

    /// Returns `true` for an executable file, and `false` for a debug file, in which the file
    /// offsets of the segments are meaningless.
    #[cfg(feature = "cli")]
    pub(super) fn has_code(&self) -> bool {
        self.has_code
    }

    /// Returns the file name in its debug link.
    pub(super) fn debug_link(&self) -> Option<&OsStr> {
        self.debug_link.as_deref()
    }

    pub(super) fn file(&self) -> &Arc<CodeFile> {
        &self.file
    }

    /// Returns the path at which the file was opened.
    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the linker's address of the code at `offset` in the file.
    pub(super) fn address_of(&self, offset: u64) -> Option<u64> {
        let contains =
            |segment: &&LoadSegment| segment.is_executable && segment.file_range.contains(&offset);
        let segment = self.segments.iter().find(contains)?;
        segment.address.checked_add(offset - segment.file_range.start)
    }

    /// Finds the symbols around the addresses of `wants`. Calls `see` with the index of each
    /// address and its symbols.
    pub(super) fn symbols_at(
        &self,
        lookup: &mut SymbolLookup,
        visit: impl FnMut(usize, Option<Aliases>) -> Result<(), Error>,
    ) -> Result<(), Error> {
        match (&self.symbols, self.class) {
            (None, _) => {}
            (Some(table), Class::Elf64) => {
                table.scan::<elf::Sym64<Endianness>>(self, self.endian, lookup)?;
            }
            (Some(table), Class::Elf32) => {
                table.scan::<elf::Sym32<Endianness>>(self, self.endian, lookup)?;
            }
        }
        lookup.visit_symbols(&self.code_ranges, visit)
    }

    /// Reads the name at `offset` in the symbols' string table. The name is empty if it exceeds
    /// [`MAX_SYSTEM_NAME`].
    pub(super) fn read_name(&self, offset: u32, name: &mut Vec<u8>) -> Result<(), Error> {
        name.clear();
        let strings = self.symbols.as_ref().map_or(0..0, |table| table.strings.clone());
        let start = strings.start.saturating_add(offset.into()).min(strings.end);
        while name.len() < MAX_SYSTEM_NAME {
            let at = start.saturating_add(name.len() as u64);
            let mut piece = [0; 256];
            let available = strings.end.saturating_sub(at).min(piece.len() as u64) as usize;
            let Some(piece) = piece.get_mut(..available).filter(|piece| !piece.is_empty()) else {
                return Err(self.malformed("the name of a symbol is outside the string table"));
            };
            self.read_exact(piece, at)?;
            if let Some(end) = piece.iter().position(|&byte| byte == 0) {
                name.extend(piece.iter().take(end));
                return Ok(());
            }
            name.extend_from_slice(piece);
        }
        name.clear();
        Ok(())
    }

    /// Fills `buffer` from `offset` in the file.
    pub(super) fn read_exact(&self, buffer: &mut [u8], offset: u64) -> Result<(), Error> {
        self.file
            .read_exact_at(buffer, offset)
            .map_err(|source| Error::Read { path: self.path.clone(), source })
    }

    /// Creates an error with `reason`.
    pub(super) fn malformed(&self, reason: &'static str) -> Error {
        Error::Malformed { path: self.path.clone(), reason }
    }

    /// Creates the error for a quantity `what` above `limit`.
    pub(super) fn too_large(&self, quantity: &'static str, limit: u64) -> Error {
        Error::TooLarge { path: self.path.clone(), what: quantity, limit }
    }

    fn read_headers<Elf: FileHeader<Endian = Endianness>>(&mut self) -> Result<(), Error> {
        let malformed = |_| Error::Malformed {
            path: self.path.clone(),
            reason: "the headers are inconsistent with each other or with the file size",
        };
        let length =
            self.file.size().map_err(|source| Error::Read { path: self.path.clone(), source })?;
        let data = ReadCache::new(SectionCursor { file: &self.file, position: 0, length });
        let header = Elf::parse(&data).map_err(malformed)?;
        let endian = header.endian().map_err(malformed)?;
        if header.phnum(endian, &data).map_err(malformed)? > MAX_SEGMENTS {
            return Err(self.too_large("the number of segments", MAX_SEGMENTS.into()));
        }
        if header.shnum(endian, &data).map_err(malformed)? > MAX_SECTIONS {
            return Err(self.too_large("the number of sections", MAX_SECTIONS.into()));
        }
        let mut build_id = String::new();
        let mut segments = Vec::new();
        for segment in header.program_headers(endian, &data).map_err(malformed)? {
            let (offset, size) = segment.file_range(endian);
            if segment.p_type(endian) == elf::PT_LOAD {
                segments.push(LoadSegment {
                    file_range: offset..offset.saturating_add(size),
                    address: segment.p_vaddr(endian).into(),
                    is_executable: segment.p_flags(endian).contains(elf::PF_X),
                });
            }
            if build_id.is_empty() && size <= MAX_NOTES {
                let notes = segment.notes(endian, &data).map_err(malformed)?;
                build_id =
                    notes.map_or_else(String::new, |notes| read_build_id::<Elf>(endian, notes));
            }
        }
        let sections = header.section_headers(endian, &data).map_err(malformed)?;
        let code_sections = || {
            sections.iter().filter(|section| section.sh_flags(endian).contains(elf::SHF_EXECINSTR))
        };
        let code = code_sections().map(|section| {
            let start: u64 = section.sh_addr(endian).into();
            start..start.saturating_add(section.sh_size(endian).into())
        });
        self.code_ranges = code.collect();
        let table = |kind| sections.iter().find(|section| section.sh_type(endian) == kind);
        self.symbols = table(elf::SHT_SYMTAB)
            .or_else(|| table(elf::SHT_DYNSYM))
            .and_then(|table| {
                let names = sections.get(table.sh_link(endian) as usize)?.file_range(endian)?;
                Some((table.file_range(endian)?, names))
            })
            .map(|((offset, size), (names, names_size))| SymbolTable {
                entries: offset..offset.saturating_add(size),
                strings: names..names.saturating_add(names_size),
            });
        self.has_all_symbols = table(elf::SHT_SYMTAB).is_some();
        let named = NamedSections::<Elf>::new(header, endian, sections, &data);
        if cfg!(feature = "cli") || !self.has_all_symbols {
            self.debug_link = read_debug_link(&named, &data);
        }
        #[cfg(feature = "cli")]
        {
            let has = |name: &[u8]| named.section(name).is_some();
            self.has_dwarf = has(b".debug_line") || has(b".zdebug_line");
            let mut holds_code = code_sections()
                .map(|section| section.sh_type(endian) != elf::SHT_NOBITS)
                .peekable();
            self.has_code = holds_code.peek().is_none() || holds_code.any(|holds| holds);
        }
        self.endian = endian;
        self.build_id = build_id;
        self.segments = segments;
        Ok(())
    }
}

/// Adapter that reads a file for `object`.
struct SectionCursor<'a> {
    file: &'a CodeFile,
    position: u64,
    length: u64,
}

impl ReadCacheOps for SectionCursor<'_> {
    fn len(&mut self) -> Result<u64, ()> {
        Ok(self.length)
    }

    fn seek(&mut self, at: u64) -> Result<u64, ()> {
        self.position = at;
        Ok(at)
    }

    fn read(&mut self, into: &mut [u8]) -> Result<usize, ()> {
        let len = self.length.saturating_sub(self.position).min(into.len() as u64) as usize;
        self.read_exact(into.get_mut(..len).ok_or(())?)?;
        Ok(len)
    }

    fn read_exact(&mut self, into: &mut [u8]) -> Result<(), ()> {
        self.file.read_exact_at(into, self.position).map_err(|_| ())?;
        self.position = self.position.saturating_add(into.len() as u64);
        Ok(())
    }
}

/// Sections, and the bytes of their names read at once. [`ReadCache`] would cache a piece of the
/// file for each name.
struct NamedSections<'a, Elf: FileHeader> {
    endian: Endianness,
    sections: &'a [Elf::SectionHeader],
    names: &'a [u8],
}

impl<'a, Elf: FileHeader<Endian = Endianness>> NamedSections<'a, Elf> {
    fn new<R: ReadRef<'a>>(
        header: &Elf,
        endian: Endianness,
        sections: &'a [Elf::SectionHeader],
        data: R,
    ) -> Self {
        let names = || {
            let names = sections.get(header.shstrndx(endian, data).ok()? as usize)?;
            let (offset, size) = names.file_range(endian)?;
            data.read_bytes_at(offset, size.min(MAX_SECTION_NAMES)).ok()
        };
        Self { endian, sections, names: names().unwrap_or_default() }
    }

    fn section(&self, name: &[u8]) -> Option<&'a Elf::SectionHeader> {
        self.sections.iter().find(|section| {
            let rest = self.names.get(section.sh_name(self.endian) as usize..);
            let rest = rest.unwrap_or_default().strip_prefix(name);
            rest.is_some_and(|rest| rest.first() == Some(&0))
        })
    }
}

/// Returns the file name in the debug link section: a NUL-terminated name, padding and a checksum.
fn read_debug_link<'a, Elf: FileHeader<Endian = Endianness>, R: ReadRef<'a>>(
    named: &NamedSections<'a, Elf>,
    data: R,
) -> Option<OsString> {
    let endian = named.endian;
    let section = named.section(b".gnu_debuglink")?;
    if section.sh_size(endian).into() > MAX_DEBUG_LINK {
        return None;
    }
    let bytes = section.data(endian, data).ok()?;
    let name = bytes.split(|&byte| byte == 0).next()?;
    // Only a bare name is accepted: a path could lead to any file.
    let is_plain = !name.is_empty() && !name.contains(&b'/') && name != b"." && name != b"..";
    is_plain.then(|| OsStr::from_bytes(name).to_owned())
}

/// Returns the build ID in these notes in hex. Empty if there is none or a note is malformed.
fn read_build_id<Elf: FileHeader<Endian = Endianness>>(
    endian: Endianness,
    mut notes: object::read::elf::NoteIterator<'_, Elf>,
) -> String {
    let mut hex = String::new();
    while let Ok(Some(note)) = notes.next() {
        if note.name() == elf::ELF_NOTE_GNU && note.n_type(endian) == elf::NT_GNU_BUILD_ID {
            for byte in note.desc() {
                let _ = write!(hex, "{byte:02x}");
            }
            break;
        }
    }
    hex
}
