//! A mapped segment of a loaded file.

use super::elf::{ElfFile, ElfSource};
use super::own_memory;
use crate::base::CodeFile;
use crate::model::Mapping;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;

/// An address range that is mapped from a file.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct MappedSegment {
    pub(crate) range: Range<u64>,
    pub(crate) file_offset: u64,
    /// Path as the kernel reports it; after settling, the path at first use.
    pub(crate) path: PathBuf,
    /// Device as in the kernel's list. On some file systems `stat` reports another device or inode.
    pub(crate) device: u64,
    pub(crate) inode: u64,
    pub(crate) is_main: bool,
    /// Address range of the start of the file, which contains the headers.
    pub(crate) header: Option<Range<u64>>,
    pub(crate) build_id: String,
    pub(crate) file: Option<Arc<CodeFile>>,
}

impl MappedSegment {
    /// Returns `true` if `other` is the same range of the same file, regardless of its path.
    pub(crate) fn is_same_range(&self, other: &Self) -> bool {
        self.range == other.range
            && self.file_offset == other.file_offset
            && self.device == other.device
            && self.inode == other.inode
    }

    /// Returns `true` if `other` is the [same place](Self::is_same_range), with the same build ID
    /// if both are known.
    pub(crate) fn is_same_mapping(&self, other: &Self) -> bool {
        let is_known = !self.build_id.is_empty() && !other.build_id.is_empty();
        self.is_same_range(other) && (!is_known || self.build_id == other.build_id)
    }

    pub(crate) fn into_mapping(self) -> Mapping {
        Mapping {
            start: self.range.start,
            end: self.range.end,
            file_offset: self.file_offset,
            path: self.path,
            build_id: self.build_id,
            has_functions: false,
            file: self.file,
        }
    }

    /// Returns `true` if this is the kernel's vdso, which has no file.
    pub(crate) fn is_vdso(&self) -> bool {
        self.path.as_os_str() == VDSO
    }

    /// Opens the file and reads its headers. Returns `None` if it is not available or not a plain
    /// file.
    pub(crate) fn open(&self) -> Option<ElfFile> {
        if self.is_vdso() {
            return self.copy_vdso();
        }
        if let Some(file) = &self.file {
            return ElfFile::read(ElfSource::File(Arc::clone(file)));
        }
        let path = if self.is_main { Path::new(EXE) } else { self.path.as_path() };
        ElfFile::read(ElfSource::File(Arc::new(CodeFile::open(path).ok()?)))
    }

    fn copy_vdso(&self) -> Option<ElfFile> {
        let length = self.range.end.checked_sub(self.range.start).filter(|&n| n <= MAX_VDSO)?;
        let mut bytes = vec![0; usize::try_from(length).ok()?];
        let read = own_memory::read(self.range.start, &mut bytes);
        (read == bytes.len()).then(|| ElfFile::read(ElfSource::Copy(bytes)))?
    }
}

pub(crate) const EXE: &str = "/proc/self/exe";

/// Number of files the loader has loaded and unloaded so far.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Loads {
    pub(crate) loaded: u64,
    pub(crate) unloaded: u64,
}

pub(crate) const VDSO: &str = "[vdso]";

/// Maximum vdso size. No vdso is larger; a larger one is not copied.
pub(crate) const MAX_VDSO: u64 = 1 << 20;
