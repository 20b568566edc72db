//! Source lines and inlined functions of addresses, from DWARF.
//!
//! For the command line, on a machine without an incident. The DWARF of a file is mapped and
//! parsed, which takes several times its size in memory and seconds for a large binary. If the file
//! is overwritten in place meanwhile, `SIGBUS` ends the command: use a copy of a file that a
//! deployment replaces. In the captured process only symbol tables are read, by `pread`; see the
//! header of the parent module.
//!
//! `addr2line` reads the DWARF, including split DWARF (`.dwo`, `.dwp`). If the file is stripped,
//! its debug file is searched for in the places that debuggers use; see
//! [`debug_file`].

use std::fmt;
use std::path::{Path, PathBuf};

use addr2line::Loader;

use super::Error;
use super::debug_file;
use super::image::ElfImage;
use super::name::DemangledName;

/// A function that contains an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFrame {
    /// The mangled name of the function, or `None` if DWARF has no name.
    pub system_name: Option<String>,
    /// Its source file, as passed to the compiler.
    pub file: Option<String>,
    /// The line, or 0 if unknown.
    pub line: u32,
    /// The column, or 0 if unknown.
    pub column: u32,
}

impl SourceFrame {
    /// Returns the demangled name of the function.
    pub fn name(&self) -> Option<String> {
        self.system_name.as_deref().map(|name| DemangledName(name).to_string())
    }
}

/// A binary with line information.
pub struct Lines {
    image: ElfImage,
    /// The file with the DWARF: the binary itself or its debug file.
    dwarf_path: PathBuf,
    loader: Loader,
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("file", &self.image.path()).finish_non_exhaustive()
    }
}

impl Lines {
    /// Opens a binary and reads its DWARF. All `files` are of one build: the binary that ran, and
    /// its debug file if debuggers would not find it.
    ///
    /// # Errors
    ///
    /// If a file cannot be read or is not an ELF file, or if the binary is not among them. Also if
    /// neither they nor a debug file found elsewhere have DWARF.
    pub fn open(files: &[PathBuf]) -> Result<Self, Error> {
        let path = files.first().cloned().unwrap_or_default();
        let mut images = Vec::new();
        for file in files {
            images.push(ElfImage::open(file)?);
        }
        let own_dwarf =
            images.iter().find(|image| image.has_dwarf()).map(|image| image.path().to_owned());
        let image = images.into_iter().find(ElfImage::has_code);
        let image = image.ok_or(Error::NoCode { path })?;
        let debug_file_dwarf =
            || debug_file::with_dwarf(&image).map(|debug| debug.path().to_owned());
        let dwarf = own_dwarf
            .or_else(debug_file_dwarf)
            .ok_or_else(|| Error::NoDwarf { path: image.path().to_owned() })?;
        let loader = Loader::new(&dwarf)
            .map_err(|error| Error::Dwarf { path: dwarf.clone(), reason: error.to_string() })?;
        Ok(Self { image, dwarf_path: dwarf, loader })
    }

    /// Returns the functions that contain the code at `file_offset` of the binary, the innermost
    /// inlined function first. Empty if DWARF does not cover it.
    ///
    /// # Errors
    ///
    /// If the DWARF for it is damaged.
    pub fn frames_at(&self, file_offset: u64) -> Result<Vec<SourceFrame>, Error> {
        let Some(address) = self.image.address_of(file_offset) else { return Ok(Vec::new()) };
        let damaged = |reason: String| Error::Dwarf { path: self.dwarf_path.clone(), reason };
        let mut found = self.loader.find_frames(address).map_err(|e| damaged(e.to_string()))?;
        let mut frames = Vec::new();
        while let Some(frame) = found.next().map_err(|error| damaged(error.to_string()))? {
            let name = frame.function.as_ref().and_then(|name| name.raw_name().ok());
            let location = frame.location.as_ref();
            frames.push(SourceFrame {
                system_name: name.map(|name| name.into_owned()),
                file: location.and_then(|place| place.file).map(str::to_owned),
                line: location.and_then(|place| place.line).unwrap_or(0),
                column: location.and_then(|place| place.column).unwrap_or(0),
            });
        }
        Ok(frames)
    }
}

/// Returns the build ID of the file at `path` in lower-case hex. Empty if it has none.
///
/// # Errors
///
/// If the file cannot be read or is not an ELF file.
pub fn build_id(path: &Path) -> Result<String, Error> {
    Ok(ElfImage::open(path)?.build_id().to_owned())
}
