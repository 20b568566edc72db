//! A small kernel file that is opened once and read repeatedly.
//!
//! The kernel regenerates such a file at every read from offset zero. A read is therefore one
//! `pread` into the caller's stack: 1.2 to 1.5 us for a counter, with no allocation and no path
//! lookup. Opening it each time costs three times that, and fails when the host has run out of
//! descriptors.
//!
//! The descriptors stay open and count towards the process's limit: about ten of them. Files that
//! may be numerous, such as one for each level of cgroups, use [`ReopenedFile`].

use crate::base::spare::{self, OpenError as _};
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use rustix::fs::{Mode, OFlags, open};
use rustix::io::{Errno, pread};

/// Buffer size for any file read here. The longest is `memory.stat`: 0.9 KiB in v1, 1.5 to 3 KiB in
/// v2.
pub(crate) const BUFFER_BYTES: usize = 8 << 10;

/// An open kernel file.
#[derive(Debug)]
pub(crate) struct KernelFile(OwnedFd);

impl KernelFile {
    /// Opens `path`. Returns `None` if it does not exist or is not readable.
    pub(crate) fn open(path: &Path) -> Option<Self> {
        Self::try_open(path).ok()
    }

    /// Opens `path`, or returns the error.
    fn try_open(path: &Path) -> Result<Self, Errno> {
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        spare::open_with_retry(|| open(path, flags, Mode::empty())).map(Self)
    }

    /// Returns the content. Returns `None` if it fills `buffer`: the file may be longer, and its
    /// last number truncated.
    pub(crate) fn read<'b>(&self, buffer: &'b mut [u8]) -> Option<&'b [u8]> {
        loop {
            match pread(&self.0, &mut *buffer, 0) {
                Ok(len) if len == buffer.len() => return None,
                Ok(len) => return buffer.get(..len),
                Err(Errno::INTR) => {}
                Err(_) => return None,
            }
        }
    }

    /// Returns the content as a single number.
    pub(crate) fn read_number(&self) -> Option<u64> {
        let mut buffer = [0; 64];
        parse_number(self.read(&mut buffer)?)
    }
}

/// A short kernel file that is read rarely: opened for each read, so that it holds no descriptor in
/// between.
#[derive(Debug)]
pub(crate) struct ReopenedFile {
    path: PathBuf,
    text: [u8; LINE_BYTES],
    /// Length of the text last read, or `None` if there is none.
    len: Option<usize>,
}

/// Buffer size of a [`ReopenedFile`]: two numbers.
const LINE_BYTES: usize = 64;

impl ReopenedFile {
    /// Creates a reader of `path`. Returns `None` if the file cannot be opened, except for lack of
    /// descriptors.
    pub(crate) fn new(path: PathBuf) -> Option<Self> {
        Self::try_new(path).ok()
    }

    /// Creates a reader like [`Self::new`], or returns the error.
    pub(crate) fn try_new(path: PathBuf) -> Result<Self, Errno> {
        match KernelFile::try_open(&path) {
            Err(error) if !error.is_out_of_descriptors() => Err(error),
            _ => Ok(Self { path, text: [0; LINE_BYTES], len: None }),
        }
    }

    /// Returns the content. If the process has no free descriptor, returns the text of the previous
    /// read.
    pub(crate) fn read(&mut self) -> Option<&[u8]> {
        match KernelFile::try_open(&self.path) {
            Ok(file) => self.len = file.read(&mut self.text).map(<[u8]>::len),
            Err(error) if error.is_out_of_descriptors() => {}
            Err(_) => self.len = None,
        }
        self.text.get(..self.len?)
    }

    /// Returns the content as a single number.
    pub(crate) fn read_number(&mut self) -> Option<u64> {
        parse_number(self.read()?)
    }
}

/// Parses `text` as a number. Returns `None` for anything else, such as `max` or `-1`.
pub(crate) fn parse_number(text: &[u8]) -> Option<u64> {
    std::str::from_utf8(text.trim_ascii()).ok()?.parse().ok()
}

/// Returns the number after `key` in a file of lines `KEY NUMBER`.
pub(crate) fn parse_value(key: &str, text: &[u8]) -> Option<u64> {
    text.split(|&byte| byte == b'\n').find_map(|line| {
        let value = line.strip_prefix(key.as_bytes())?.strip_prefix(b" ")?;
        parse_number(value)
    })
}

/// Returns the words of `text`.
pub(crate) fn split_words(text: &[u8]) -> impl Iterator<Item = &[u8]> {
    text.split(u8::is_ascii_whitespace).filter(|word| !word.is_empty())
}

/// Returns the absolute `path` relative to `root`.
pub(crate) fn join_root(root: &Path, path: &Path) -> PathBuf {
    root.join(path.strip_prefix("/").unwrap_or(path))
}
