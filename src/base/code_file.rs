//! Open files of loaded code.

use std::fs::{self, File, Metadata, OpenOptions};
use std::io;
use std::os::unix::fs::{FileExt, MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::process;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};

use super::spare::{self, ReleasableFile};

/// A code file that remains readable after its path is removed or replaced.
///
/// A deployment replaces or removes the files of a running program; an open descriptor still reads
/// the original. Since descriptors are limited, [`release`](Self::release) closes this one. The
/// file is then opened for each read, as long as its path still refers to the same file.
#[derive(Debug)]
pub struct CodeFile {
    path: PathBuf,
    stamp: CodeStamp,
    descriptor: Mutex<Option<Arc<CodeDescriptor>>>,
    /// The file with the symbols that were stripped from this one.
    debug_file: OnceLock<Arc<CodeFile>>,
}

/// Identity and version of a file, to detect replacement and modification.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct CodeStamp {
    device: u64,
    inode: u64,
    size: u64,
    /// Modification time: `[seconds, nanoseconds]`.
    modified: [i64; 2],
}

impl CodeStamp {
    fn from_metadata(file: &Metadata) -> Self {
        let modified = [file.mtime(), file.mtime_nsec()];
        Self { device: file.dev(), inode: file.ino(), size: file.len(), modified }
    }
}

/// A descriptor that is closed only if it still belongs to this process and refers to the same
/// file.
///
/// A program that becomes a daemon closes all descriptors it did not open, and may reuse their
/// numbers for its own files. Such a descriptor must neither be read nor closed here.
#[derive(Debug)]
struct CodeDescriptor {
    file: Option<File>,
    stamp: CodeStamp,
    pid: u32,
}

impl CodeDescriptor {
    fn get(&self) -> Option<&File> {
        let file = self.file.as_ref().filter(|_| self.pid == process::id())?;
        let now = CodeStamp::from_metadata(&file.metadata().ok()?);
        (now.device == self.stamp.device && now.inode == self.stamp.inode).then_some(file)
    }
}

impl Drop for CodeDescriptor {
    fn drop(&mut self) {
        if self.get().is_none() {
            std::mem::forget(self.file.take());
        }
    }
}

/// Two values are equal if they are the same file with the same content, judging by the metadata.
impl PartialEq for CodeFile {
    fn eq(&self, other: &Self) -> bool {
        self.stamp == other.stamp
    }
}

impl Eq for CodeFile {}

impl CodeFile {
    /// Opens the file at `path` and keeps it open.
    ///
    /// # Errors
    ///
    /// Returns an error if the file cannot be opened, or is not a regular file
    /// ([`io::ErrorKind::InvalidInput`]).
    pub fn open(path: &Path) -> io::Result<Self> {
        let opened = open_with_spare(path)?;
        Ok(Self {
            path: path.to_owned(),
            stamp: opened.stamp,
            descriptor: Mutex::new(Some(Arc::new(opened))),
            debug_file: OnceLock::new(),
        })
    }

    /// Returns the path by which the file was opened.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Returns the inode number.
    pub fn inode(&self) -> u64 {
        self.stamp.inode
    }

    /// Returns `true` if the descriptor is open.
    pub fn is_open(&self) -> bool {
        self.lock().as_ref().is_some_and(|held| held.get().is_some())
    }

    /// Reopens a released file if its path still refers to it. Uses no reserved descriptor. Also
    /// applies to the file of the stripped symbols.
    pub fn keep_open(&self) {
        if !self.is_open()
            && let Ok(opened) =
                self.verify_stamp(open_regular_file(&self.path, |options, path| options.open(path)))
        {
            let old = self.lock().replace(opened);
            drop(old);
        }
        if let Some(debug) = self.debug_file.get() {
            debug.keep_open();
        }
    }

    /// Closes the descriptor, and that of the file of the stripped symbols.
    pub fn release(&self) {
        let descriptor = self.lock().take();
        drop(descriptor);
        if let Some(debug) = self.debug_file.get() {
            debug.release();
        }
    }

    /// Returns the number of open descriptors.
    pub fn open_descriptors(&self) -> u64 {
        u64::from(self.is_open())
            + self.debug_file.get().map_or(0, |debug| debug.open_descriptors())
    }

    /// Returns the number of descriptors that [`keep_open`](Self::keep_open) would keep open.
    pub fn max_descriptors(&self) -> u64 {
        1 + self.debug_file.get().map_or(0, |debug| debug.max_descriptors())
    }

    /// Fills `into` with the bytes from `offset` on.
    ///
    /// # Errors
    ///
    /// Returns an error if the file is too short, or was released and its path refers to another
    /// file.
    pub fn read_exact_at(&self, into: &mut [u8], offset: u64) -> io::Result<()> {
        self.with_file(|file| file.read_exact_at(into, offset))
    }

    /// Returns the current size in bytes.
    ///
    /// # Errors
    ///
    /// Fails as [`read_exact_at`](Self::read_exact_at) does.
    pub fn size(&self) -> io::Result<u64> {
        self.with_file(|file| Ok(file.metadata()?.len()))
    }

    /// Returns `true` if the file was modified since it was opened.
    pub fn is_modified(&self) -> bool {
        let now = self.with_file(File::metadata);
        now.is_ok_and(|now| CodeStamp::from_metadata(&now) != self.stamp)
    }

    /// Returns the file with the symbols stripped from this one, or `None` if it was not set.
    pub fn debug_file(&self) -> Option<&Arc<CodeFile>> {
        self.debug_file.get()
    }

    /// Sets the file with the stripped symbols. Only the first call has an effect.
    pub fn set_debug_file(&self, debug: Arc<CodeFile>) {
        let _ = self.debug_file.set(debug);
    }

    fn with_file<T>(&self, read: impl FnOnce(&File) -> io::Result<T>) -> io::Result<T> {
        let descriptor = self.lock().clone();
        if let Some(file) = descriptor.as_ref().and_then(|held| held.get()) {
            return read(file);
        }
        let opened = self.reopen()?;
        read(opened.get().ok_or(io::ErrorKind::NotFound)?)
    }

    fn reopen(&self) -> io::Result<Arc<CodeDescriptor>> {
        self.verify_stamp(open_with_spare(&self.path))
    }

    fn verify_stamp(&self, opened: io::Result<CodeDescriptor>) -> io::Result<Arc<CodeDescriptor>> {
        let opened = opened?;
        if opened.stamp == self.stamp {
            return Ok(Arc::new(opened));
        }
        Err(io::Error::new(
            io::ErrorKind::NotFound,
            "the file was replaced after its descriptor was released; raise RLIMIT_NOFILE",
        ))
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Arc<CodeDescriptor>>> {
        self.descriptor.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl ReleasableFile for CodeFile {
    fn is_open(&self) -> bool {
        Self::is_open(self)
    }

    fn open_descriptors(&self) -> u64 {
        Self::open_descriptors(self)
    }

    fn release(&self) {
        Self::release(self);
    }
}

/// Opens a regular file, using a reserved descriptor if no other is left.
fn open_with_spare(path: &Path) -> io::Result<CodeDescriptor> {
    open_regular_file(path, |options, path| spare::open_with_retry(|| options.open(path)))
}

/// Opens a regular file. The type is checked before the open, because opening a device can have
/// side effects.
fn open_regular_file(
    path: &Path,
    open: impl FnOnce(&OpenOptions, &Path) -> io::Result<File>,
) -> io::Result<CodeDescriptor> {
    let not_regular = || io::Error::new(io::ErrorKind::InvalidInput, "not a regular file");
    if !fs::metadata(path)?.is_file() {
        return Err(not_regular());
    }
    // The path may have become a FIFO since the check; without O_NONBLOCK the open would block
    // until the FIFO is opened for writing.
    let nonblocking = rustix::fs::OFlags::NONBLOCK.bits() as i32;
    let mut options = OpenOptions::new();
    options.read(true).custom_flags(nonblocking);
    let file = open(&options, path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() {
        return Err(not_regular());
    }
    let stamp = CodeStamp::from_metadata(&metadata);
    let pid = process::id();
    Ok(CodeDescriptor { file: Some(file), stamp, pid })
}

#[cfg(all(test, not(miri)))]
mod tests {
    use super::*;

    fn read_start(file: &CodeFile) -> io::Result<[u8; 3]> {
        let mut start = [0; 3];
        file.read_exact_at(&mut start, 0).map(|()| start)
    }

    #[test]
    fn open_file_is_readable_after_replacement_released_is_not() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app");
        let replacement = dir.path().join("new");
        fs::write(&path, "old").unwrap();
        let file = CodeFile::open(&path).unwrap();
        file.release();
        assert_eq!((read_start(&file).unwrap(), file.open_descriptors()), (*b"old", 0));
        file.keep_open();
        fs::write(&replacement, "new").unwrap();
        fs::rename(&replacement, &path).unwrap();
        assert_eq!((read_start(&file).unwrap(), file.open_descriptors()), (*b"old", 1));
        assert!(!file.is_modified());
        file.release();
        assert!(read_start(&file).unwrap_err().to_string().contains("replaced"));
        file.keep_open();
        assert!(!file.is_open(), "the path leads to another file");
    }

    #[test]
    fn debug_file_counts_as_second_descriptor() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app");
        let debug = dir.path().join("app.debug");
        fs::write(&path, "old").unwrap();
        fs::write(&debug, "old").unwrap();
        let file = CodeFile::open(&path).unwrap();
        file.set_debug_file(Arc::new(CodeFile::open(&debug).unwrap()));
        assert_eq!((file.open_descriptors(), file.max_descriptors()), (2, 2));
        file.release();
        assert_eq!((file.open_descriptors(), file.max_descriptors()), (0, 2));
    }

    #[test]
    fn modification_is_detected() {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("app");
        fs::write(&path, "old").unwrap();
        let file = CodeFile::open(&path).unwrap();
        assert!(!file.is_modified());
        fs::write(&path, "other").unwrap();
        assert!(file.is_modified());
        assert_ne!(file, CodeFile::open(&path).unwrap());
        assert!(CodeFile::open(dir.path()).is_err());
    }
}
