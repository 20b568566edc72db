//! Unwind tables and code segments of the loaded files, immutable once built.
//!
//! The tables are *copied* from the files into private memory. Host threads read them while they
//! allocate, so a change of a file by another process must not reach them (`SIGBUS`). A program
//! takes 0.1 to 5 MB. Tables beyond [`MAX_TABLE_BYTES`] and [`MAX_COPIED_BYTES`] are left out and
//! counted.

use std::ops::{Deref, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use gimli::{BaseAddresses, DebugFrame, EhFrame, LittleEndian};

use crate::os::elf::{ElfFile, ElfSection};
use crate::os::images;
use crate::os::mapped_memory::MappedCopy;
use crate::os::mapped_segment::MappedSegment;
use crate::os::own_memory;
use crate::unwind::calls;
use crate::unwind::index::{self, FdeIndex};

/// Maximum bytes copied of one section. The largest programs have some 30 MB.
const MAX_TABLE_BYTES: u64 = 64 << 20;

/// Maximum bytes copied of all files.
const MAX_COPIED_BYTES: u64 = 256 << 20;

/// Maximum bytes copied by an allocating thread of the host: some 4 ms.
const MAX_QUICK_BYTES: u64 = 16 << 20;

/// Instruction bytes examined at one address.
const CODE_BYTES: usize = 16;

/// Extent of a read of the loaded files.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum ReadDepth {
    /// Everything, for the agent's threads.
    Full,
    /// For an allocating thread of the host: no index is built; `.debug_frame` and large tables are
    /// left out.
    Quick,
}

/// Bytes of a section, within the copy of its file's tables.
struct ModuleSection {
    copy: Arc<MappedCopy>,
    range: Range<usize>,
}

impl Deref for ModuleSection {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.copy.get(self.range.clone()).unwrap_or_default()
    }
}

/// A segment of code with its unwind tables.
pub(crate) struct LoadedModule {
    segment: MappedSegment,
    /// Load bias: `address in memory = address in file + bias`.
    pub(crate) bias: u64,
    pub(crate) bases: BaseAddresses,
    eh_frame: Option<ModuleSection>,
    /// The linker's index of `.eh_frame` with its address, if it has the usual form.
    eh_frame_hdr: Option<(ModuleSection, u64)>,
    eh_frame_address: u64,
    /// Index built here if the linker's is missing or unusable.
    eh_index: FdeIndex,
    debug_frame: Option<ModuleSection>,
    debug_index: FdeIndex,
    /// Address of the program's entry point in the process.
    entry: Option<u64>,
    /// Bytes copied.
    copied_bytes: u64,
    /// `true` if [`ReadDepth::Full`] would read nothing more.
    is_complete: bool,
}

/// All code segments of the process, with their tables.
pub(crate) struct LoadedModules {
    /// Unique number of this value, never 0.
    pub(crate) generation: u32,
    /// Number of files whose tables were left out, because of their size or for lack of memory.
    pub(crate) skipped_files: usize,
    /// Sorted by address.
    known: Vec<KnownModule>,
}

/// A segment and the result of reading it.
struct KnownModule {
    segment: MappedSegment,
    module: Option<Arc<LoadedModule>>,
    /// `true` if it was loaded when the table was read.
    is_loaded: bool,
}

impl LoadedModules {
    pub(crate) fn empty() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        let generation = NEXT.fetch_add(1, Ordering::Relaxed).max(1);
        Self { generation, skipped_files: 0, known: Vec::new() }
    }

    /// Reads the loaded files. Modules that `old` has already read are shared. A module that has
    /// been unloaded since stays for one generation, unless its addresses have been reused. Stacks
    /// copied before the unloading have still to be walked.
    pub(crate) fn read(old: Option<&Self>, depth: ReadDepth) -> Result<Self, images::Error> {
        let old = old.map_or(&[][..], |old| &old.known);
        let mut modules = Self::empty();
        let mut remaining_bytes = match depth {
            ReadDepth::Full => MAX_COPIED_BYTES,
            ReadDepth::Quick => MAX_QUICK_BYTES,
        };
        let segments = match depth {
            ReadDepth::Full => images::segments()?,
            ReadDepth::Quick => images::list_segments()?,
        };
        for segment in segments {
            let known = old.iter().find(|known| known.segment.is_same_mapping(&segment));
            let known = known.and_then(|known| known.module.clone());
            let module = match known.filter(|module| module.is_complete) {
                Some(module) => Some(module),
                None => LoadedModule::for_segment(&segment, depth, remaining_bytes).map(Arc::new),
            };
            if let Some(module) = &module {
                remaining_bytes = remaining_bytes.saturating_sub(module.copied_bytes);
                modules.skipped_files += usize::from(!module.is_complete);
            }
            modules.known.push(KnownModule { segment, module, is_loaded: true });
        }
        for KnownModule { segment, module, .. } in old.iter().filter(|known| known.is_loaded) {
            let overlaps = |known: &KnownModule| {
                let range = &known.segment.range;
                range.start < segment.range.end && segment.range.start < range.end
            };
            if !modules.known.iter().any(overlaps) {
                let segment = segment.clone();
                let module = module.clone();
                modules.known.push(KnownModule { segment, module, is_loaded: false });
            }
        }
        modules.known.sort_by_key(|known| known.segment.range.start);
        Ok(modules)
    }

    /// Returns the segment that contains `address`.
    pub(crate) fn module_at(&self, address: u64) -> Option<&LoadedModule> {
        let after = self.known.partition_point(|known| known.segment.range.start <= address);
        let known = self.known.get(after.checked_sub(1)?)?;
        known.module.as_deref().filter(|_| known.segment.range.contains(&address))
    }

    /// Returns `true` if the code at `address`, which has no table, has no caller. That is the case
    /// for a program's entry point, and for the code of a thread that ends it once its function
    /// returns.
    pub(crate) fn is_outermost(&self, address: u64) -> bool {
        /// Length that covers any program's entry code.
        const ENTRY_CODE_BYTES: u64 = 64;
        self.module_at(address).is_some_and(|module| {
            let is_first = module.entry.is_some_and(|entry| {
                let begins = entry..entry.saturating_add(ENTRY_CODE_BYTES);
                begins.contains(&address)
            });
            is_first || calls::is_thread_exit(&module.read_code(address))
        })
    }
}

impl LoadedModule {
    /// Reads the file's tables, at most `room` bytes.
    fn for_segment(segment: &MappedSegment, depth: ReadDepth, max_bytes: u64) -> Option<Self> {
        Self::read(&segment.open()?, segment, depth, max_bytes)
    }

    pub(crate) fn read(
        file: &ElfFile,
        segment: &MappedSegment,
        depth: ReadDepth,
        max_bytes: u64,
    ) -> Option<Self> {
        let bias = file.load_bias(&segment.range, segment.file_offset)?;
        let section = |name: &[u8]| file.section(name);
        let address = |name: &[u8]| section(name).map_or(0, |section| section.address);
        let eh_frame_address = address(b".eh_frame");
        let hdr_address = address(b".eh_frame_hdr");
        let bases = BaseAddresses::default()
            .set_eh_frame(eh_frame_address)
            .set_eh_frame_hdr(hdr_address)
            .set_text(address(b".text"))
            .set_got(address(b".got"));
        let debug_frame = section(b".debug_frame");
        let wanted = [
            section(b".eh_frame"),
            section(b".eh_frame_hdr"),
            debug_frame.filter(|_| depth == ReadDepth::Full),
        ];
        let (parts, copied, has_all) = copy_sections(file, wanted, max_bytes);
        let [eh_frame, eh_frame_hdr, debug_frame_part] = parts;
        let eh_frame_hdr = eh_frame_hdr
            .filter(|hdr| index::parse_table(hdr).is_some())
            .map(|hdr| (hdr, hdr_address));
        let mut is_complete = has_all && (depth == ReadDepth::Full || debug_frame.is_none());
        let mut eh_index = FdeIndex::default();
        if let (Some(section), None) = (&eh_frame, &eh_frame_hdr) {
            if depth == ReadDepth::Full {
                let mut table = EhFrame::new(section, LittleEndian);
                table.set_address_size(8);
                let built = FdeIndex::build(&table, &bases);
                is_complete &= built.is_ok();
                eh_index = built.unwrap_or_default();
            } else {
                is_complete = false;
            }
        }
        let mut debug_index = FdeIndex::default();
        if let Some(section) = &debug_frame_part {
            let mut table = DebugFrame::new(section, LittleEndian);
            table.set_address_size(8);
            let built = FdeIndex::build(&table, &bases);
            is_complete &= built.is_ok();
            debug_index = built.unwrap_or_default();
        }
        Some(Self {
            segment: segment.clone(),
            bias,
            bases,
            eh_frame,
            eh_frame_hdr,
            eh_frame_address,
            eh_index,
            debug_frame: debug_frame_part,
            debug_index,
            entry: file.entry().map(|entry| entry.wrapping_add(bias)),
            copied_bytes: copied,
            is_complete,
        })
    }

    /// Returns `.eh_frame` and the offset of its nearest entry at or below `address` of the file.
    pub(crate) fn eh_entry(&self, address: u64) -> Option<(&[u8], usize)> {
        let section = self.eh_frame.as_deref()?;
        let offset = match &self.eh_frame_hdr {
            Some((hdr, at)) => {
                let entry = index::find_entry(index::parse_table(hdr)?, *at, address)?;
                usize::try_from(entry.wrapping_sub(self.eh_frame_address)).ok()?
            }
            None => self.eh_index.fde_offset(address)?,
        };
        (offset < section.len()).then_some((section, offset))
    }

    /// Returns the same for `.debug_frame`.
    pub(crate) fn debug_entry(&self, address: u64) -> Option<(&[u8], usize)> {
        let section = self.debug_frame.as_deref()?;
        let offset = self.debug_index.fde_offset(address)?;
        (offset < section.len()).then_some((section, offset))
    }

    /// Returns up to [`CODE_BYTES`] bytes from `address` within the segment. They are read from
    /// memory, because the file may have been replaced. Unreadable bytes are omitted.
    fn read_code(&self, address: u64) -> CodeRange {
        let mut code = CodeRange { bytes: [0; CODE_BYTES], length: 0 };
        let remaining = self.segment.range.end.saturating_sub(address);
        let length = usize::try_from(remaining).unwrap_or(CODE_BYTES).min(CODE_BYTES);
        if let Some(buffer) = code.bytes.get_mut(..length) {
            code.length = own_memory::read(address, buffer);
        }
        code
    }
}

struct CodeRange {
    bytes: [u8; CODE_BYTES],
    length: usize,
}

impl Deref for CodeRange {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.bytes.get(..self.length).unwrap_or_default()
    }
}

/// Copies sections into one mapping. Returns the parts, their total length, and `true` if every
/// section that the file claims to have was copied.
fn copy_sections<const N: usize>(
    file: &ElfFile,
    sections: [Option<ElfSection>; N],
    max_bytes: u64,
) -> ([Option<ModuleSection>; N], u64, bool) {
    let mut has_all = true;
    let mut total = 0u64;
    let places = sections.map(|section| {
        let section = section?;
        let end = total.checked_add(section.size);
        let fits = !section.is_compressed
            && section.size <= MAX_TABLE_BYTES
            && file.contains_section(&section);
        let Some(end) = end.filter(|&end| fits && end <= max_bytes) else {
            // No unwinder uses a compressed table.
            has_all &= section.is_compressed;
            return None;
        };
        let range = usize::try_from(total).ok()?..usize::try_from(end).ok()?;
        total = end;
        Some((section.offset, range))
    });
    let copy = MappedCopy::with_contents(usize::try_from(total).unwrap_or(usize::MAX), |bytes| {
        places.iter().flatten().try_for_each(|(offset, range)| {
            file.read_exact(bytes.get_mut(range.clone()).unwrap_or_default(), *offset)
        })
    });
    match copy.map(Arc::new) {
        Ok(copy) => {
            let part = |(_, range)| ModuleSection { copy: Arc::clone(&copy), range };
            (places.map(|place| place.map(part)), total, has_all)
        }
        Err(_) => ([const { None }; N], 0, false),
    }
}

#[cfg(all(test, target_os = "linux", not(miri)))]
#[path = "modules_tests.rs"]
mod tests;
