//! Wakes nobody.

use std::io;

/// A counter that cannot be had.
#[derive(Debug, Default)]
pub struct Wake;

impl Wake {
    /// None.
    pub const fn new() -> Self {
        Self
    }

    /// An error: nobody can be woken.
    pub fn open(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Does nothing.
    pub fn wake(&self) {}

    /// An error: nobody can have woken.
    pub fn hear(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Waits for ever.
#[derive(Debug)]
pub struct Listener;

impl Listener {
    /// An error: there is no counter to wait for.
    pub fn new(_wake: &'static Wake) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Never comes.
    pub async fn next(&self) {
        std::future::pending().await
    }
}
