//! Drafts: artifacts that are being written.

use std::borrow::Cow;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use jiff::Timestamp;
use sha2::{Digest, Sha256};

use super::dir::{NamedFile, file_size_limit};
use super::error::{Error, StoreLimit};
use super::incident::Open;

use super::names::{PART, artifact, custom_extension, short_stem};
use crate::base::Bytes;
use crate::model::{Artifact, FileName, Form};
use crate::store::usage::SpaceReservation;

/// Encoders write a few bytes at a time. Space is reserved and the kernel called once per buffer. A
/// draft started because memory is low must not need much memory itself.
const BUFFER: usize = 32 << 10;

/// A large write is split, so that it reserves space step by step.
const MAX_WRITE: usize = 1 << 20;

/// Maximum number of taken names that a commit skips. A name is taken only if another program
/// creates files here.
const MAX_TAKEN: u32 = 1000;

/// An artifact that is being written. Its final name does not exist until [`Self::commit`]. Nothing
/// is left if it is dropped instead.
///
/// It is an [`io::Write`] that hashes and counts the bytes. It reserves space as it is written. If
/// there is no space and retention cannot free any, the write fails and the draft cannot be
/// committed. The error is an [`Error::Full`] under the kind [`io::ErrorKind::StorageFull`],
/// `QuotaExceeded` or `FileTooLarge`.
#[derive(Debug)]
#[must_use = "a draft that is not committed is dropped"]
pub struct ArtifactDraft {
    file: File,
    /// Temporary name, if the file has one.
    part: Option<String>,
    open: Arc<Open>,
    form: Form,
    /// The last part of the file name.
    extension: Cow<'static, str>,
    taken: Timestamp,
    buffer: Vec<u8>,
    hash: Sha256,
    written: u64,
    size_limit: u64,
    room: SpaceReservation,
    /// Size that the file would have had after a write that one of the store's limits rejected.
    refused: Option<Bytes>,
    failed: bool,
}

impl ArtifactDraft {
    pub(super) fn begin(open: &Arc<Open>, form: Form, taken: Timestamp) -> Result<Self, Error> {
        Self::named(open, form, form.extension().into(), taken)
    }

    /// Starts a draft of a custom artifact, which the service writes.
    pub(super) fn custom(
        open: &Arc<Open>,
        name: &FileName,
        taken: Timestamp,
    ) -> Result<Self, Error> {
        Self::named(open, Form::Custom, custom_extension(name).into(), taken)
    }

    fn named(
        open: &Arc<Open>,
        form: Form,
        extension: Cow<'static, str>,
        taken: Timestamp,
    ) -> Result<Self, Error> {
        let (file, part) = create(open)?;
        Ok(Self {
            file,
            part,
            open: Arc::clone(open),
            form,
            extension,
            taken,
            buffer: Vec::with_capacity(BUFFER),
            hash: Sha256::new(),
            written: 0,
            size_limit: file_size_limit(),
            room: SpaceReservation::new(open.shared(), open.id()),
            refused: None,
            failed: false,
        })
    }

    /// Returns the number of bytes written.
    pub fn bytes(&self) -> Bytes {
        Bytes(self.written + self.buffer.len() as u64)
    }

    /// Returns the size that the draft would have had after a write that one of the store's limits
    /// rejected, or `None`. This is the amount of space to free. A full device and a disk quota are
    /// not limits of the store.
    pub fn refused(&self) -> Option<Bytes> {
        self.refused
    }

    /// Turns the draft into an artifact `{service}_{domain}.{seq}.{form}`, completely or not at
    /// all.
    ///
    /// 1. Write the buffer and sync the file. A crash before or during this step leaves nothing, or
    ///    a `.part` file on file systems without unnamed files. The next start deletes it.
    /// 2. Link it under the next number, skipping taken names. A crash leaves a complete artifact
    ///    that the manifest does not list. The next start lists it.
    /// 3. Sync the directory. The artifact survives a power failure from here on. List it next, by
    ///    [`update`](super::IncidentDir::update).
    ///
    /// # Errors
    /// If it cannot be written, synced or named. Nothing of it is left then.
    pub fn commit(mut self) -> Result<Artifact, Error> {
        if self.failed {
            return Err(Error::Incomplete { path: self.path() });
        }
        self.open.dir.check_process()?;
        self.spill()?;
        let synced = self.open.dir.sync_file(&self.file);
        synced.map_err(|source| Error::io("sync", self.path(), source))?;
        let file = self.publish()?;
        if let Err(error) = self.open.dir.sync() {
            let _ = self.open.dir.unlink(&file);
            return Err(error);
        }
        Ok(Artifact {
            file,
            kind: self.form.kind(),
            bytes: Bytes(self.written),
            sha256: hex(std::mem::take(&mut self.hash)),
            taken: self.taken,
            part: None,
            note: None,
        })
    }

    fn publish(&mut self) -> Result<String, Error> {
        let open = Arc::clone(&self.open);
        let mut seq = open.seq.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stem = Cow::Borrowed(open.stem.as_str());
        for _ in 0..MAX_TAKEN {
            let name = artifact(&stem, *seq + 1, &self.extension);
            let mut named = NamedFile::Taken;
            self.room.settle(|| {
                named = name_file(&open, &mut self.file, &mut self.part, &name)?;
                Ok(named == NamedFile::Yes)
            })?;
            match named {
                NamedFile::Yes => {
                    *seq += 1;
                    self.part = None;
                    return Ok(name);
                }
                NamedFile::Taken => *seq += 1,
                NamedFile::TooLong if matches!(stem, Cow::Borrowed(_)) => {
                    stem = Cow::Owned(short_stem(&stem));
                }
                NamedFile::TooLong => {
                    let source = rustix::io::Errno::NAMETOOLONG.into();
                    return Err(Error::io("name the file", open.dir.at(&name), source));
                }
            }
        }
        let taken = rustix::io::Errno::EXIST.into();
        Err(Error::io("name the file", artifact_path(&open, *seq, &self.extension), taken))
    }

    fn spill(&mut self) -> Result<(), Error> {
        let buffer = std::mem::take(&mut self.buffer);
        let written = self.write_out(&buffer);
        self.buffer = buffer;
        self.buffer.clear();
        written
    }

    fn write_out(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let written = self.try_write_out(bytes);
        if let Err(error) = &written {
            self.failed = true;
            let wanted = self.written.saturating_add(bytes.len() as u64);
            self.refused = error.is_bound().then_some(Bytes(wanted));
        }
        written
    }

    fn try_write_out(&mut self, mut rest: &[u8]) -> Result<(), Error> {
        // A forked child shares the file offset: its writes would land in the middle of the
        // parent's.
        self.open.dir.check_process()?;
        let length = rest.len() as u64;
        if self.written.saturating_add(length) > self.size_limit {
            return Err(Error::Full { path: self.path(), bound: StoreLimit::FileSize });
        }
        let open = &self.open;
        self.room.grow(length, || artifact_path(open, next(open), &self.extension))?;
        while !rest.is_empty() {
            match self.file.write(rest) {
                Ok(count) => {
                    let (written, more) = rest.split_at_checked(count).unwrap_or((rest, &[]));
                    self.hash.update(written);
                    self.written += written.len() as u64;
                    rest = more;
                    if count == 0 {
                        let nothing = io::ErrorKind::WriteZero.into();
                        return Err(Error::io("write", self.path(), nothing));
                    }
                }
                Err(error) if error.kind() == io::ErrorKind::Interrupted => {}
                Err(source) => return Err(Error::io("write", self.path(), source)),
            }
        }
        Ok(())
    }

    /// Returns the path the draft would get, for messages.
    fn path(&self) -> PathBuf {
        artifact_path(&self.open, next(&self.open), &self.extension)
    }
}

impl Write for ArtifactDraft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.failed {
            return Err(Error::Incomplete { path: self.path() }.into());
        }
        if self.buffer.len() + bytes.len() > BUFFER {
            self.spill()?;
        }
        if bytes.len() >= BUFFER {
            let (piece, _) = bytes.split_at_checked(MAX_WRITE).unwrap_or((bytes, &[]));
            self.write_out(piece)?;
            return Ok(piece.len());
        }
        self.buffer.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    /// Writes the buffer to the kernel. Only [`ArtifactDraft::commit`] syncs the file to disk.
    fn flush(&mut self) -> io::Result<()> {
        if self.failed {
            return Err(Error::Incomplete { path: self.path() }.into());
        }
        Ok(self.spill()?)
    }
}

impl Drop for ArtifactDraft {
    fn drop(&mut self) {
        if let Some(part) = self.part.take() {
            // If it cannot be deleted, the next start deletes it.
            let _ = self.open.dir.unlink(&part);
        }
    }
}

/// Creates a file, and returns its name if it needs one.
fn create(open: &Open) -> Result<(File, Option<String>), Error> {
    if let Some(file) = open.dir.unnamed()? {
        return Ok((file, None));
    }
    let part = free_part(open)?;
    Ok((open.dir.create(&part)?, Some(part)))
}

/// Returns an unused name for a draft.
fn free_part(open: &Open) -> Result<String, Error> {
    let number = open.named_drafts.fetch_add(1, Ordering::Relaxed);
    let part = format!(".draft-{number}{PART}");
    // Only this process creates drafts here, so an existing file was planted or left by a crash.
    open.dir.unlink(&part)?;
    Ok(part)
}

/// Renames `file` to `name`, or links it if it has no name. `part` is its temporary name, if any.
///
/// If an unnamed file cannot be linked (no `/proc`, no hard links), it is copied to a named file
/// first. Later drafts then have a name from the start.
fn name_file(
    open: &Open,
    file: &mut File,
    part: &mut Option<String>,
    name: &str,
) -> Result<NamedFile, Error> {
    if part.is_none()
        && let Some(named) = open.dir.link(file, name)?
    {
        return Ok(named);
    }
    let part = match part {
        Some(part) => part,
        None => {
            let name = free_part(open)?;
            *file = open.dir.copy(file, &name)?;
            part.insert(name)
        }
    };
    open.dir.rename_file(part, name)
}

/// Returns the number of the next artifact, unless that name is taken.
fn next(open: &Open) -> u32 {
    open.seq.lock().map_or(1, |seq| *seq + 1)
}

fn artifact_path(open: &Open, seq: u32, extension: &str) -> PathBuf {
    open.dir.at(&artifact(&open.stem, seq, extension))
}

/// Returns the hash in lower-case hex.
pub(super) fn hex(hash: Sha256) -> String {
    hash.finalize().iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod faults;

#[cfg(test)]
mod tests;
