//! One small file of the kernel's, opened once and read again and again.
//!
//! Such a file is made anew at every read from offset zero, so a `pread` into the caller's stack is
//! all a reading costs: 1.2 to 1.5 us for a counter, no allocation, no path walk. Opening it each
//! time costs three times that, and fails just when the host has run out of descriptors.
//!
//! The descriptors stay open, and so count among the process's own: about ten of them. Files of which there
//! may be many, such as those of each level of cgroups, are a [`ReopenedFile`].

use crate::base::spare::{self, OpenError as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, pread};

/// Room for any file read here. The longest is `memory.stat`: 0.9 KiB in v1, 1.5 to 3 KiB in v2.
pub(super) const BUFFER: usize = 8 << 10;

/// An open kernel file.
#[derive(Debug)]
pub(super) struct KernelFile(OwnedFd);

impl KernelFile {
    /// Opens `path`; none when it is not there or not ours to read.
    pub(super) fn open(path: &Path) -> Option<Self> {
        Self::try_open(path).ok()
    }

    /// Opens `path`, or returns why that cannot be done.
    fn try_open(path: &Path) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        spare::with(|| open(path, flags, Mode::empty())).map(Self)
    }

    /// What stands in it. None when it fills `buffer`: it may be longer, and its last number cut.
    pub(super) fn read<'b>(&self, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
        loop {
            match pread(&self.0, &mut *buffer, 0) {
                Ok(len) if len == buffer.len() => return None,
                Ok(len) => return buffer.get(..len),
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
    }

    /// The number that is all of it.
    pub(super) fn read_number(&self) -> Option<u64> {
        let mut buffer = [0; 64];
        number(self.read(&mut buffer)?)
    }
}

/// A line of the kernel's that is read seldom: opened for each read, so that it holds no descriptor between them.
#[derive(Debug)]
pub(super) struct ReopenedFile {
    path: PathBuf,
    text: [u8; LINE],
    /// Length of the text last read, or `None` if there is none.
    len: Option<usize>,
}

/// Room for a [`ReopenedFile`]: two numbers.
const LINE: usize = 64;

impl ReopenedFile {
    /// Returns the file at `path`, or `None` if it cannot be opened for another reason than a lack of descriptors.
    pub(super) fn new(path: PathBuf) -> Option<Self> {
        Self::try_new(path).ok()
    }

    /// As [`Self::new`], with the reason.
    pub(super) fn try_new(path: PathBuf) -> Result<Self, Errno> {
        match KernelFile::try_open(&path) {
            Err(error) if !error.is_out_of_descriptors() => Err(error),
            _ => Ok(Self { path, text: [0; LINE], len: None }),
        }
    }

    /// Returns its text. If the process has no descriptor left, that is the text read before.
    pub(super) fn read(&mut self) -> Option<&[u8]> {
        match KernelFile::try_open(&self.path) {
            Ok(file) => self.len = file.read(&mut self.text).map(<[u8]>::len),
            Err(error) if error.is_out_of_descriptors() => {}
            Err(_) => self.len = None,
        }
        self.text.get(..self.len?)
    }

    /// Returns the number that is all of it.
    pub(super) fn read_number(&mut self) -> Option<u64> {
        number(self.read()?)
    }
}

/// `text` as a number; none for anything else, such as `max` or `-1`.
pub(super) fn number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text.trim_ascii()).ok()?.parse().ok()
}

/// The words of `text`.
pub(super) fn words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// `path`, which starts at the root of a file system, seen from `root`.
pub(super) fn under(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}
