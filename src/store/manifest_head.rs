//! Writes the part of a manifest before its vitals.

use super::dir::Dir;
use super::error::Error;
use super::manifest::{self, ManifestHead};
use super::names::MANIFEST_FILE;
use crate::model::Manifest;
use std::io::{self, Seek, SeekFrom, Write};

/// Replaces the head of the manifest in `dir`. The vitals are copied without parsing.
pub(crate) fn write_manifest_head(dir: &Dir, mut head: ManifestHead) -> Result<(), Error> {
    let Some(vitals_offset) = head.vitals_offset else {
        return write_manifest(dir, &mut head.manifest).map(drop);
    };
    let read_error = |source| Error::io("read", dir.path_of(MANIFEST_FILE), source);
    let text = manifest::write_head(&head.manifest).map_err(read_error)?;
    let mut old = dir.open_file(MANIFEST_FILE)?;
    let size = old.metadata().map_err(read_error)?.len() - vitals_offset + text.len() as u64;
    old.seek(SeekFrom::Start(vitals_offset)).map_err(read_error)?;
    dir.replace_with(MANIFEST_FILE, size, |file| {
        file.write_all(&text)?;
        io::copy(&mut old, file).map(drop)
    })
}

/// Writes `manifest` to `dir`, the directory of an incident, and returns its size.
pub(crate) fn write_manifest(dir: &Dir, manifest: &mut Manifest) -> Result<u64, Error> {
    let text = manifest::write_bounded(manifest);
    let text = text.map_err(|source| Error::io("write", dir.path_of(MANIFEST_FILE), source))?;
    dir.replace(MANIFEST_FILE, &text)?;
    Ok(text.len() as u64)
}
