//! Open files, and one look into them after another.
//!
//! A file stays open once it was looked into, so that the names of a binary that a deployment has since
//! replaced can still be had, and looking again neither opens nor allocates.

use std::fmt;
use std::path::{Path, PathBuf};

use super::Error;
use super::debug_file;
use super::image::{Image, MAX_SYSTEM_NAME};
use super::name::Readable;
use super::table::Wants;
use crate::model::Mapping;

/// Files kept open. A service has some ten; of a program that loads more, the rest is opened each time.
const MAX_OPEN: usize = 64;

/// Whether a file is known to be the one that was mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// It has the mapping's build id.
    Checked,
    /// Neither has one.
    Unknown,
}

/// What to tell the reader of names from a file of [`Identity::Unknown`].
pub struct Unchecked<'a>(pub &'a Path);

impl fmt::Display for Unchecked<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.0.display();
        write!(
            f,
            "{path}: has no build id: its names are those of the file at this path, unchecked"
        )
    }
}

/// A function's names.
#[derive(Clone, Copy)]
pub struct Symbol<'a> {
    /// As the linker knows it.
    pub system_name: &'a str,
    /// Whether it is another than that of the address before.
    pub is_new: bool,
}

impl<'a> Symbol<'a> {
    /// As its author knows it.
    pub fn name(&self) -> Readable<'a> {
        Readable(self.system_name)
    }
}

/// Why looking ended early.
#[derive(Debug)]
pub enum Failure<E> {
    /// The file gives no names, or no more of them.
    File(Error),
    /// Who was shown them had enough.
    See(E),
}

impl<E> From<Error> for Failure<E> {
    fn from(error: Error) -> Self {
        Self::File(error)
    }
}

/// A file, and the one its symbols are in if they were stripped from it.
struct Known {
    path: PathBuf,
    image: Image,
    debug: Option<Image>,
}

impl Known {
    /// The file of `mapping`, if it is still the one that was mapped.
    fn open(mapping: &Mapping) -> Result<Self, Error> {
        let image = Image::open(&mapping.path)?;
        if image.build_id() != mapping.build_id {
            return Err(Error::OtherBuild {
                path: mapping.path.clone(),
                mapped: mapping.build_id.clone(),
                found: image.build_id().to_owned(),
            });
        }
        let debug = debug_file::of(&image);
        Ok(Self { path: mapping.path.clone(), image, debug })
    }

    /// Where its symbols are. Addresses are the linker's in both files.
    fn symbols(&self) -> &Image {
        self.debug.as_ref().unwrap_or(&self.image)
    }
}

/// Files that have been looked into, and room for looking.
#[derive(Default)]
pub struct Files {
    open: Vec<Known>,
    wants: Wants,
    found: Vec<Option<u32>>,
    name: Vec<u8>,
}

impl Files {
    /// With room for `most` addresses at once: about 90 bytes for each and 80 KiB, all written to.
    pub fn reserve(most: usize) -> Self {
        Self {
            open: Vec::with_capacity(MAX_OPEN),
            wants: Wants::reserve(most),
            found: vec![Some(u32::MAX); most],
            name: vec![u8::MAX; MAX_SYSTEM_NAME + 256],
        }
    }

    /// Opens the files of these mappings, so that looking into them later does not. One that cannot be
    /// opened is tried again then.
    pub fn open(&mut self, mappings: &[Mapping]) {
        for mapping in mappings.iter().filter(|mapping| mapping.path.is_absolute()) {
            if self.place(mapping).is_none() && self.open.len() < MAX_OPEN {
                self.open.extend(Known::open(mapping));
            }
        }
    }

    /// Where the file of `mapping` is among those that are open.
    fn place(&self, mapping: &Mapping) -> Option<usize> {
        self.open.iter().position(|known| {
            known.path == mapping.path && known.image.build_id() == mapping.build_id
        })
    }

    /// Calls `see` with the place of each of these offsets of the mapped file, which must be sorted, and
    /// the function it lies in, if it lies in any. Costs one pass over the file's symbol table.
    ///
    /// # Errors
    ///
    /// [`Failure::File`], for nothing if before the first call of `see`; what `see` returned.
    pub fn look_up<E>(
        &mut self,
        mapping: &Mapping,
        offsets: impl Iterator<Item = u64> + Clone,
        mut see: impl FnMut(usize, Option<Symbol<'_>>) -> Result<(), E>,
    ) -> Result<Identity, Failure<E>> {
        if self.place(mapping).is_none() && self.open.len() < MAX_OPEN {
            self.open.push(Known::open(mapping)?);
        }
        let place = self.place(mapping);
        let Self { open, wants, found, name } = self;
        let passing;
        let known = match place.and_then(|place| open.get(place)) {
            Some(known) => known,
            None => {
                passing = Known::open(mapping)?;
                &passing
            }
        };
        let image = &known.image;
        // What lies in no segment, or in segments out of order, keeps its place but is not believed.
        let mut highest = 0;
        wants.set(offsets.clone().map(|offset| {
            highest = image.address_of(offset).map_or(highest, |address| address.max(highest));
            highest
        }));
        found.clear();
        known.symbols().symbols_at(wants, |_, symbol| {
            found.push(symbol);
            Ok(())
        })?;
        let mut last = None;
        for (place, (&symbol, offset)) in found.iter().zip(offsets).enumerate() {
            let address = image.address_of(offset);
            let symbol = symbol.filter(|_| address.is_some() && address == wants.address(place));
            let is_new = symbol.is_some() && symbol != last;
            if let Some(offset) = symbol.filter(|_| is_new) {
                known.symbols().read_name(offset, name)?;
                last = Some(offset);
            }
            let system_name = String::from_utf8_lossy(name);
            // Mapping symbols of the assembler ($x, $d) mark kinds of content, not functions.
            let function = (symbol.is_some() && !matches!(name.first(), None | Some(b'$')))
                .then_some(Symbol { system_name: &system_name, is_new });
            see(place, function).map_err(Failure::See)?;
        }
        Ok(if mapping.build_id.is_empty() { Identity::Unknown } else { Identity::Checked })
    }
}
