//! An incident as a `.tar.gz`, made while it is sent: no file, no second copy.
//!
//! The manifest comes first. Artifacts are compressed already, so the compressor is at its quickest; it is
//! there because `.tar.gz` is what everything opens. Names and headers are those of POSIX ustar, which
//! holds whatever a store makes but a file's name beyond 100 bytes: before that stands POSIX.1-2001's header
//! that says the name in full.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, Read as _, Write};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

use flate2::Compression;
use flate2::write::GzEncoder;

use super::chunks::{CHUNK, Source};
use crate::base::IncidentId;
use crate::store::{self, Entry};

const BLOCK: usize = 512;
/// The longest name a header holds.
const NAME: usize = 100;

/// An archive that is being made.
pub(super) struct Archive {
    dir: PathBuf,
    id: IncidentId,
    /// What all names in it begin with.
    folder: String,
    queue: VecDeque<String>,
    /// The file that is being packed, what is left of it, and how much it is to be filled up by.
    current: Option<(File, u64, usize)>,
    out: Option<GzEncoder<Vec<u8>>>,
}

impl Archive {
    pub(super) fn new(dir: &Path, entry: &Entry) -> Self {
        let folder = entry.path.file_name().map(|name| name.to_string_lossy().into_owned());
        let listed = entry.manifest.iter().flat_map(|manifest| &manifest.artifacts);
        let files = listed.map(|artifact| artifact.file.clone());
        Self {
            dir: dir.to_owned(),
            id: entry.id,
            folder: folder.unwrap_or_else(|| entry.id.to_string()),
            queue: [store::MANIFEST.to_owned()].into_iter().chain(files).collect(),
            current: None,
            out: Some(GzEncoder::new(Vec::new(), Compression::fast())),
        }
    }

    /// Packs some more; false when all is packed.
    fn advance(&mut self, out: &mut GzEncoder<Vec<u8>>) -> io::Result<bool> {
        match self.current.take() {
            Some((_, 0, fill)) => {
                out.write_all(&[0; BLOCK][..fill.min(BLOCK)])?;
                Ok(true)
            }
            Some((mut file, left, fill)) => {
                let mut chunk = vec![0; left.min(CHUNK as u64) as usize];
                file.read_exact(&mut chunk)?;
                out.write_all(&chunk)?;
                self.current = Some((file, left - chunk.len() as u64, fill));
                Ok(true)
            }
            None => {
                let Some(name) = self.queue.pop_front() else {
                    out.write_all(&[0; 2 * BLOCK])?;
                    return Ok(false);
                };
                // Retention may have taken it since the manifest was read; the rest is still of use.
                if let Ok(file) = store::open_artifact(&self.dir, self.id, &name) {
                    let meta = file.metadata()?;
                    self.put_header(out, &name, meta.len(), meta.mtime())?;
                    let fill = (BLOCK - meta.len() as usize % BLOCK) % BLOCK;
                    self.current = Some((file, meta.len(), fill));
                }
                Ok(true)
            }
        }
    }
}

impl Archive {
    fn put_header(
        &self,
        out: &mut impl Write,
        name: &str,
        size: u64,
        mtime: i64,
    ) -> io::Result<()> {
        if name.len() <= NAME {
            return out.write_all(&header(&self.folder, name, b'0', size, mtime)?);
        }
        let record = pax("path", &format!("{}/{name}", self.folder));
        let mut filled = record.into_bytes();
        let length = filled.len();
        filled.resize(length.next_multiple_of(BLOCK), 0);
        let short = name.get(..NAME).unwrap_or("file");
        out.write_all(&header(&self.folder, short, b'x', length as u64, mtime)?)?;
        out.write_all(&filled)?;
        out.write_all(&header(&self.folder, short, b'0', size, mtime)?)
    }
}

/// A record of an extended header; its length counts its own digits.
fn pax(key: &str, value: &str) -> String {
    let rest = key.len() + value.len() + 3;
    let digits = |n: usize| n.to_string().len();
    let mut length = rest + digits(rest);
    length = rest + digits(length);
    format!("{length} {key}={value}\n")
}

impl Source for Archive {
    fn next(&mut self) -> io::Result<Option<Vec<u8>>> {
        let Some(mut out) = self.out.take() else { return Ok(None) };
        while out.get_ref().len() < CHUNK {
            if !self.advance(&mut out)? {
                return out.finish().map(Some);
            }
        }
        let chunk = std::mem::take(out.get_mut());
        self.out = Some(out);
        Ok(Some(chunk))
    }
}

/// A file's header: POSIX.1-1988, `ustar`.
fn header(folder: &str, name: &str, kind: u8, size: u64, mtime: i64) -> io::Result<[u8; BLOCK]> {
    let mut block = [0; BLOCK];
    let mut put = |at: usize, bytes: &[u8], room: usize| {
        let place = block.get_mut(at..at + bytes.len()).filter(|_| bytes.len() <= room);
        place.map(|place| place.copy_from_slice(bytes)).ok_or_else(|| {
            io::Error::other(format!("{folder}/{name}: does not fit into a tar header"))
        })
    };
    put(0, name.as_bytes(), NAME)?;
    put(100, b"0000600\0", 8)?;
    put(108, b"0000000\0", 8)?;
    put(116, b"0000000\0", 8)?;
    put(124, format!("{size:011o}\0").as_bytes(), 12)?;
    put(136, format!("{:011o}\0", mtime.max(0)).as_bytes(), 12)?;
    put(148, b"        ", 8)?;
    put(156, &[kind], 1)?;
    put(257, b"ustar\x0000", 8)?;
    put(345, folder.as_bytes(), 155)?;
    let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
    let sum = format!("{sum:06o}\0 ");
    if let Some(place) = block.get_mut(148..156) {
        place.copy_from_slice(sum.as_bytes());
    }
    Ok(block)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_record_counts_its_own_length() {
        assert_eq!(pax("path", "a"), "9 path=a\n");
        assert_eq!(pax("path", "ab"), "11 path=ab\n");
        for length in 1..1200 {
            let record = pax("path", &"x".repeat(length));
            let (said, _) = record.split_once(' ').unwrap();
            assert_eq!(said.parse(), Ok(record.len()), "{length}");
        }
    }
}
