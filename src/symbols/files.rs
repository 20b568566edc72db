//! Open files, and one look into them after another.
//!
//! A file is read through the descriptor that its mapping has held since it was loaded; without one, it is opened by its
//! path. Looking again neither opens nor allocates.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Error;
use super::aliases::Names;
use super::debug_file;
use super::image::Image;
use super::table::{Aliases, Wants};
use crate::model::Mapping;

/// Files whose headers are kept. A service has some ten; of a program that loads more, those used least lately are read
/// again each time.
const MAX_OPEN: usize = 64;

/// Whether a file is known to be the one that was mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Identity {
    /// It has the mapping's build id, or is the file that was opened when the mapping was first seen.
    Checked,
    /// It was opened by the mapping's path, and neither has a build id.
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
    /// As the linker knows it; the first of several functions that were folded into one.
    pub system_name: &'a str,
    /// As its author knows it; names the others, too.
    pub name: &'a str,
    /// Whether it is another than that of the address before.
    pub is_new: bool,
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
    /// Whether it was opened by the mapping's path.
    is_by_path: bool,
    /// The number of the look at which it was used last.
    used: u64,
}

impl Known {
    /// The file of `mapping`, if it is still the one that was mapped.
    fn open(mapping: &Mapping) -> Result<Self, Error> {
        let image = match &mapping.file {
            Some(file) => Image::read(Arc::clone(file), &mapping.path)?,
            None => Image::open(&mapping.path)?,
        };
        if image.build_id() != mapping.build_id {
            return Err(Error::OtherBuild {
                path: mapping.path.clone(),
                mapped: mapping.build_id.clone(),
                found: image.build_id().to_owned(),
            });
        }
        if mapping.build_id.is_empty() && image.file().is_rewritten() {
            return Err(Error::Rewritten { path: mapping.path.clone() });
        }
        let debug = debug_file::of(&image);
        let is_by_path = mapping.file.is_none();
        Ok(Self { path: mapping.path.clone(), image, debug, is_by_path, used: 0 })
    }

    /// Whether it is the file of `mapping`.
    fn is_of(&self, mapping: &Mapping) -> bool {
        let is_same_file = match &mapping.file {
            Some(file) => Arc::ptr_eq(file, self.image.file()),
            None => self.is_by_path,
        };
        is_same_file && self.path == mapping.path && self.image.build_id() == mapping.build_id
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
    found: Vec<Option<Aliases>>,
    names: Names,
    /// Counts looks.
    look: u64,
}

impl Files {
    /// With room for `most` addresses at once: about 130 bytes for each and 180 KiB, all written to.
    pub fn reserve(most: usize) -> Self {
        Self {
            open: Vec::with_capacity(MAX_OPEN),
            wants: Wants::reserve(most),
            found: vec![Some(Aliases::UNLIKELY); most],
            names: Names::reserve(),
            look: 0,
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
        self.open.iter().position(|known| known.is_of(mapping))
    }

    /// Makes room for another file.
    fn evict(&mut self) {
        let oldest = self.open.iter().enumerate().min_by_key(|(_, known)| known.used);
        let oldest = oldest.map(|(place, _)| place);
        if let Some(place) = oldest.filter(|_| self.open.len() >= MAX_OPEN) {
            drop(self.open.swap_remove(place));
        }
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
        self.look += 1;
        let place = match self.place(mapping) {
            Some(place) => place,
            None => {
                self.evict();
                self.open.push(Known::open(mapping)?);
                self.open.len() - 1
            }
        };
        let Self { open, wants, found, names, look } = self;
        let Some(known) = open.get_mut(place) else { return Ok(Identity::Unknown) };
        if known.image.file().is_rewritten() {
            // Its headers may be others, and its build id says whether its content is.
            *known = Known::open(mapping)?;
        }
        known.used = *look;
        let known = &*known;
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
            if let Some(aliases) = symbol.filter(|_| is_new) {
                names.read(known.symbols(), &aliases)?;
                last = Some(aliases);
            }
            let function = (symbol.is_some() && !names.shown().is_empty()).then_some(Symbol {
                system_name: names.system_name(),
                name: names.shown(),
                is_new,
            });
            see(place, function).map_err(Failure::See)?;
        }
        Ok(if mapping.build_id.is_empty() && known.is_by_path {
            Identity::Unknown
        } else {
            Identity::Checked
        })
    }
}
