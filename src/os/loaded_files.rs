//! The files of loaded code, as they were when they were first seen.
//!
//! A deployment replaces or removes the files of a running program and its libraries. What identifies the code at an
//! address is therefore settled once: the build ID is read from the mapped image itself, and a descriptor of the file
//! is held. Later its path may lead anywhere.
//!
//! ```text
//! program    /proc/self/exe        the original, whatever became of its path
//! library    its path              if the file has the build ID of the mapped image
//!            /proc/self/map_files  else; needs CAP_CHECKPOINT_RESTORE or CAP_SYS_ADMIN
//! ```
//!
//! A library that was unloaded keeps its entry until something else is mapped in its place: there are samples in it.

use crate::base::sync::Mutex;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use std::sync::{Arc, PoisonError, Weak};

use super::elf::{ElfFile, Source};
use super::images::{EXE, Loads, Segment};
use super::process::descriptor_limit;
use crate::base::{CodeFile, spare, warnings};

/// Files held open. A service has about ten; of a program that loads more, the rest is opened for each read, as long
/// as its path leads to it.
const MAX_HELD: u64 = 64;

/// Segments of unloaded files that are remembered: a host that loads another file each time stays bounded.
const MAX_UNLOADED: usize = 1024;

/// The part of the descriptor limit that is held at most, besides those that are reserved for captures.
const SHARE: u64 = 2048;

/// What the kernel appends to the path of a file that has none any more.
const DELETED: &[u8] = b" (deleted)";

const TOPIC: &str = "symbols.descriptors";

static REGISTRY: Mutex<Registry> = Mutex::new(Registry::new());

fn with<T>(use_registry: impl FnOnce(&mut Registry) -> T) -> T {
    use_registry(&mut REGISTRY.lock().unwrap_or_else(PoisonError::into_inner))
}

/// Gives each of these segments, which are all there are, the file and the build ID it was first seen with.
pub(super) fn settle(segments: &mut [Segment], loads: Loads) {
    with(|registry| registry.settle(segments, loads));
}

/// The segments of unloaded files that overlap none of `loaded`.
pub(super) fn unloaded(loaded: &[Segment]) -> Vec<Segment> {
    let unloaded = |registry: &mut Registry| {
        let known = registry.known.iter().filter(|known| !known.is_loaded);
        known.map(|known| known.segment.clone()).collect::<Vec<_>>()
    };
    let mut unloaded = with(unloaded);
    unloaded.retain(|old| !loaded.iter().any(|segment| overlap(old, segment)));
    unloaded
}

/// Whether `generation` is another than that of the last call.
pub(super) fn begin_generation(generation: u64) -> bool {
    with(|registry| registry.generation.replace(generation) != Some(generation))
}

/// Holds no more descriptors than a process that has `open` of `limit` can do without.
pub(super) fn keep_within(open: Option<u64>, limit: Option<u64>) {
    let short = with(|registry| {
        let own = registry.descriptors();
        registry.allowed = allowed(open.unwrap_or(own), limit, own);
        registry.balance()
    });
    match (short, limit) {
        (files @ 1.., Some(limit)) => warnings::set(
            TOPIC,
            format!(
                "function names of {files} files of the service will be missing once a deployment replaces them: their \
                 descriptors are not held, because the process is short of them (RLIMIT_NOFILE {limit}); raise \
                 the limit"
            ),
        ),
        _ => warnings::clear(TOPIC),
    }
}

/// One descriptor of 2048, and none of the last quarter: a service with the usual limit of 1024 needs its own. And those
/// that are reserved in any case.
fn allowed(open: u64, limit: Option<u64>, own: u64) -> u64 {
    let Some(limit) = limit else { return MAX_HELD };
    let others = open.saturating_sub(own);
    let more = (limit / SHARE).min((limit / 4 * 3).saturating_sub(others));
    (more + spare::places_for_code()).min(MAX_HELD)
}

fn overlap(a: &Segment, b: &Segment) -> bool {
    a.range.start < b.range.end && b.range.start < a.range.end
}

struct Registry {
    /// Loaded ones in the order of the last list, then unloaded ones, the latest first.
    known: Vec<Known>,
    /// Files that have left the table, which profiles in the making may still refer to.
    retired: Vec<Weak<CodeFile>>,
    loads: Loads,
    generation: Option<u64>,
    /// Descriptors that may be held.
    allowed: u64,
    /// Whether `allowed` was asked of the process.
    is_counted: bool,
}

struct Known {
    segment: Segment,
    is_loaded: bool,
}

impl Default for Registry {
    fn default() -> Self {
        Self::new()
    }
}

impl Registry {
    const fn new() -> Self {
        Self {
            known: Vec::new(),
            retired: Vec::new(),
            loads: Loads { loaded: 0, unloaded: 0 },
            generation: None,
            allowed: MAX_HELD,
            is_counted: false,
        }
    }

    fn settle(&mut self, segments: &mut [Segment], loads: Loads) {
        if !self.is_counted {
            // How many descriptors are open is known at the first tick.
            self.allowed = allowed(0, descriptor_limit(), 0);
            self.is_counted = true;
        }
        // If nothing was unloaded, a file that was written to is still the one that was loaded, with another
        // content: what is known of it stays, and reading names from it fails.
        let may_be_another = loads.unloaded != self.loads.unloaded;
        self.loads = loads;
        let mut old = std::mem::take(&mut self.known);
        for segment in segments.iter_mut() {
            let place = old.iter().position(|known| known.segment.is_same_place(segment));
            let known = place.map(|place| old.remove(place));
            let (known, another) = match known {
                Some(known) if known.is_loaded && !may_be_another || known.is_certain() => {
                    (Some(known), None)
                }
                other => (None, other),
            };
            match known {
                Some(known) => *segment = known.segment,
                None => self.learn(segment, &old),
            }
            self.known.push(Known { segment: segment.clone(), is_loaded: true });
            self.retire(another);
        }
        let is_free = |old: &Known| !segments.iter().any(|now| overlap(&old.segment, now));
        let (mut kept, replaced): (Vec<Known>, Vec<Known>) = old.into_iter().partition(is_free);
        let beyond = kept.split_off(kept.len().min(MAX_UNLOADED));
        self.known.extend(kept.into_iter().map(|old| Known { is_loaded: false, ..old }));
        self.retire(replaced.into_iter().chain(beyond));
        self.balance();
    }

    /// Finds out which file `segment` is of.
    fn learn(&self, segment: &mut Segment, old: &[Known]) {
        if segment.is_vdso() {
            segment.build_id = segment.open().map(|image| image.build_id()).unwrap_or_default();
            return;
        }
        let same = self.known.iter().chain(old).find(|known| {
            let other = &known.segment;
            other.inode == segment.inode && other.device == segment.device && known.is_certain()
        });
        if let Some(Known { segment: same, .. }) = same {
            segment.path.clone_from(&same.path);
            segment.build_id.clone_from(&same.build_id);
            segment.file.clone_from(&same.file);
            return;
        }
        let mapped = segment.header.clone().and_then(|at| ElfFile::read(Source::Memory(at)));
        segment.build_id = mapped.map(|image| image.build_id()).unwrap_or_default();
        if let Some(path) = before_deletion(segment) {
            segment.path = path;
        }
        let linked =
            format!("/proc/self/map_files/{:x}-{:x}", segment.range.start, segment.range.end);
        let path = if segment.is_main { Path::new(EXE) } else { segment.path.as_path() };
        let found = [path, Path::new(&linked)].into_iter().find_map(|path| open(path, segment));
        if let Some((file, build_id)) = found {
            if self.descriptors() + file.descriptors() > self.allowed {
                file.release();
            }
            segment.build_id = build_id;
            segment.file = Some(Arc::new(file));
        }
    }

    fn retire(&mut self, gone: impl IntoIterator<Item = Known>) {
        self.retired.retain(|file| file.strong_count() > 0);
        let files = gone.into_iter().filter_map(|known| known.segment.file);
        self.retired.extend(files.map(|file| Arc::downgrade(&file)));
    }

    /// The files, each once.
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
        self.files().iter().map(|file| file.descriptors()).sum()
    }

    /// Holds as many files as may be: loaded ones first, and of these the service's own before the system's. Returns
    /// how many loaded ones of the service are not held.
    fn balance(&mut self) -> usize {
        let is_loaded = |file: &Arc<CodeFile>| {
            let mut loaded = self.known.iter().filter(|known| known.is_loaded);
            loaded.any(|known| known.segment.file.as_ref().is_some_and(|it| Arc::ptr_eq(it, file)))
        };
        let mut files = self.files();
        files.sort_by_cached_key(|file| (!is_loaded(file), is_of_the_system(file.path())));
        let (mut held, mut short) = (0, 0);
        for file in &files {
            if held + file.wanted_descriptors() <= self.allowed {
                file.hold();
                held += file.descriptors();
            } else {
                file.release();
                short += usize::from(is_loaded(file) && !is_of_the_system(file.path()));
            }
        }
        // The last ones, so that the first to be closed are those that matter least.
        let held = files.into_iter().rev().filter(|file| file.is_held());
        spare::set_code_files(held.take(spare::places_for_code() as usize));
        short
    }
}

impl Known {
    /// Whether the file is known to be the one that was seen, with the same content.
    fn is_certain(&self) -> bool {
        self.segment.file.as_ref().is_some_and(|file| file.is_held() && !file.is_rewritten())
    }
}

/// Returns whether the file comes with the system, which deployments of a service leave alone.
fn is_of_the_system(path: &Path) -> bool {
    ["/lib", "/lib64", "/usr/lib", "/usr/lib64"].iter().any(|folder| path.starts_with(folder))
}

/// Opens the file at `path` if it is the one that `segment` is of. Returns it and its build ID.
fn open(path: &Path, segment: &Segment) -> Option<(CodeFile, String)> {
    let file = Arc::new(CodeFile::open(path).ok()?);
    let build_id = ElfFile::read(Source::File(Arc::clone(&file)))?.build_id();
    let is_it = if segment.build_id.is_empty() {
        // On overlay file systems and btrfs the device differs from that of `stat`, the inode does not.
        segment.is_main || file.inode() == segment.inode
    } else {
        build_id == segment.build_id
    };
    let file = Arc::into_inner(file)?;
    is_it.then_some((file, build_id))
}

/// The path of a file before it was removed or replaced, if it was.
fn before_deletion(segment: &Segment) -> Option<PathBuf> {
    let path = segment.path.as_os_str().as_bytes().strip_suffix(DELETED)?;
    // A file may be called so.
    let is_called_so = fs::metadata(&segment.path).is_ok_and(|file| file.ino() == segment.inode);
    (!is_called_so).then(|| PathBuf::from(OsStr::from_bytes(path)))
}
