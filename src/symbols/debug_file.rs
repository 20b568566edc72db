//! Search for the debug file of a stripped file.
//!
//! Distributions and careful builds strip installed files and keep their symbols in a separate
//! debug file. Debuggers find it in two ways: by build ID below one directory of the machine, and
//! by a name in the stripped file (`objcopy --add-gnu-debuglink`) beside it. Both are tried if a
//! file has no symbol table. A debug file with a different build ID is rejected, whatever its name.
//! A file without a build ID gets no debug file: the checksum in the link covers the whole debug
//! file, which may be gigabytes.
//!
//! In a capture only the symbol table of a debug file is read, as of any other file. Without a
//! debug file, the cost is a few failed opens for each stripped file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::image::ElfImage;

/// Global directory of debug files.
const GLOBAL_DEBUG_DIR: &str = "/usr/lib/debug";

/// Returns the debug file with the symbols of `stripped`, if it is in a place that debuggers use.
pub(super) fn with_symbols(stripped: &ElfImage) -> Option<ElfImage> {
    if stripped.has_all_symbols() {
        return None;
    }
    // A file found earlier stays open, because a deployment replaces it together with the stripped
    // file.
    if let Some(file) = stripped.file().debug_file() {
        return ElfImage::read(Arc::clone(file), stripped.path()).ok();
    }
    let found = find(stripped, ElfImage::has_all_symbols)?;
    stripped.file().set_debug_file(Arc::clone(found.file()));
    Some(found)
}

/// Returns the debug file with the DWARF of `stripped`, if it is in a place that debuggers use.
#[cfg(feature = "cli")]
pub(super) fn with_dwarf(stripped: &ElfImage) -> Option<ElfImage> {
    find(stripped, ElfImage::has_dwarf)
}

fn find(stripped: &ElfImage, is_suitable: impl Fn(&ElfImage) -> bool) -> Option<ElfImage> {
    if stripped.build_id().is_empty() {
        return None;
    }
    candidates(stripped, Path::new(GLOBAL_DEBUG_DIR))
        .into_iter()
        .filter_map(|path| ElfImage::open(&path).ok())
        .find(|file| file.build_id() == stripped.build_id() && is_suitable(file))
}

/// Returns the paths to try, most likely first.
fn candidates(stripped: &ElfImage, debug_dir: &Path) -> Vec<PathBuf> {
    let mut candidates = Vec::new();
    if let Some((folder, file)) = stripped.build_id().split_at_checked(2) {
        candidates.push(debug_dir.join(".build-id").join(folder).join(format!("{file}.debug")));
    }
    if let (Some(name), Some(folder)) = (stripped.debug_link(), stripped.path().parent()) {
        let below_debug_dir = folder.strip_prefix("/").map(|folder| debug_dir.join(folder));
        let folders = [Ok(folder.to_owned()), Ok(folder.join(".debug")), below_debug_dir];
        candidates.extend(folders.into_iter().flatten().map(|folder| folder.join(name)));
    }
    candidates
}
