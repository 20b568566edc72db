//! Artifacts that are complete but not listed: the process ended between naming them and writing
//! the manifest.

use std::io;

use hmac_sha256::Hash;
use jiff::Timestamp;

use crate::base::Bytes;
use crate::model::{Artifact, CaptureKind, Manifest};
use crate::store::dir::{Dir, is_file};
use crate::store::draft::hex;
use crate::store::error::Error;
use crate::store::names::artifact_form;

/// Returns the complete artifacts in `dir` that the manifest does not list.
pub(super) fn unlisted_artifacts(dir: &Dir, manifest: &Manifest) -> Result<Vec<Artifact>, Error> {
    let mut artifacts = Vec::new();
    for name in dir.entry_names()? {
        let listed = manifest.artifacts.iter().any(|artifact| artifact.file == name);
        if let Some(form) = artifact_form(&name)
            && !listed
            && dir.stat(&name)?.is_some_and(|stat| is_file(&stat))
        {
            artifacts.push(describe_artifact(dir, name, form.kind())?);
        }
    }
    // Sorted by length first: numbers have three digits, or more from 1000 on.
    artifacts.sort_by_key(|artifact| (artifact.file.len(), artifact.file.clone()));
    Ok(artifacts)
}

/// Describes an artifact from its content. The time of its last write stands in for the time of its
/// evidence.
fn describe_artifact(dir: &Dir, file: String, kind: CaptureKind) -> Result<Artifact, Error> {
    let read_error = |source| Error::io("read", dir.path_of(&file), source);
    let mut content = dir.open_file(&file)?;
    let mut hash = HashingWriter(Hash::new());
    let bytes = Bytes(io::copy(&mut content, &mut hash).map_err(read_error)?);
    let modified = content.metadata().and_then(|meta| meta.modified()).map_err(read_error)?;
    let taken = Timestamp::try_from(modified).unwrap_or_default();
    Ok(Artifact {
        file,
        kind,
        bytes,
        sha256: hex(hash.0.finalize()),
        taken,
        phase: None,
        note: None,
    })
}

/// A writer that hashes its input.
struct HashingWriter(Hash);

impl io::Write for HashingWriter {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        self.0.update(bytes);
        Ok(bytes.len())
    }

    fn flush(&mut self) -> io::Result<()> {
        Ok(())
    }
}
