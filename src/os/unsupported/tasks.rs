//! Lists no thread.

use std::io;
use std::time::Duration;

/// What cannot be opened.
#[derive(Debug)]
pub struct Tasks;

impl Tasks {
    /// An error: there is no list.
    pub fn open() -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// None.
    pub fn count(&self) -> Option<usize> {
        None
    }

    /// An error: there is no list.
    pub fn list(&mut self, _tids: &mut Vec<u32>) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// None.
    pub fn name(&self, _tid: u32) -> Option<String> {
        None
    }

    /// None.
    pub fn run_delay(&self, _tid: u32) -> Option<Duration> {
        None
    }
}
