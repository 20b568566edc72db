//! What the unwinder knows of the loaded files: immutable once built.

use std::ops::{Deref, Range};

use framehop::{
    ExplicitModuleSectionInfo, Module, MustNotAllocateDuringUnwind, Unwinder, UnwinderNative,
};
use object::{Object, ObjectSection, ObjectSegment};

use super::images::{self, Image, Segment, load_bias};

/// A part of a file's bytes, as framehop holds it.
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

/// The unwind information of every segment that has any, and what it was made from.
pub(super) struct Modules {
    pub(super) unwinder: UnwinderNative<Section, MustNotAllocateDuringUnwind>,
    known: Vec<Known>,
}

/// A segment and what was found for it.
struct Known {
    segment: Segment,
    module: Option<Module<Section>>,
    /// Whether it was still loaded when the table was read.
    is_loaded: bool,
}

impl Modules {
    pub(super) fn empty() -> Self {
        Self { unwinder: UnwinderNative::new(), known: Vec::new() }
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
                None => module(&segment),
            };
            modules.add(Known { segment, module, is_loaded: true });
        }
        for Known { segment, module, .. } in old.iter().filter(|known| known.is_loaded) {
            let overlaps = |known: &Known| {
                let range = &known.segment.range;
                range.start < segment.range.end && segment.range.start < range.end
            };
            if !modules.known.iter().any(overlaps) {
                let (segment, module) = (segment.clone(), module.clone());
                modules.add(Known { segment, module, is_loaded: false });
            }
        }
        Ok(modules)
    }

    /// Whether `address` is in a segment that has unwind information.
    pub(super) fn holds(&self, address: u64) -> bool {
        self.known
            .iter()
            .any(|known| known.module.is_some() && known.segment.range.contains(&address))
    }

    fn add(&mut self, known: Known) {
        if let Some(module) = &known.module {
            self.unwinder.add_module(module.clone());
        }
        self.known.push(known);
    }
}

fn module(segment: &Segment) -> Option<Module<Section>> {
    let image = segment.open()?;
    let file = object::File::parse(&*image).ok()?;
    let bias = load_bias(&file, segment)?;
    let base_svma = file.segments().map(|load| load.address()).min()?;
    let section = |name: &[u8]| {
        let section = file.section_by_name_bytes(name)?;
        let (offset, size) = section.file_range()?;
        let start = usize::try_from(offset).ok()?;
        let range = start..start.checked_add(usize::try_from(size).ok()?)?;
        image.get(range.clone())?;
        let addresses = section.address()..section.address().checked_add(section.size())?;
        Some((addresses, Section { image: image.clone(), range }))
    };
    let (eh_frame_svma, eh_frame) = section(b".eh_frame")?;
    let (eh_frame_hdr_svma, eh_frame_hdr) = section(b".eh_frame_hdr").unzip();
    let addresses = |name: &[u8]| Some(section(name)?.0);
    let info = ExplicitModuleSectionInfo {
        base_svma,
        text_svma: addresses(b".text"),
        text: None,
        stubs_svma: None,
        stub_helper_svma: None,
        got_svma: addresses(b".got"),
        unwind_info: None,
        eh_frame_svma: Some(eh_frame_svma),
        eh_frame: Some(eh_frame),
        eh_frame_hdr_svma,
        eh_frame_hdr,
        debug_frame: None,
        text_segment_svma: None,
        text_segment: None,
    };
    let name = segment.path.to_string_lossy().into_owned();
    Some(Module::new(name, segment.range.clone(), bias.wrapping_add(base_svma), info))
}
