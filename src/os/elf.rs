//! The headers of a loaded ELF file, read by `pread`.
//!
//! Nothing is mapped. Another process can shorten or rewrite the file at any time, for example with
//! `cp` over an installed library. A read through a mapping then raises `SIGBUS`, while `pread`
//! returns an error or too few bytes. The limits below bound all reads, regardless of the headers.

use std::fmt::Write as _;
use std::io;
use std::ops::Range;
use std::sync::Arc;

use object::LittleEndian;
use object::elf::{self, FileHeader64, NoteHeader64, ProgramHeader64, SectionHeader64};
use object::pod::{self, Pod};

use super::own_memory;
use crate::base::CodeFile;

/// Maximum number of program headers read. Linkers write about a dozen.
const MAX_SEGMENTS: usize = 1 << 10;

/// Maximum number of section headers read: 256 KiB. Linked programs and libraries have about 40
/// sections.
const MAX_SECTIONS: usize = 1 << 12;

/// Maximum bytes of section names read. Linkers write about 400.
const MAX_NAMES_BYTES: u64 = 64 << 10;

/// Maximum bytes read of a note segment or section. A build ID is a note of 36 bytes.
const MAX_NOTE_BYTES: u64 = 64 << 10;

/// A source of the bytes of an ELF file.
pub(crate) enum ElfSource {
    /// An open file.
    File(Arc<CodeFile>),
    /// The start of the image in memory, up to the end of its first segment: headers and notes.
    Memory(Range<u64>),
    /// A copy of all bytes, for an image without a file.
    Copy(Vec<u8>),
}

impl ElfSource {
    /// Fills `into` from `offset` on.
    pub(crate) fn read_exact(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        match self {
            Self::File(file) => file.read_exact_at(into, offset),
            Self::Memory(range) => {
                let read = own_memory::read(range.start.saturating_add(offset), into);
                if read == into.len() { Ok(()) } else { Err(io::ErrorKind::UnexpectedEof.into()) }
            }
            Self::Copy(bytes) => {
                let start = usize::try_from(offset).unwrap_or(usize::MAX);
                let from = bytes.get(start..).and_then(|rest| rest.get(..into.len()));
                into.copy_from_slice(from.ok_or(io::ErrorKind::UnexpectedEof)?);
                Ok(())
            }
        }
    }

    fn len(&self) -> io::Result<u64> {
        match self {
            Self::File(file) => file.size(),
            Self::Memory(range) => Ok(range.end.saturating_sub(range.start)),
            Self::Copy(bytes) => Ok(bytes.len() as u64),
        }
    }
}

/// A part of the file that is loaded as code.
struct Load {
    address: u64,
    offset: u64,
    size: u64,
}

/// A section with bytes in the file.
#[derive(Clone, Copy, Debug)]
pub(crate) struct ElfSection {
    /// Address as stated in the file, without the load bias.
    pub(crate) address: u64,
    pub(crate) offset: u64,
    pub(crate) size: u64,
    pub(crate) is_compressed: bool,
    name: u32,
    is_note: bool,
    align: u64,
}

/// An open 64-bit little-endian ELF file and its headers.
pub(crate) struct ElfFile {
    source: ElfSource,
    length: u64,
    entry: u64,
    code: Vec<Load>,
    /// Note segments: offset, size, alignment.
    notes: Vec<(u64, u64, u64)>,
    sections: Vec<ElfSection>,
    names: Vec<u8>,
}

impl ElfFile {
    /// Reads the headers. Returns `None` if they are not those of a 64-bit little-endian ELF file.
    pub(crate) fn read(source: ElfSource) -> Option<Self> {
        let length = source.len().ok()?;
        let mut file = Self {
            source,
            length,
            entry: 0,
            code: Vec::new(),
            notes: Vec::new(),
            sections: Vec::new(),
            names: Vec::new(),
        };
        let [header] = file.read_structs::<FileHeader64<LittleEndian>>(0, 1)?.try_into().ok()?;
        let ident = header.e_ident;
        if ident.magic != elf::ELFMAG
            || ident.class != elf::ELFCLASS64
            || ident.data != elf::ELFDATA2LSB
        {
            return None;
        }
        let number = |of: object::U16<LittleEndian>| usize::from(of.get(LittleEndian));
        let segments = number(header.e_phnum).min(MAX_SEGMENTS);
        if number(header.e_phentsize) != size_of::<ProgramHeader64<LittleEndian>>() {
            return None;
        }
        file.entry = header.e_entry.get(LittleEndian);
        let segments = file.read_structs(header.e_phoff.get(LittleEndian), segments)?;
        segments.iter().for_each(|segment| file.add_segment(segment));
        // Without section headers there is still a load bias and often a build ID.
        let sections = number(header.e_shnum).min(MAX_SECTIONS);
        if number(header.e_shentsize) == size_of::<SectionHeader64<LittleEndian>>() {
            let offset = header.e_shoff.get(LittleEndian);
            let sections = file.read_structs(offset, sections).unwrap_or_default();
            file.add_sections(&sections, header.e_shstrndx.get(LittleEndian).0.into());
        }
        Some(file)
    }

    fn add_segment(&mut self, segment: &ProgramHeader64<LittleEndian>) {
        let word = |of: object::U64<LittleEndian>| of.get(LittleEndian);
        let offset = word(segment.p_offset);
        let size = word(segment.p_filesz);
        let kind = segment.p_type.get(LittleEndian);
        let is_code = segment.p_flags.get(LittleEndian).contains(elf::PF_X);
        if kind == elf::PT_LOAD && is_code {
            self.code.push(Load { address: word(segment.p_vaddr), offset, size });
        } else if kind == elf::PT_NOTE {
            self.notes.push((offset, size, word(segment.p_align)));
        }
    }

    fn add_sections(&mut self, sections: &[SectionHeader64<LittleEndian>], names: usize) {
        let word = |of: object::U64<LittleEndian>| of.get(LittleEndian);
        if let Some(names) = sections.get(names) {
            let size = word(names.sh_size).min(MAX_NAMES_BYTES);
            self.names = self.read_bytes(word(names.sh_offset), size).unwrap_or_default();
        }
        let with_bytes =
            sections.iter().filter(|section| section.sh_type.get(LittleEndian) != elf::SHT_NOBITS);
        self.sections = with_bytes
            .map(|section| ElfSection {
                address: word(section.sh_addr),
                offset: word(section.sh_offset),
                size: word(section.sh_size),
                is_compressed: section.sh_flags.get(LittleEndian).contains(elf::SHF_COMPRESSED),
                name: section.sh_name.get(LittleEndian),
                is_note: section.sh_type.get(LittleEndian) == elf::SHT_NOTE,
                align: word(section.sh_addralign),
            })
            .collect();
    }

    /// Returns the section with this name, or `None` if there is none with bytes in the file.
    pub(crate) fn section(&self, name: &[u8]) -> Option<ElfSection> {
        let is_named = |section: &&ElfSection| {
            let rest = self.names.get(section.name as usize..).unwrap_or_default();
            rest.strip_prefix(name).is_some_and(|rest| rest.first() == Some(&0))
        };
        self.sections.iter().find(is_named).copied()
    }

    /// Returns the address of the first instruction as stated in the file, or `None` for a library.
    pub(crate) fn entry(&self) -> Option<u64> {
        (self.entry != 0).then_some(self.entry)
    }

    /// Returns the load bias of the part at `file_offset` that is mapped at `range`:
    /// `address in memory - address in file`. Returns `None` if the headers do not describe that
    /// part, that is, if the file is not the one that was mapped.
    pub(crate) fn load_bias(&self, range: &Range<u64>, file_offset: u64) -> Option<u64> {
        let length = range.end.checked_sub(range.start)?;
        let end = file_offset.checked_add(length)?;
        self.code.iter().find_map(|load| {
            let overlaps = load.offset < end && file_offset < load.offset.checked_add(load.size)?;
            let file_start = range.start.wrapping_sub(file_offset);
            overlaps.then(|| file_start.wrapping_sub(load.address.wrapping_sub(load.offset)))
        })
    }

    /// Returns `true` if the file is long enough to contain the section.
    pub(crate) fn contains_section(&self, section: &ElfSection) -> bool {
        section.offset.checked_add(section.size).is_some_and(|end| end <= self.length)
    }

    /// Fills `into` from `offset` of the file on.
    ///
    /// # Errors
    ///
    /// Returns an error if the file ends before `into` is filled, or cannot be read.
    pub(crate) fn read_exact(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.source.read_exact(into, offset)
    }

    /// Returns the GNU build ID in lower-case hex, or an empty string if there is none.
    pub(crate) fn build_id(&self) -> String {
        let sections = self.sections.iter().filter(|section| section.is_note);
        let sections = sections.map(|section| (section.offset, section.size, section.align));
        let note_ranges = self.notes.iter().copied().chain(sections);
        let id = note_ranges.filter(|&(_, size, _)| size <= MAX_NOTE_BYTES).find_map(
            |(at, size, align)| {
                let notes = self.read_bytes(at, size)?;
                parse_build_id(&notes, if align == 8 { 8 } else { 4 })
            },
        );
        id.unwrap_or_default()
    }

    /// Returns `size` bytes from `offset` on, or `None` if the file is too short.
    fn read_bytes(&self, offset: u64, size: u64) -> Option<Vec<u8>> {
        // Checked against the file's length first: a corrupt header must not cause a huge
        // allocation.
        offset.checked_add(size).filter(|&end| end <= self.length)?;
        let mut bytes = vec![0; usize::try_from(size).ok()?];
        self.source.read_exact(&mut bytes, offset).ok()?;
        Some(bytes)
    }

    /// Returns `count` structures from `offset` on.
    fn read_structs<T: Pod + Copy>(&self, offset: u64, count: usize) -> Option<Vec<T>> {
        let bytes = self.read_bytes(offset, count.checked_mul(size_of::<T>())? as u64)?;
        Some(pod::slice_from_bytes::<T>(&bytes, count).ok()?.0.to_vec())
    }
}

/// Returns the GNU build ID among these notes in hex.
fn parse_build_id(mut notes: &[u8], align: usize) -> Option<String> {
    loop {
        let (header, rest) = pod::from_bytes::<NoteHeader64<LittleEndian>>(notes).ok()?;
        let size = |of: object::U32<LittleEndian>| of.get(LittleEndian) as usize;
        let name_size = size(header.n_namesz);
        let size = size(header.n_descsz);
        let name = rest.get(..name_size)?;
        // Padding is relative to the start of the note.
        let head = notes.len() - rest.len();
        let start = (head + name_size).next_multiple_of(align);
        let id = notes.get(start..)?.get(..size)?;
        if name == b"GNU\0" && header.n_type.get(LittleEndian) == elf::NT_GNU_BUILD_ID {
            let hex = String::with_capacity(id.len() * 2);
            return Some(id.iter().fold(hex, |mut hex, byte| {
                let _ = write!(hex, "{byte:02x}");
                hex
            }));
        }
        notes = notes.get((start + size).next_multiple_of(align)..)?;
    }
}
