//! The files of loaded code, in their state at first use.
//!
//! A deployment replaces or removes the files of a running program and its libraries. The identity
//! of the code at an address is therefore determined once: the build ID is read from the mapped
//! image itself, and a descriptor of the file is held. Later the path may lead to another file.
//!
//! ```text
//! program    /proc/self/exe        the original, even if its path has changed
//! library    its path              if the file has the build ID of the mapped image
//!            /proc/self/map_files  otherwise; needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN
//! ```
//!
//! An unloaded library keeps its entry until its addresses are mapped again, because samples may
//! refer to it.

use crate::base::sync::Mutex;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use std::sync::{Arc, PoisonError, Weak};

use super::elf::{ElfFile, ElfSource};
use crate::base::{CodeFile, spare, warnings};
use crate::os::mapped_segment::{EXE, Loads, MappedSegment};
use crate::os::proc::process::descriptor_limit;

/// Maximum number of files held open. A service has about ten. Files beyond the limit are opened
/// for each read, as long as the path leads to them.
const MAX_HELD_DESCRIPTORS: u64 = 64;

/// Maximum number of remembered segments of unloaded files; bounds the memory of a host that
/// repeatedly loads new files.
const MAX_UNLOADED: usize = 1024;

/// Divisor of the descriptor limit: one descriptor in 2048 may be held, in addition to those
/// reserved for captures.
const DESCRIPTOR_LIMIT_DIVISOR: u64 = 2048;

/// Suffix that the kernel appends to the path of a deleted file.
const DELETED_SUFFIX: &[u8] = b" (deleted)";

const TOPIC: &str = "symbols.descriptors";

static REGISTRY: Mutex<FileRegistry> = Mutex::new(FileRegistry::new());

fn with_registry<T>(use_registry: impl FnOnce(&mut FileRegistry) -> T) -> T {
    use_registry(&mut REGISTRY.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Sets the file and the build ID of each segment to those at its first use. `segments` must be
/// complete.
pub(super) fn resolve_files(segments: &mut [MappedSegment], loads: Loads) {
    with_registry(|registry| registry.resolve_files(segments, loads));
}

/// Returns the segments of unloaded files that overlap none of `loaded`.
pub(super) fn unloaded(loaded: &[MappedSegment]) -> Vec<MappedSegment> {
    let unloaded = |registry: &mut FileRegistry| {
        let known = registry.known.iter().filter(|known| !known.is_loaded);
        known.map(|known| known.segment.clone()).collect::<Vec<_>>()
    };
    let mut unloaded = with_registry(unloaded);
    unloaded.retain(|old| !loaded.iter().any(|segment| overlaps(old, segment)));
    unloaded
}

/// Stores `generation`. Returns `true` if it differs from that of the last call.
pub(super) fn set_generation(generation: u64) -> bool {
    with_registry(|registry| registry.generation.replace(generation) != Some(generation))
}

/// Limits the held descriptors to the number that a process with `open` of `limit` descriptors can
/// spare.
pub(super) fn limit_descriptors(open: Option<u64>, limit: Option<u64>) {
    let not_held = with_registry(|registry| {
        let own = registry.descriptors();
        registry.max_descriptors = max_held(open.unwrap_or(own), limit, own);
        registry.hold_files()
    });
    match (not_held, limit) {
        (files @ 1.., Some(limit)) => warnings::set(
            TOPIC,
            format!(
                "function names of {files} loaded files will be missing after a deployment \
                 replaces the files: marple does not keep them open, because the process has few \
                 free descriptors (RLIMIT_NOFILE {limit}); raise the limit"
            ),
        ),
        _ => warnings::clear(TOPIC),
    }
}

/// Returns the number of descriptors that may be held.
///
/// ```text
/// min(limit / 2048, limit * 3/4 - open descriptors of the host) + reserved descriptors, at most 64
/// ```
///
/// The last quarter stays free: a service with the usual limit of 1024 needs its descriptors
/// itself.
fn max_held(open: u64, limit: Option<u64>, own: u64) -> u64 {
    let Some(limit) = limit else { return MAX_HELD_DESCRIPTORS };
    let others = open.saturating_sub(own);
    let spare_descriptors =
        (limit / DESCRIPTOR_LIMIT_DIVISOR).min((limit / 4 * 3).saturating_sub(others));
    (spare_descriptors + spare::code_file_capacity()).min(MAX_HELD_DESCRIPTORS)
}

fn overlaps(a: &MappedSegment, b: &MappedSegment) -> bool {
    a.range.start < b.range.end && b.range.start < a.range.end
}

struct FileRegistry {
    /// Loaded segments in the order of the last list, then unloaded ones, the latest first.
    known: Vec<KnownMapping>,
    /// Files removed from the table that unfinished profiles may still refer to.
    retired: Vec<Weak<CodeFile>>,
    loads: Loads,
    generation: Option<u64>,
    /// Number of descriptors that may be held.
    max_descriptors: u64,
    /// Set once `allowed` was computed from the limit of the process.
    is_limit_known: bool,
}

struct KnownMapping {
    segment: MappedSegment,
    is_loaded: bool,
}

impl Default for FileRegistry {
    fn default() -> Self {
        Self::new()
    }
}

impl FileRegistry {
    const fn new() -> Self {
        Self {
            known: Vec::new(),
            retired: Vec::new(),
            loads: Loads { loaded: 0, unloaded: 0 },
            generation: None,
            max_descriptors: MAX_HELD_DESCRIPTORS,
            is_limit_known: false,
        }
    }

    fn resolve_files(&mut self, segments: &mut [MappedSegment], loads: Loads) {
        if !self.is_limit_known {
            // The number of open descriptors is unknown until the first tick.
            self.max_descriptors = max_held(0, descriptor_limit(), 0);
            self.is_limit_known = true;
        }
        // If nothing was unloaded, a file that was written to is still the loaded one, with
        // different content. Its entry stays, and reading names from it fails.
        let may_be_replaced = loads.unloaded != self.loads.unloaded;
        self.loads = loads;
        let mut old = std::mem::take(&mut self.known);
        for segment in segments.iter_mut() {
            let place = old.iter().position(|known| known.segment.is_same_range(segment));
            let known = place.map(|place| old.remove(place));
            let (known, another) = match known {
                Some(known) if known.is_loaded && !may_be_replaced || known.is_original() => {
                    (Some(known), None)
                }
                other => (None, other),
            };
            match known {
                Some(known) => *segment = known.segment,
                None => self.identify_file(segment, &old),
            }
            self.known.push(KnownMapping { segment: segment.clone(), is_loaded: true });
            self.retire(another);
        }
        let is_free = |old: &KnownMapping| !segments.iter().any(|now| overlaps(&old.segment, now));
        let (mut remembered, replaced): (Vec<KnownMapping>, Vec<KnownMapping>) =
            old.into_iter().partition(is_free);
        let excess = remembered.split_off(remembered.len().min(MAX_UNLOADED));
        self.known
            .extend(remembered.into_iter().map(|old| KnownMapping { is_loaded: false, ..old }));
        self.retire(replaced.into_iter().chain(excess));
        self.hold_files();
    }

    /// Determines the file of `segment`.
    fn identify_file(&self, segment: &mut MappedSegment, old: &[KnownMapping]) {
        if segment.is_vdso() {
            segment.build_id = segment.open().map(|image| image.build_id()).unwrap_or_default();
            return;
        }
        let same = self.known.iter().chain(old).find(|known| {
            let other = &known.segment;
            other.inode == segment.inode && other.device == segment.device && known.is_original()
        });
        if let Some(KnownMapping { segment: same, .. }) = same {
            segment.path.clone_from(&same.path);
            segment.build_id.clone_from(&same.build_id);
            segment.file.clone_from(&same.file);
            return;
        }
        let mapped = segment.header.clone().and_then(|at| ElfFile::read(ElfSource::Memory(at)));
        segment.build_id = mapped.map(|image| image.build_id()).unwrap_or_default();
        if let Some(path) = path_before_deletion(segment) {
            segment.path = path;
        }
        let linked =
            format!("/proc/self/map_files/{:x}-{:x}", segment.range.start, segment.range.end);
        let path = if segment.is_main { Path::new(EXE) } else { segment.path.as_path() };
        let found =
            [path, Path::new(&linked)].into_iter().find_map(|path| open_matching(path, segment));
        if let Some((file, build_id)) = found {
            if self.descriptors() + file.open_descriptors() > self.max_descriptors {
                file.release();
            }
            segment.build_id = build_id;
            segment.file = Some(Arc::new(file));
        }
    }

    fn retire(&mut self, removed: impl IntoIterator<Item = KnownMapping>) {
        self.retired.retain(|file| file.strong_count() > 0);
        let files = removed.into_iter().filter_map(|known| known.segment.file);
        self.retired.extend(files.map(|file| Arc::downgrade(&file)));
    }

    /// Returns each file once.
    fn files(&self) -> Vec<Arc<CodeFile>> {
        let mut files: Vec<Arc<CodeFile>> = Vec::new();
        let known = self.known.iter().filter_map(|known| known.segment.file.clone());
        for file in known.chain(self.retired.iter().filter_map(Weak::upgrade)) {
            if !files.iter().any(|other| Arc::ptr_eq(other, &file)) {
                files.push(file);
            }
        }
        files
    }

    fn descriptors(&self) -> u64 {
        self.files().iter().map(|file| file.open_descriptors()).sum()
    }

    /// Holds as many files as allowed: loaded ones first, and of these the service's before the
    /// system's. Returns the number of loaded files of the service that are not held.
    fn hold_files(&mut self) -> usize {
        let is_loaded = |file: &Arc<CodeFile>| {
            let mut loaded = self.known.iter().filter(|known| known.is_loaded);
            loaded.any(|known| {
                known.segment.file.as_ref().is_some_and(|held_file| Arc::ptr_eq(held_file, file))
            })
        };
        let mut files = self.files();
        files.sort_by_cached_key(|file| (!is_loaded(file), is_system_file(file.path())));
        let mut held = 0;
        let mut not_held = 0;
        for file in &files {
            if held + file.max_descriptors() <= self.max_descriptors {
                file.keep_open();
                held += file.open_descriptors();
            } else {
                file.release();
                not_held += usize::from(is_loaded(file) && !is_system_file(file.path()));
            }
        }
        // Reversed, so that the least important files are closed first.
        let held = files.into_iter().rev().filter(|file| file.is_open());
        spare::set_code_files(held.take(spare::code_file_capacity() as usize));
        not_held
    }
}

impl KnownMapping {
    /// Returns `true` if the file is known to be the original one, with unchanged content.
    fn is_original(&self) -> bool {
        self.segment.file.as_ref().is_some_and(|file| file.is_open() && !file.is_modified())
    }
}

/// Returns `true` if the file belongs to the system. Deployments of a service do not replace such
/// files.
fn is_system_file(path: &Path) -> bool {
    ["/lib", "/lib64", "/usr/lib", "/usr/lib64"].iter().any(|folder| path.starts_with(folder))
}

/// Opens the file at `path` if it is the file of `segment`. Returns it with its build ID.
fn open_matching(path: &Path, segment: &MappedSegment) -> Option<(CodeFile, String)> {
    let file = Arc::new(CodeFile::open(path).ok()?);
    let build_id = ElfFile::read(ElfSource::File(Arc::clone(&file)))?.build_id();
    let is_match = if segment.build_id.is_empty() {
        // On overlay file systems and btrfs the device differs from that of `stat`, the inode does
        // not.
        segment.is_main || file.inode() == segment.inode
    } else {
        build_id == segment.build_id
    };
    let file = Arc::into_inner(file)?;
    is_match.then_some((file, build_id))
}

/// Returns the former path of a file that was removed or replaced, or `None` if it was not.
fn path_before_deletion(segment: &MappedSegment) -> Option<PathBuf> {
    let path = segment.path.as_os_str().as_bytes().strip_suffix(DELETED_SUFFIX)?;
    // A file name may really end in ` (deleted)`.
    let is_literal_name = fs::metadata(&segment.path).is_ok_and(|file| file.ino() == segment.inode);
    (!is_literal_name).then(|| PathBuf::from(OsStr::from_bytes(path)))
}
