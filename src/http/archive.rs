//! Streams an incident as a `.tar.gz`, without a temporary file.
//!
//! The manifest comes first. Artifacts are already compressed, so the compressor runs at its
//! fastest level; the gzip layer exists because every tool opens `.tar.gz`. The `tar` crate writes
//! the headers. Contents are passed on in chunks: `append_data` of the crate would occupy a thread
//! until a slow client has read the file.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Write as _};
use std::os::unix::fs::MetadataExt;

use flate2::Compression;
use flate2::write::GzEncoder;
use tar::{Builder, Header};

use super::chunks::{CHUNK_BYTES, ChunkSource};
use crate::base::IncidentId;
use crate::store::{self, IncidentEntry, Location};

/// Tar block size in bytes. File contents are padded to a multiple of it.
const TAR_BLOCK_BYTES: u64 = 512;

/// An archive that is being streamed.
pub(super) struct IncidentArchive {
    location: Location,
    id: IncidentId,
    /// Directory that prefixes every name in the archive.
    folder: String,
    queue: VecDeque<String>,
    current: Option<CurrentFile>,
    out: Option<Builder<GzEncoder<Vec<u8>>>>,
}

/// A file that is being added to the archive.
struct CurrentFile {
    file: File,
    remaining: u64,
    /// Number of padding zeros after the contents.
    padding: u64,
}

impl IncidentArchive {
    pub(super) fn new(location: &Location, entry: &IncidentEntry) -> Self {
        let folder = entry.path.file_name().map(|name| name.to_string_lossy().into_owned());
        let listed = entry.manifest.iter().flat_map(|manifest| &manifest.artifacts);
        let files = listed.map(|artifact| artifact.file.clone());
        let out = GzEncoder::new(Vec::new(), Compression::fast());
        Self {
            location: location.clone(),
            id: entry.id,
            folder: folder.unwrap_or_else(|| entry.id.to_string()),
            queue: [store::MANIFEST_FILE, store::REPORT_FILE]
                .map(str::to_owned)
                .into_iter()
                .chain(files)
                .collect(),
            current: None,
            out: Some(Builder::new(out)),
        }
    }

    /// Adds the next chunk or header. Returns `false` at the end of the archive.
    fn advance(&mut self, out: &mut Builder<GzEncoder<Vec<u8>>>) -> io::Result<bool> {
        if let Some(current) = &mut self.current {
            let mut chunk = vec![0; current.remaining.min(CHUNK_BYTES as u64) as usize];
            current.file.read_exact(&mut chunk)?;
            out.get_mut().write_all(&chunk)?;
            current.remaining -= chunk.len() as u64;
            if current.remaining == 0 {
                io::copy(&mut io::repeat(0).take(current.padding), out.get_mut())?;
                self.current = None;
            }
            return Ok(true);
        }
        let Some(name) = self.queue.pop_front() else { return Ok(false) };
        // Retention may have deleted the file since the manifest was read; the rest is still
        // useful.
        if let Ok(file) = self.location.open_artifact(self.id, &name) {
            let meta = file.metadata()?;
            let size = meta.len();
            let mut header = header(size, meta.mtime());
            // Writes only the header, plus the extension records of a long name or a large size.
            out.append_data(&mut header, format!("{}/{name}", self.folder), io::empty())?;
            self.current = Some(CurrentFile {
                file,
                remaining: size,
                padding: size.next_multiple_of(TAR_BLOCK_BYTES) - size,
            });
        }
        Ok(true)
    }
}

/// Returns the header of a file without its name.
fn header(size: u64, mtime: i64) -> Header {
    let mut header = Header::new_gnu();
    header.set_size(size);
    header.set_mode(0o600);
    header.set_uid(0);
    header.set_gid(0);
    header.set_mtime(u64::try_from(mtime).unwrap_or(0));
    header
}

impl ChunkSource for IncidentArchive {
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some(mut out) = self.out.take() else { return Ok(None) };
        while out.get_ref().get_ref().len() < CHUNK_BYTES {
            if !self.advance(&mut out)? {
                return out.into_inner()?.finish().map(Some);
            }
        }
        let chunk = std::mem::take(out.get_mut().get_mut());
        self.out = Some(out);
        Ok(Some(chunk))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_of_8_gib_and_more_fit_into_tar_header() {
        for size in [0, (8 << 30) - 1, 8 << 30, 1 << 40] {
            let header = header(size, -1);
            assert_eq!((header.size().unwrap(), header.mtime().unwrap()), (size, 0));
        }
    }
}
