//! The file that holds what was stripped from another.
//!
//! Distributions and careful builds strip what they install and keep the rest in a file of its own,
//! which debuggers find in two ways: by the build id, below one directory of the machine, and by a name
//! in the stripped file (`objcopy --add-gnu-debuglink`), beside it. Both are tried where a file has no
//! symbol table of its own; a file of another build id is none of its, whatever its name. A file
//! without a build id gets nothing: the checksum in the link would have to be taken over the whole
//! debug file, which may be gigabytes.
//!
//! In a capture only its symbol table is read, like that of any other file. The cost where there is none is a few
//! failed opens for each stripped file.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::image::Image;

/// Where a machine keeps them.
const MACHINES: &str = "/usr/lib/debug";

/// The file with all symbols of `stripped`, if it lies where debuggers look.
pub(super) fn of(stripped: &Image) -> Option<Image> {
    if stripped.has_all_symbols() {
        return None;
    }
    // Found before, and held since: a deployment replaces it together with what it was stripped from.
    if let Some(file) = stripped.file().debug() {
        return Image::read(Arc::clone(file), stripped.path()).ok();
    }
    let found = find(stripped, Image::has_all_symbols)?;
    stripped.file().set_debug(Arc::clone(found.file()));
    Some(found)
}

/// The file with the DWARF of `stripped`, if it lies where debuggers look.
#[cfg(feature = "cli")]
pub(super) fn with_dwarf(stripped: &Image) -> Option<Image> {
    find(stripped, Image::has_dwarf)
}

fn find(stripped: &Image, has_what_is_wanted: impl Fn(&Image) -> bool) -> Option<Image> {
    if stripped.build_id().is_empty() {
        return None;
    }
    candidates(stripped, Path::new(MACHINES))
        .into_iter()
        .filter_map(|path| Image::open(&path).ok())
        .find(|file| file.build_id() == stripped.build_id() && has_what_is_wanted(file))
}

/// Where it may lie, likeliest first.
fn candidates(stripped: &Image, machines: &Path) -> Vec<PathBuf> {
    let mut candidates = Vec::new();
    if let Some((folder, file)) = stripped.build_id().split_at_checked(2) {
        candidates.push(machines.join(".build-id").join(folder).join(format!("{file}.debug")));
    }
    if let (Some(name), Some(folder)) = (stripped.debug_link(), stripped.path().parent()) {
        let in_machines = folder.strip_prefix("/").map(|folder| machines.join(folder));
        let folders = [Ok(folder.to_owned()), Ok(folder.join(".debug")), in_machines];
        candidates.extend(folders.into_iter().flatten().map(|folder| folder.join(name)));
    }
    candidates
}
