//! Drafts: artifacts that are being written.

use std::borrow::Cow;
use std::fmt;
use std::fs::File;
use std::io::{self, Write};
use std::path::PathBuf;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};

use hmac_sha256::Hash;
use jiff::Timestamp;

use super::dir::{NamingResult, file_size_limit};
use super::error::{Error, StoreLimit};
use super::names::{PART_SUFFIX, artifact_name, custom_extension, short_stem};
use crate::base::Bytes;
use crate::model::{Artifact, ArtifactFormat, FileName};
use crate::store::open_incident::IncidentInner;
use crate::store::reservation::SpaceReservation;

/// Encoders write a few bytes at a time. Space is reserved and the kernel called once per buffer. A
/// draft started because memory is low must not need much memory itself.
const BUFFER_BYTES: usize = 32 << 10;

/// A large write is split, so that it reserves space step by step.
const MAX_WRITE_BYTES: usize = 1 << 20;

/// Maximum number of taken names that a commit skips. A name is taken only if another program
/// creates files here.
const MAX_SKIPPED_NAMES: u32 = 1000;

/// An artifact that is being written. Its final name does not exist until [`Self::commit`]. Nothing
/// is left if it is dropped instead.
///
/// It is an [`io::Write`] that hashes and counts the bytes. It reserves space as it is written. If
/// there is no space and retention cannot free any, the write fails and the draft cannot be
/// committed. The error is an [`Error::Full`] under the kind [`io::ErrorKind::StorageFull`],
/// `QuotaExceeded` or `FileTooLarge`.
#[must_use = "a draft that is not committed is dropped"]
pub struct ArtifactDraft {
    file: File,
    /// Temporary name, if the file has one.
    part_name: Option<String>,
    incident: Arc<IncidentInner>,
    form: ArtifactFormat,
    /// The last part of the file name.
    extension: Cow<'static, str>,
    taken_at: Timestamp,
    buffer: Vec<u8>,
    hash: Hash,
    bytes_written: u64,
    size_limit: u64,
    reservation: SpaceReservation,
    /// Size that the file would have had after a write that one of the store's limits rejected.
    rejected_size: Option<Bytes>,
    has_failed: bool,
}

impl fmt::Debug for ArtifactDraft {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { form, bytes_written, .. } = self;
        f.debug_struct("ArtifactDraft")
            .field("form", form)
            .field("bytes_written", bytes_written)
            .finish_non_exhaustive()
    }
}

impl ArtifactDraft {
    pub(super) fn begin(
        incident: &Arc<IncidentInner>,
        form: ArtifactFormat,
        taken_at: Timestamp,
    ) -> Result<Self, Error> {
        Self::with_extension(incident, form, form.extension().into(), taken_at)
    }

    /// Starts a draft of a custom artifact, which the service writes.
    pub(super) fn begin_custom(
        incident: &Arc<IncidentInner>,
        name: &FileName,
        taken_at: Timestamp,
    ) -> Result<Self, Error> {
        Self::with_extension(
            incident,
            ArtifactFormat::Custom,
            custom_extension(name).into(),
            taken_at,
        )
    }

    fn with_extension(
        incident: &Arc<IncidentInner>,
        form: ArtifactFormat,
        extension: Cow<'static, str>,
        taken_at: Timestamp,
    ) -> Result<Self, Error> {
        let (file, part_name) = create_file(incident)?;
        Ok(Self {
            file,
            part_name,
            incident: Arc::clone(incident),
            form,
            extension,
            taken_at,
            buffer: Vec::with_capacity(BUFFER_BYTES),
            hash: Hash::new(),
            bytes_written: 0,
            size_limit: file_size_limit(),
            reservation: SpaceReservation::new(incident.store(), incident.id()),
            rejected_size: None,
            has_failed: false,
        })
    }

    /// Returns the number of bytes written.
    pub fn bytes(&self) -> Bytes {
        Bytes(self.bytes_written + self.buffer.len() as u64)
    }

    /// Returns the size that the draft would have had after a write that one of the store's limits
    /// rejected, or `None`. This is the amount of space to free. A full device and a disk quota are
    /// not limits of the store.
    pub fn rejected_size(&self) -> Option<Bytes> {
        self.rejected_size
    }

    /// Turns the draft into an artifact `{service}_{instance}.{seq}.{form}`, completely or not at
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
        if self.has_failed {
            return Err(Error::Incomplete { path: self.path() });
        }
        self.incident.dir.check_process()?;
        self.flush_buffer()?;
        let synced = self.incident.dir.sync_file(&self.file);
        synced.map_err(|source| Error::io("sync", self.path(), source))?;
        let file = self.publish()?;
        if let Err(error) = self.incident.dir.sync() {
            let _ = self.incident.dir.unlink(&file);
            return Err(error);
        }
        Ok(Artifact {
            file,
            kind: self.form.kind(),
            bytes: Bytes(self.bytes_written),
            sha256: hex(std::mem::take(&mut self.hash).finalize()),
            taken: self.taken_at,
            phase: None,
            note: None,
        })
    }

    fn publish(&mut self) -> Result<String, Error> {
        let incident = Arc::clone(&self.incident);
        let mut seq = incident.seq.lock().unwrap_or_else(PoisonError::into_inner);
        let mut stem = Cow::Borrowed(incident.stem.as_str());
        for _ in 0..MAX_SKIPPED_NAMES {
            let name = artifact_name(&stem, *seq + 1, &self.extension);
            let mut result = NamingResult::NameExists;
            self.reservation.commit(|| {
                result = name_file(&incident, &mut self.file, &mut self.part_name, &name)?;
                Ok(result == NamingResult::Named)
            })?;
            match result {
                NamingResult::Named => {
                    *seq += 1;
                    self.part_name = None;
                    return Ok(name);
                }
                NamingResult::NameExists => *seq += 1,
                NamingResult::NameTooLong if matches!(stem, Cow::Borrowed(_)) => {
                    stem = Cow::Owned(short_stem(&stem));
                }
                NamingResult::NameTooLong => {
                    let source = rustix::io::Errno::NAMETOOLONG.into();
                    return Err(Error::io("create", incident.dir.path_of(&name), source));
                }
            }
        }
        let name_exists = rustix::io::Errno::EXIST.into();
        Err(Error::io("create", artifact_path(&incident, *seq, &self.extension), name_exists))
    }

    fn flush_buffer(&mut self) -> Result<(), Error> {
        let buffer = std::mem::take(&mut self.buffer);
        let result = self.write_to_file(&buffer);
        self.buffer = buffer;
        self.buffer.clear();
        result
    }

    fn write_to_file(&mut self, bytes: &[u8]) -> Result<(), Error> {
        let result = self.try_write_to_file(bytes);
        if let Err(error) = &result {
            self.has_failed = true;
            let needed_size = self.bytes_written.saturating_add(bytes.len() as u64);
            self.rejected_size = error.is_store_limit().then_some(Bytes(needed_size));
        }
        result
    }

    fn try_write_to_file(&mut self, mut remaining: &[u8]) -> Result<(), Error> {
        // A forked child shares the file offset: its writes would land in the middle of the
        // parent's.
        self.incident.dir.check_process()?;
        let length = remaining.len() as u64;
        if self.bytes_written.saturating_add(length) > self.size_limit {
            return Err(Error::Full { path: self.path(), limit: StoreLimit::FileSize });
        }
        let incident = &self.incident;
        self.reservation
            .grow(length, || artifact_path(incident, next_number(incident), &self.extension))?;
        while !remaining.is_empty() {
            match self.file.write(remaining) {
                Ok(count) => {
                    let (written, more) =
                        remaining.split_at_checked(count).unwrap_or((remaining, &[]));
                    self.hash.update(written);
                    self.bytes_written += written.len() as u64;
                    remaining = more;
                    if count == 0 {
                        let write_zero = io::ErrorKind::WriteZero.into();
                        return Err(Error::io("write", self.path(), write_zero));
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
        artifact_path(&self.incident, next_number(&self.incident), &self.extension)
    }
}

impl Write for ArtifactDraft {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        if self.has_failed {
            return Err(Error::Incomplete { path: self.path() }.into());
        }
        if self.buffer.len() + bytes.len() > BUFFER_BYTES {
            self.flush_buffer()?;
        }
        if bytes.len() >= BUFFER_BYTES {
            let (chunk, _) = bytes.split_at_checked(MAX_WRITE_BYTES).unwrap_or((bytes, &[]));
            self.write_to_file(chunk)?;
            return Ok(chunk.len());
        }
        self.buffer.extend_from_slice(bytes);
        Ok(bytes.len())
    }

    /// Writes the buffer to the kernel. Only [`ArtifactDraft::commit`] syncs the file to disk.
    fn flush(&mut self) -> io::Result<()> {
        if self.has_failed {
            return Err(Error::Incomplete { path: self.path() }.into());
        }
        Ok(self.flush_buffer()?)
    }
}

impl Drop for ArtifactDraft {
    fn drop(&mut self) {
        if let Some(part_name) = self.part_name.take() {
            // If it cannot be deleted, the next start deletes it.
            let _ = self.incident.dir.unlink(&part_name);
        }
    }
}

/// Creates a file, and returns its name if it needs one.
fn create_file(incident: &IncidentInner) -> Result<(File, Option<String>), Error> {
    if let Some(file) = incident.dir.create_unnamed()? {
        return Ok((file, None));
    }
    let part_name = unused_part_name(incident)?;
    Ok((incident.dir.create(&part_name)?, Some(part_name)))
}

/// Returns an unused name for a draft.
fn unused_part_name(incident: &IncidentInner) -> Result<String, Error> {
    let number = incident.named_drafts.fetch_add(1, Ordering::Relaxed);
    let part_name = format!(".draft-{number}{PART_SUFFIX}");
    // Only this process creates drafts here, so an existing file was planted or left by a crash.
    incident.dir.unlink(&part_name)?;
    Ok(part_name)
}

/// Renames `file` to `name`, or links it if it has no name. `part_name` is its temporary name, if
/// any.
///
/// If an unnamed file cannot be linked (no `/proc`, no hard links), it is copied to a named file
/// first. Later drafts then have a name from the start.
fn name_file(
    incident: &IncidentInner,
    file: &mut File,
    part_name: &mut Option<String>,
    name: &str,
) -> Result<NamingResult, Error> {
    if part_name.is_none()
        && let Some(result) = incident.dir.link(file, name)?
    {
        return Ok(result);
    }
    let part_name = match part_name {
        Some(part_name) => part_name,
        None => {
            let name = unused_part_name(incident)?;
            *file = incident.dir.copy(file, &name)?;
            part_name.insert(name)
        }
    };
    incident.dir.rename_file(part_name, name)
}

/// Returns the number of the next artifact, unless that name is taken.
fn next_number(incident: &IncidentInner) -> u32 {
    incident.seq.lock().map_or(1, |seq| *seq + 1)
}

fn artifact_path(incident: &IncidentInner, seq: u32, extension: &str) -> PathBuf {
    incident.dir.path_of(&artifact_name(&incident.stem, seq, extension))
}

/// Returns the hash in lower-case hex.
pub(super) fn hex(digest: [u8; 32]) -> String {
    digest.iter().map(|byte| format!("{byte:02x}")).collect()
}

#[cfg(test)]
mod faults;

#[cfg(test)]
mod tests;
