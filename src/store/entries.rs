//! The entries of an incident directory.

use super::dir::{Dir, is_file};
use super::error::Error;
use super::names::{is_incident_file, is_part_file, is_silly_renamed};
use std::path::PathBuf;

/// Returns the finished files in `dir` with their sizes, foreign files included.
pub(crate) fn finished_files(dir: &Dir) -> Result<Vec<(String, u64)>, Error> {
    let mut files = Vec::new();
    for name in dir.entry_names()? {
        if let Some(stat) = dir.stat(&name)?
            && is_file(&stat)
            && !is_part_file(&name)
        {
            files.push((name, u64::try_from(stat.st_size).unwrap_or(0)));
        }
    }
    Ok(files)
}

/// Returns the first entry of `dir` that the store did not create, or `dir` itself if another user
/// owns it.
pub(crate) fn foreign_entry(dir: &Dir, names: &[String]) -> Result<Option<PathBuf>, Error> {
    if !dir.is_owned_by_this_user() {
        return Ok(Some(dir.path().to_owned()));
    }
    for name in names {
        if is_silly_renamed(name) {
            continue;
        }
        let is_known = is_incident_file(name) || is_part_file(name);
        if !is_known || dir.stat(name)?.is_some_and(|stat| !is_file(&stat)) {
            return Ok(Some(dir.path_of(name)));
        }
    }
    Ok(None)
}
