//! Open files and repeated lookups in them.
//!
//! A file is read through the descriptor that its mapping has held since it was loaded. Without
//! one, it is opened by its path. A repeated lookup neither opens files nor allocates.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::Error;
use super::aliases::AliasNames;
use super::debug_file;
use super::image::ElfImage;
use super::lookup::{Aliases, SymbolLookup};
use crate::model::Mapping;

/// Maximum number of files whose headers stay in memory. A service has about ten. Beyond the limit,
/// the least recently used file is evicted and read again at its next use.
const MAX_OPEN_FILES: usize = 64;

/// Result of comparing a file with the one that was mapped.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum CodeIdentity {
    /// The file has the mapping's build ID, or was opened when the mapping was first seen.
    Verified,
    /// The file was opened by the mapping's path, and neither has a build ID.
    Unverified,
}

/// A warning that the function names from a file are [unverified](CodeIdentity::Unverified).
pub struct UnverifiedFile<'a>(pub &'a Path);

impl fmt::Display for UnverifiedFile<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let path = self.0.display();
        write!(
            f,
            "{path}: has no build ID, so the function names may be those of a different file at \
             this path"
        )
    }
}

/// The names of a function.
#[derive(Clone, Copy)]
pub struct NamedSymbol<'a> {
    /// The mangled name, as in the symbol table; the first one if several functions were folded
    /// into one.
    pub system_name: &'a str,
    /// The demangled name. Includes the names of functions folded into it.
    pub name: &'a str,
    /// `true` if the function differs from that of the previous address.
    pub is_new: bool,
}

/// An error that ends a lookup.
#[derive(Debug)]
pub enum SymbolFailure<E> {
    /// The file cannot be opened or read, or differs from the mapped one.
    File(Error),
    /// The callback returned an error.
    Callback(E),
}

impl<E> From<Error> for SymbolFailure<E> {
    fn from(error: Error) -> Self {
        Self::File(error)
    }
}

/// An open file, and its debug file if it is stripped.
struct KnownFile {
    path: PathBuf,
    image: ElfImage,
    debug: Option<ElfImage>,
    /// `true` if the file was opened by the mapping's path.
    is_by_path: bool,
    /// The number of the last lookup that used the file.
    last_lookup: u64,
}

impl KnownFile {
    /// Opens the file of `mapping`, if it is still the one that was mapped.
    fn open(mapping: &Mapping) -> Result<Self, Error> {
        let image = match &mapping.file {
            Some(file) => ElfImage::read(Arc::clone(file), &mapping.path)?,
            None => ElfImage::open(&mapping.path)?,
        };
        if image.build_id() != mapping.build_id {
            return Err(Error::BuildIdMismatch {
                path: mapping.path.clone(),
                mapped: mapping.build_id.clone(),
                found: image.build_id().to_owned(),
            });
        }
        if mapping.build_id.is_empty() && image.file().is_modified() {
            return Err(Error::Modified { path: mapping.path.clone() });
        }
        let debug = debug_file::with_symbols(&image);
        let is_by_path = mapping.file.is_none();
        Ok(Self { path: mapping.path.clone(), image, debug, is_by_path, last_lookup: 0 })
    }

    fn matches(&self, mapping: &Mapping) -> bool {
        let is_same_file = match &mapping.file {
            Some(file) => Arc::ptr_eq(file, self.image.file()),
            None => self.is_by_path,
        };
        is_same_file && self.path == mapping.path && self.image.build_id() == mapping.build_id
    }

    /// Returns the file with the symbols. Addresses are those of the linker in both files.
    fn symbol_image(&self) -> &ElfImage {
        self.debug.as_ref().unwrap_or(&self.image)
    }
}

/// Open files and reusable buffers for lookups.
#[derive(Default)]
pub struct SymbolFiles {
    open_files: Vec<KnownFile>,
    lookup: SymbolLookup,
    aliases: Vec<Option<Aliases>>,
    names: AliasNames,
    lookup_count: u64,
}

impl SymbolFiles {
    /// Creates buffers for `max_addresses` addresses per lookup: 180 KiB and about 130 bytes per
    /// address. All of it is written to, so that lookups cause no page faults.
    pub fn with_capacity(max_addresses: usize) -> Self {
        Self {
            open_files: Vec::with_capacity(MAX_OPEN_FILES),
            lookup: SymbolLookup::with_capacity(max_addresses),
            aliases: vec![Some(Aliases::FILLER); max_addresses],
            names: AliasNames::with_reserved_capacity(),
            lookup_count: 0,
        }
    }

    /// Opens the files of these mappings in advance. A file that cannot be opened is tried again at
    /// its lookup.
    pub fn open_all(&mut self, mappings: &[Mapping]) {
        for mapping in mappings.iter().filter(|mapping| mapping.path.is_absolute()) {
            if self.index_of(mapping).is_none() && self.open_files.len() < MAX_OPEN_FILES {
                self.open_files.extend(KnownFile::open(mapping));
            }
        }
    }

    /// Returns the index of the file of `mapping` in `open_files`.
    fn index_of(&self, mapping: &Mapping) -> Option<usize> {
        self.open_files.iter().position(|known| known.matches(mapping))
    }

    /// Evicts the least recently used file if the limit is reached.
    fn evict_if_full(&mut self) {
        let oldest = self.open_files.iter().enumerate().min_by_key(|(_, known)| known.last_lookup);
        let index = oldest.map(|(index, _)| index);
        if let Some(index) = index.filter(|_| self.open_files.len() >= MAX_OPEN_FILES) {
            drop(self.open_files.swap_remove(index));
        }
    }

    /// Looks up the functions at `offsets` in the mapped file, which must be sorted. Calls `visit`
    /// with the index of each offset and its function, or `None` if no function contains it. Costs
    /// one pass over the file's symbol table.
    ///
    /// # Errors
    ///
    /// [`SymbolFailure::File`] if the file cannot be used, in which case `visit` may have been
    /// called for some of the offsets. [`SymbolFailure::Callback`] with the error that `visit`
    /// returned.
    pub fn look_up<E>(
        &mut self,
        mapping: &Mapping,
        offsets: impl Iterator<Item = u64> + Clone,
        mut visit: impl FnMut(usize, Option<NamedSymbol<'_>>) -> Result<(), E>,
    ) -> Result<CodeIdentity, SymbolFailure<E>> {
        self.lookup_count += 1;
        let index = match self.index_of(mapping) {
            Some(index) => index,
            None => {
                self.evict_if_full();
                self.open_files.push(KnownFile::open(mapping)?);
                self.open_files.len() - 1
            }
        };
        let Self { open_files, lookup, aliases, names, lookup_count } = self;
        let Some(known) = open_files.get_mut(index) else { return Ok(CodeIdentity::Unverified) };
        if known.image.file().is_modified() {
            // The headers in memory may be out of date. `open` fails if the build ID differs.
            *known = KnownFile::open(mapping)?;
        }
        known.last_lookup = *lookup_count;
        let known = &*known;
        let image = &known.image;
        // The lookup requires sorted addresses. An offset in no segment, or in segments out of
        // order, therefore gets the highest address before it. Its symbol is discarded below.
        let mut highest = 0;
        lookup.set_addresses(offsets.clone().map(|offset| {
            highest = image.address_of(offset).map_or(highest, |address| address.max(highest));
            highest
        }));
        aliases.clear();
        known.symbol_image().symbols_at(lookup, |_, symbol| {
            aliases.push(symbol);
            Ok(())
        })?;
        let mut last = None;
        for (index, (&symbol, offset)) in aliases.iter().zip(offsets).enumerate() {
            let address = image.address_of(offset);
            let symbol = symbol.filter(|_| address.is_some() && address == lookup.address(index));
            let is_new = symbol.is_some() && symbol != last;
            if let Some(symbol) = symbol.filter(|_| is_new) {
                names.read(known.symbol_image(), &symbol)?;
                last = Some(symbol);
            }
            let function =
                (symbol.is_some() && !names.display_name().is_empty()).then_some(NamedSymbol {
                    system_name: names.system_name(),
                    name: names.display_name(),
                    is_new,
                });
            visit(index, function).map_err(SymbolFailure::Callback)?;
        }
        Ok(if mapping.build_id.is_empty() && known.is_by_path {
            CodeIdentity::Unverified
        } else {
            CodeIdentity::Verified
        })
    }
}
