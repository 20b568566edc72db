//! Symbolization of file addresses. Independent of the running process.
//!
//! ```text
//! frame address - mapping.start + mapping.file_offset   offset in the file
//!   - p_offset + p_vaddr of the segment containing it    address given by the linker
//!   -> the symbol around it                              function name
//! ```
//!
//! Each file is opened once and its build ID is compared with the mapping's. Its `.symtab` is read
//! once from front to back against the sorted list of addresses. A file without `.symtab` uses that
//! of its debug file, or else its `.dynsym`. No table of all symbols is built. The memory is a 60
//! KiB buffer, about 100 bytes per address and the names found, regardless of the size of the
//! binary.
//!
//! Files are read with `pread` instead of being mapped. If a mapped file is truncated, as by a
//! deployment that copies over the running binary, an access raises SIGBUS in the service. A
//! `pread` returns fewer bytes, which is an error here. It also keeps this module free of unsafe
//! code. The cost is one copy of the symbol table through the page cache, a few milliseconds for a
//! table of 10 MB.
//!
//! DWARF is not read during a capture. It provides lines and inlined functions, but its memory can
//! kill a process near its memory limit. Profiles contain build IDs and addresses, so a reader with
//! the binary can add lines later. `marple symbolize` (feature `cli`) does so with `lines`; see
//! [`Mapping::has_functions`](crate::model::Mapping::has_functions).
//!
//! Code outside any file gets the name that the engine which generated it wrote to
//! `/tmp/perf-PID.map`. Without one, all such code gets a single name, so that it is one row.
//!
//! A frame in no symbol of its file gets no line. Go's pprof shows such a frame as `[libc.so.6]`
//! with its address; an invented name would look like an existing function. C++ names stay mangled,
//! both as name and as system name.

mod aliases;
mod debug_file;
mod files;
mod generated;
mod image;
#[cfg(feature = "cli")]
mod lines;
mod lookup;
mod name;
mod owner;

use std::collections::HashMap;
use std::convert::Infallible;
use std::path::PathBuf;
use std::sync::Arc;

use crate::model::{
    Frame, FrameHandle, Function, FunctionHandle, Line, Mapping, Profile, StringHandle, StringTable,
};

use image::ElfImage;

pub use aliases::listed_names;
pub use files::{CodeIdentity, NamedSymbol, SymbolFailure, SymbolFiles, UnverifiedFile};
pub use generated::{ANONYMOUS_CODE, GeneratedCode, memfd_name};
#[cfg(feature = "cli")]
pub use lines::{Lines, SourceFrame, build_id};
pub use name::DemangledName;
pub use owner::{ApplicationFunction, application_function};
pub(crate) use owner::{FunctionOwner, is_application, is_glue};

/// An error that leaves a mapping without names, or without some of them.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The file could not be opened or read.
    #[error("{path}: cannot read function names: {source}")]
    Read {
        /// The file.
        path: PathBuf,
        /// The cause.
        source: std::io::Error,
    },
    /// The path does not name a regular file.
    #[error("{path}: not a regular file, so function names are not read from it")]
    NotRegularFile {
        /// The path.
        path: PathBuf,
    },
    /// The file's tables contradict each other, or it is not an ELF file.
    #[error("{path}: not a valid ELF file: {reason}")]
    Malformed {
        /// The file.
        path: PathBuf,
        /// The defect.
        reason: &'static str,
    },
    /// The file is not the one that was mapped.
    #[error(
        "{path}: has build ID `{found}`, but the code that ran has `{mapped}`: \
         the file was replaced; symbolize with the old file"
    )]
    BuildIdMismatch {
        /// The file.
        path: PathBuf,
        /// The mapping's build ID, or empty if it has none.
        mapped: String,
        /// The file's build ID, or empty if it has none.
        found: String,
    },
    /// The file was modified while it was mapped, and has no build ID to check its content by.
    #[error("{path}: modified after it was loaded, so function names are not read from it")]
    Modified {
        /// The file.
        path: PathBuf,
    },
    /// The file has debug information but no code, so file offsets cannot be mapped to addresses.
    #[cfg(feature = "cli")]
    #[error("{path}: contains debug information only; also pass the binary it was split from")]
    NoCode {
        /// The file.
        path: PathBuf,
    },
    /// Neither the file nor a debug file of it has DWARF.
    #[cfg(feature = "cli")]
    #[error(
        "{path}: has no debug information, and no debug file with its build ID is below \
         /usr/lib/debug or beside it; build with `debug = \"line-tables-only\"`, or pass the \
         unstripped file"
    )]
    NoDwarf {
        /// The file.
        path: PathBuf,
    },
    /// The file's DWARF cannot be used.
    #[cfg(feature = "cli")]
    #[error("{path}: cannot read debug information: {reason}")]
    Dwarf {
        /// The file with the DWARF.
        path: PathBuf,
        /// The defect.
        reason: String,
    },
    /// Reading the file would exceed a limit on the cost of a capture.
    #[error("{path}: {what} exceeds the limit of {limit}; symbolize this profile offline")]
    TooLarge {
        /// The file.
        path: PathBuf,
        /// The quantity that is too large.
        what: &'static str,
        /// The limit.
        limit: u64,
    },
}

/// Result of [`symbolize`].
#[derive(Debug, Default)]
pub struct SymbolReport {
    /// Frames that have a function.
    pub named: usize,
    /// Frames without a function: outside every mapping, in no symbol, or in a file of `problems`.
    pub unnamed: usize,
    /// Files without usable names. Each is also a comment of the profile.
    pub problems: Vec<Error>,
}

/// A frame to symbolize. Sorts by mapping, then by file offset.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
struct FrameLookup {
    mapping: usize,
    file_offset: u64,
    frame: usize,
}

/// Adds to each frame of `profile` the function that contains its address, if the files name one.
///
/// Frames with lines keep them. [`has_functions`](crate::model::Mapping::has_functions) is set for
/// a mapping if all its frames have a function afterwards, so that a reader can still symbolize the
/// others. An unusable file does not fail the call: it becomes a problem of the report and a
/// comment of the profile.
///
/// Costs one pass over the symbol table of each mapped file with a frame.
pub fn symbolize(profile: &mut Profile) -> SymbolReport {
    let wanted = frames_to_symbolize(profile);
    let mut files = SymbolFiles::default();
    let mut report = SymbolReport::default();
    let mut named: Vec<Option<FunctionHandle>> = vec![None; profile.frames.iter().len()];
    let mut functions = Functions::new(&profile.functions);
    for frames in wanted.chunk_by(|a, b| a.mapping == b.mapping) {
        let Some(mapping) = frames.first().and_then(|first| profile.mappings.get(first.mapping))
        else {
            continue;
        };
        let offsets = frames.iter().map(|wanted| wanted.file_offset);
        let mut last = None;
        let result = files.look_up(mapping, offsets, |place, symbol| {
            let Some(symbol) = symbol else { return Ok(()) };
            if symbol.is_new || last.is_none() {
                let strings = &mut profile.strings;
                last = Some(functions.intern(strings, &mut profile.functions, &symbol));
            }
            let frame = frames.get(place).map(|wanted| wanted.frame);
            if let Some(slot) = frame.and_then(|frame| named.get_mut(frame)) {
                *slot = last;
            }
            Ok::<(), Infallible>(())
        });
        match result {
            Ok(CodeIdentity::Verified) => {}
            Ok(CodeIdentity::Unverified) => {
                profile.comments.push(UnverifiedFile(&mapping.path).to_string());
            }
            Err(SymbolFailure::Callback(never)) => match never {},
            Err(SymbolFailure::File(problem)) => {
                profile.comments.push(problem.to_string());
                report.problems.push(problem);
            }
        }
    }
    name_generated_code(profile);
    let mut complete: Vec<Option<bool>> = vec![None; profile.mappings.len()];
    for (frame, function) in profile.frames.iter_mut().zip(named) {
        if let Some(function) = function {
            frame.lines.push(Line { function, line: 0 });
        }
        let has_line = !frame.lines.is_empty();
        *(if has_line { &mut report.named } else { &mut report.unnamed }) += 1;
        if let Some(all) = frame.mapping.and_then(|mapping| complete.get_mut(mapping.index())) {
            *all = Some(all.unwrap_or(true) && has_line);
        }
    }
    for (mapping, complete) in profile.mappings.iter_mut().zip(complete) {
        mapping.has_functions = complete.unwrap_or(mapping.has_functions);
    }
    report
}

/// Names the frames that are in no file, or in a file that exists in memory only.
fn name_generated_code(profile: &mut Profile) {
    let file_of = |frame: &Frame| {
        let mapping = frame.mapping.and_then(|handle| profile.mappings.get(handle.index()));
        mapping.map(|mapping| mapping.path.as_path())
    };
    let mut wanted: Vec<(u64, FrameHandle)> = Vec::new();
    for (handle, frame) in profile.frames.handles().zip(profile.frames.iter()) {
        if frame.lines.is_empty() && file_of(frame).is_none_or(|path| memfd_name(path).is_some()) {
            wanted.push((frame.address, handle));
        }
    }
    if wanted.is_empty() {
        return;
    }
    wanted.sort_unstable_by_key(|&(address, _)| address);
    let mut names: Vec<String> = Vec::with_capacity(wanted.len());
    let named = GeneratedCode::with_capacity(wanted.len()).look_up(
        &wanted,
        |&(address, _)| address,
        |place, name| {
            let frame = wanted.get(place).map(|&(_, handle)| profile.frames.get(handle));
            let fallback = || {
                let path = frame.and_then(file_of);
                let name = path.and_then(memfd_name).map(|name| name.to_string());
                name.unwrap_or_else(|| ANONYMOUS_CODE.to_owned())
            };
            names.push(name.map_or_else(fallback, str::to_owned));
            Ok::<(), Infallible>(())
        },
    );
    let Ok(()) = named;
    for ((_, frame), name) in wanted.into_iter().zip(names) {
        profile.name_frame(frame, &name);
    }
}

/// Opens the debug files of stripped files, and keeps them open with the files.
///
/// Costs a few failed opens for each stripped file without a debug file.
pub fn find_debug_files(mappings: &[Mapping]) {
    for mapping in mappings {
        if let Some(file) = mapping.file.as_ref().filter(|file| file.debug_file().is_none())
            && let Ok(image) = ElfImage::read(Arc::clone(file), &mapping.path)
        {
            let _ = debug_file::with_symbols(&image);
        }
    }
}

/// Returns the reason why functions in the file of `mapping` have no names, or `None` if they have
/// names. Reads headers only.
pub fn missing_symbols_reason(mapping: &Mapping) -> Option<String> {
    let image = match &mapping.file {
        Some(file) => ElfImage::read(Arc::clone(file), &mapping.path),
        None => ElfImage::open(&mapping.path),
    };
    match image {
        Err(error) => Some(error.to_string()),
        Ok(image) if image.has_all_symbols() || debug_file::with_symbols(&image).is_some() => None,
        Ok(_) => Some(format!(
            "{} has no symbol table (it was stripped), and no debug file of it is beside it or \
             below /usr/lib/debug; build with `strip = \"debuginfo\"` or keep the debug file there",
            mapping.path.display()
        )),
    }
}

/// Returns the frames without lines in mapped files, sorted by mapping and file offset.
fn frames_to_symbolize(profile: &Profile) -> Vec<FrameLookup> {
    let mut wanted: Vec<FrameLookup> = profile
        .frames
        .iter()
        .enumerate()
        .filter(|(_, frame)| frame.lines.is_empty())
        .filter_map(|(index, frame)| {
            let handle = frame.mapping?;
            let mapping = profile.mappings.get(handle.index())?;
            // "[vdso]" and similar names are not files.
            let inside = (mapping.start..mapping.end).contains(&frame.address);
            let file_offset =
                (frame.address.checked_sub(mapping.start)?).checked_add(mapping.file_offset)?;
            (inside && mapping.path.is_absolute() && memfd_name(&mapping.path).is_none())
                .then_some(FrameLookup { mapping: handle.index(), file_offset, frame: index })
        })
        .collect();
    wanted.sort_unstable();
    wanted
}

/// Functions of a profile by system name and name. Two addresses may share the system name and
/// differ in the name, if other functions were folded into one of them.
struct Functions(HashMap<(StringHandle, StringHandle), FunctionHandle>);

impl Functions {
    fn new(functions: &[Function]) -> Self {
        let handles = (0..).map(FunctionHandle);
        Self(functions.iter().map(|known| (known.system_name, known.name)).zip(handles).collect())
    }

    fn intern(
        &mut self,
        strings: &mut StringTable,
        functions: &mut Vec<Function>,
        symbol: &NamedSymbol<'_>,
    ) -> FunctionHandle {
        let system_name = strings.intern(symbol.system_name);
        let name = strings.intern(symbol.name);
        *self.0.entry((system_name, name)).or_insert_with(|| {
            functions.push(Function { name, system_name, file: StringHandle::EMPTY });
            FunctionHandle(functions.len() as u32 - 1)
        })
    }
}
