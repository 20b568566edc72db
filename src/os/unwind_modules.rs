//! What the unwinder knows of the loaded files: immutable once built.

use std::ops::{Deref, Range};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};

use gimli::{BaseAddresses, CieOrFde, DebugFrame, EhFrame, LittleEndian, UnwindSection};
use object::{Object, ObjectSection, SectionFlags};

use super::images::{self, Image, Segment, load_bias};
use super::unwind_calls;
use super::unwind_tables::Bytes;

/// An index of a table is made of no more entries: 12 MB.
const MAX_INDEX: usize = 1 << 20;

/// A part of a file's bytes.
pub(super) struct Section {
    image: Image,
    range: Range<usize>,
}

impl Deref for Section {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.image.get(self.range.clone()).unwrap_or_default()
    }
}

/// A segment of code, the file's bytes and where its tables are in them.
pub(super) struct Module {
    segment: Segment,
    image: Image,
    /// What to add to an address of the file.
    pub(super) bias: u64,
    pub(super) bases: BaseAddresses,
    pub(super) eh_frame: Option<Section>,
    pub(super) eh_frame_hdr: Option<Section>,
    /// Of `.eh_frame`, where the linker made none.
    pub(super) eh_index: Index,
    pub(super) debug_frame: Option<Section>,
    pub(super) debug_index: Index,
    /// Where the program begins, as the process has it.
    entry: u64,
}

/// Where the entries of a table begin, by the addresses they are of.
#[derive(Default)]
pub(super) struct Index(Vec<(u64, u32)>);

/// Every segment of code, and what was made of it.
pub(super) struct Modules {
    /// Never 0 and never that of another table.
    pub(super) generation: u32,
    /// By address.
    known: Vec<Known>,
}

/// A segment and what was found for it.
struct Known {
    segment: Segment,
    module: Option<Arc<Module>>,
    /// Whether it was still loaded when the table was read.
    is_loaded: bool,
}

impl Modules {
    pub(super) fn empty() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(1);
        Self { generation: NEXT.fetch_add(1, Ordering::Relaxed).max(1), known: Vec::new() }
    }

    /// Reads what is loaded now. What `old` has already read is shared with it, not read again. What was
    /// loaded then and is not now stays in this one table more, where nothing has taken its place: stacks
    /// that were copied before the unloading are still to be walked.
    pub(super) fn read(old: Option<&Self>) -> Result<Self, images::Error> {
        let old = old.map_or(&[][..], |old| &old.known);
        let mut modules = Self::empty();
        for segment in images::segments()? {
            let known = old.iter().find(|known| known.segment == segment);
            let module = match known {
                Some(known) => known.module.clone(),
                None => Module::of(&segment).map(Arc::new),
            };
            modules.known.push(Known { segment, module, is_loaded: true });
        }
        for Known { segment, module, .. } in old.iter().filter(|known| known.is_loaded) {
            let overlaps = |known: &Known| {
                let range = &known.segment.range;
                range.start < segment.range.end && segment.range.start < range.end
            };
            if !modules.known.iter().any(overlaps) {
                let (segment, module) = (segment.clone(), module.clone());
                modules.known.push(Known { segment, module, is_loaded: false });
            }
        }
        modules.known.sort_by_key(|known| known.segment.range.start);
        Ok(modules)
    }

    /// Whether `address` is in a segment that has unwind information.
    pub(super) fn holds(&self, address: u64) -> bool {
        self.at(address)
            .is_some_and(|module| module.eh_frame.is_some() || module.debug_frame.is_some())
    }

    /// The segment that `address` is in.
    pub(super) fn at(&self, address: u64) -> Option<&Module> {
        let after = self.known.partition_point(|known| known.segment.range.start <= address);
        let known = self.known.get(after.checked_sub(1)?)?;
        known.module.as_deref().filter(|_| known.segment.range.contains(&address))
    }

    /// Whether nobody called the code at `address`, which has no table: a program's first instructions, or
    /// those of a thread, which end it once its function returns.
    pub(super) fn is_outermost(&self, address: u64) -> bool {
        /// No program's first instructions are more.
        const BEGINNING: u64 = 64;
        self.at(address).is_some_and(|module| {
            let begins = module.entry..module.entry.saturating_add(BEGINNING);
            begins.contains(&address) || unwind_calls::ends_the_thread(module.code(address))
        })
    }

    /// The function that is called right before `address`, by name and not through a pointer.
    pub(super) fn called_before(&self, address: u64) -> Option<u64> {
        let call = address.checked_sub(unwind_calls::CALL)?;
        let code = self.at(call)?.code(call);
        unwind_calls::target(code, address)
    }

    /// Where `function` has set its frame pointer, if it begins with that.
    pub(super) fn sets_frame_pointer(&self, function: u64) -> Option<u64> {
        let length = unwind_calls::sets_frame_pointer(self.at(function)?.code(function))?;
        function.checked_add(length)
    }
}

impl Index {
    /// The nearest entry at or below `address`.
    pub(super) fn fde(&self, address: u64) -> Option<usize> {
        let after = self.0.partition_point(|(start, _)| *start <= address);
        self.0.get(after.checked_sub(1)?).map(|(_, offset)| *offset as usize)
    }

    /// Of all entries up to the first that cannot be read.
    fn of<'a, S: UnwindSection<Bytes<'a>>>(section: &S, bases: &BaseAddresses) -> Self {
        let mut index = Vec::new();
        let mut entries = section.entries(bases);
        while let Ok(Some(entry)) = entries.next() {
            let CieOrFde::Fde(entry) = entry else { continue };
            let Ok(fde) = entry.parse(S::cie_from_offset) else { continue };
            if let Ok(offset) = u32::try_from(fde.offset())
                && index.len() < MAX_INDEX
            {
                index.push((fde.initial_address(), offset));
            }
        }
        index.sort_unstable();
        Self(index)
    }
}

impl Module {
    fn of(segment: &Segment) -> Option<Self> {
        let image = segment.open()?;
        let file = object::File::parse(&*image).ok()?;
        let bias = load_bias(&file, segment)?;
        let section = |name: &[u8]| {
            let section = file.section_by_name_bytes(name)?;
            if let SectionFlags::Elf { sh_flags, .. } = section.flags()
                && sh_flags.0 & object::elf::SHF_COMPRESSED.0 != 0
            {
                return None;
            }
            let (offset, size) = section.file_range()?;
            let start = usize::try_from(offset).ok()?;
            let range = start..start.checked_add(usize::try_from(size).ok()?)?;
            image.get(range.clone())?;
            Some((section.address(), Section { image: image.clone(), range }))
        };
        let address = |name: &[u8]| file.section_by_name_bytes(name).map_or(0, |it| it.address());
        let eh_frame = section(b".eh_frame");
        let eh_frame_hdr = section(b".eh_frame_hdr");
        let debug_frame = section(b".debug_frame").map(|(_, section)| section);
        let bases = BaseAddresses::default()
            .set_eh_frame(eh_frame.as_ref().map_or(0, |(address, _)| *address))
            .set_eh_frame_hdr(eh_frame_hdr.as_ref().map_or(0, |(address, _)| *address))
            .set_text(address(b".text"))
            .set_got(address(b".got"));
        let eh_index = match (&eh_frame, &eh_frame_hdr) {
            (Some((_, section)), None) => {
                let mut table = EhFrame::new(section, LittleEndian);
                table.set_address_size(8);
                Index::of(&table, &bases)
            }
            _ => Index::default(),
        };
        let debug_index = debug_frame.as_deref().map_or_else(Index::default, |section| {
            let mut table = DebugFrame::new(section, LittleEndian);
            table.set_address_size(8);
            Index::of(&table, &bases)
        });
        let entry = match file.entry() {
            0 => u64::MAX,
            entry => entry.wrapping_add(bias),
        };
        Some(Self {
            segment: segment.clone(),
            bias,
            bases,
            eh_frame: eh_frame.map(|(_, section)| section),
            eh_frame_hdr: eh_frame_hdr.map(|(_, section)| section),
            eh_index,
            debug_frame,
            debug_index,
            entry,
            image,
        })
    }

    /// The bytes from `address` to the end of the segment.
    fn code(&self, address: u64) -> &[u8] {
        let Segment { range, file_offset, .. } = &self.segment;
        let bytes = || {
            let start = usize::try_from(file_offset + address.checked_sub(range.start)?).ok()?;
            let length = usize::try_from(range.end.checked_sub(address)?).ok()?;
            self.image.get(start..start.saturating_add(length).min(self.image.len()))
        };
        bytes().unwrap_or_default()
    }
}
