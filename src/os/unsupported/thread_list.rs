//! Stub: threads are listed only on Linux.

use std::io;
use std::time::Duration;

/// Stub of the thread list; cannot be opened.
#[derive(Debug)]
pub struct ThreadList;

impl ThreadList {
    /// Returns an error: there is no list.
    pub fn open() -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Returns `None`.
    pub fn count(&self) -> Option<usize> {
        None
    }

    /// Returns an error: there is no list.
    pub fn list(&mut self, _tids: &mut Vec<u32>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Returns `None`.
    pub fn name(&self, _tid: u32) -> Option<String> {
        None
    }

    /// Returns `None`.
    pub fn run_delay(&self, _tid: u32) -> Option<Duration> {
        None
    }
}
