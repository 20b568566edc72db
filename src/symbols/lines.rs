//! Addresses to source lines and inlined functions, from DWARF.
//!
//! For the command line, on a machine at peace: a file's DWARF is mapped and parsed, which takes some
//! times its size in memory and seconds for a large binary. A file that is overwritten in place meanwhile ends
//! the command with `SIGBUS`: give it a copy of what a deployment replaces. In the process that was captured
//! only symbol tables are read, by `pread`; see the head of this layer.
//!
//! `addr2line` reads it, split DWARF (`.dwo`, `.dwp`) included. Where the file was stripped, its debug
//! file is looked for where debuggers do; see [`debug_file`](super::debug_file).

use std::fmt;
use std::path::{Path, PathBuf};

use addr2line::Loader;

use super::Error;
use super::debug_file;
use super::image::Image;
use super::name::Readable;

/// One of the functions an address lies in.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SourceFrame {
    /// The function's name as the linker knows it, if DWARF tells one.
    pub system_name: Option<String>,
    /// Its source file, as the compiler was told it.
    pub file: Option<String>,
    /// The line in it; 0 when unknown.
    pub line: u32,
    /// The column in that line; 0 when unknown.
    pub column: u32,
}

impl SourceFrame {
    /// The function's name as its author knows it.
    pub fn name(&self) -> Option<String> {
        self.system_name.as_deref().map(|name| Readable(name).to_string())
    }
}

/// A file with lines.
pub struct Lines {
    image: Image,
    /// Where its DWARF is: in the file itself or in its debug file.
    dwarf: PathBuf,
    loader: Loader,
}

impl fmt::Debug for Lines {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Lines").field("file", &self.image.path()).finish_non_exhaustive()
    }
}

impl Lines {
    /// Opens a binary and reads its DWARF. `files` are all of one build: the binary that ran, and what
    /// was stripped from it if that is elsewhere than debuggers look.
    ///
    /// # Errors
    ///
    /// When one cannot be read or is no ELF file, when the binary is not among them, or when neither
    /// they nor its debug file have DWARF.
    pub fn open(files: &[PathBuf]) -> Result<Self, Error> {
        let path = files.first().cloned().unwrap_or_default();
        let mut images = Vec::new();
        for file in files {
            images.push(Image::open(file)?);
        }
        let own =
            images.iter().find(|image| image.has_dwarf()).map(|image| image.path().to_owned());
        let image = images.into_iter().find(Image::has_code);
        let image = image.ok_or(Error::NoCode { path })?;
        let kept = || debug_file::with_dwarf(&image).map(|debug| debug.path().to_owned());
        let dwarf =
            own.or_else(kept).ok_or_else(|| Error::NoLines { path: image.path().to_owned() })?;
        let loader = Loader::new(&dwarf)
            .map_err(|error| Error::Dwarf { path: dwarf.clone(), reason: error.to_string() })?;
        Ok(Self { image, dwarf, loader })
    }

    /// Where the lines come from.
    pub fn dwarf_path(&self) -> &Path {
        &self.dwarf
    }

    /// The functions that the code at `file_offset` of the file lies in, the innermost inlined one
    /// first; empty where DWARF says nothing about it.
    ///
    /// # Errors
    ///
    /// When the DWARF about it is damaged.
    pub fn at(&self, file_offset: u64) -> Result<Vec<SourceFrame>, Error> {
        let Some(address) = self.image.address_of(file_offset) else { return Ok(Vec::new()) };
        let damaged = |reason: String| Error::Dwarf { path: self.dwarf.clone(), reason };
        let mut found = self.loader.find_frames(address).map_err(|e| damaged(e.to_string()))?;
        let mut frames = Vec::new();
        while let Some(frame) = found.next().map_err(|error| damaged(error.to_string()))? {
            let name = frame.function.as_ref().and_then(|name| name.raw_name().ok());
            let place = frame.location.as_ref();
            frames.push(SourceFrame {
                system_name: name.map(|name| name.into_owned()),
                file: place.and_then(|place| place.file).map(str::to_owned),
                line: place.and_then(|place| place.line).unwrap_or(0),
                column: place.and_then(|place| place.column).unwrap_or(0),
            });
        }
        Ok(frames)
    }
}

/// The build id of the file at `path` in lower-case hex; empty when it has none.
///
/// # Errors
///
/// When it cannot be read or is no ELF file.
pub fn build_id(path: &Path) -> Result<String, Error> {
    Ok(Image::open(path)?.build_id().to_owned())
}
