//! Stub: wakeups exist only on Linux.

use std::io;

/// Stub of the wakeup counter; cannot be opened.
#[derive(Debug, Default)]
pub struct WakeFd;

impl WakeFd {
    /// Creates the stub.
    pub const fn new() -> Self {
        Self
    }

    /// Returns an error: no thread can be woken.
    pub fn open(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Does nothing.
    pub fn wake(&self) {}

    /// Returns an error: there are no wakeups.
    pub fn consume(&self) -> io::Result<()> {
        Err(io::ErrorKind::Unsupported.into())
    }
}

/// Stub of a waiter, which never completes.
#[derive(Debug)]
pub struct EventListener;

impl EventListener {
    /// Returns an error: there is no counter to wait for.
    pub fn new(_wake: &'static WakeFd) -> io::Result<Self> {
        Err(io::ErrorKind::Unsupported.into())
    }

    /// Waits forever.
    pub async fn next(&self) {
        std::future::pending().await
    }
}
