//! Waking a thread from anywhere: one `write` to an `eventfd`.
//!
//! Whoever wakes takes no lock and allocates nothing, so it may be the allocator or a signal handler;
//! `errno` is left alone, because the call is made without libc. A condition variable would need a lock,
//! and the waiter here waits for a dozen other things at once.

#![allow(unsafe_code)]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::event::{EventfdFlags, eventfd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::fork::NotInherited;

/// A counter somebody may wait for.
#[derive(Debug)]
pub struct Wake(OnceLock<(Option<NotInherited>, OwnedFd)>);

impl Wake {
    /// One nobody waits for yet.
    pub const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// The counter, made at the first call; readable once somebody woke.
    pub fn open(&self) -> io::Result<&OwnedFd> {
        if let Some((_, fd)) = self.0.get() {
            return Ok(fd);
        }
        let fresh = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // A forked child would wake its parent, and take the parent's wakeups.
        let own = NotInherited::counter(fresh.as_fd());
        Ok(&self.0.get_or_init(|| (own, fresh)).1)
    }

    /// Makes the counter readable, if anybody has opened it.
    pub fn wake(&self) {
        if let Some((_, fd)) = self.0.get() {
            // Refused only when it is at its maximum, and then it is readable.
            let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
        }
    }

    /// Makes it unreadable; an error of the kind `WouldBlock` if it was.
    pub fn hear(&self) -> io::Result<()> {
        let (_, fd) = self.0.get().ok_or(io::ErrorKind::WouldBlock)?;
        rustix::io::read(fd, &mut [0; 8])?;
        Ok(())
    }
}

/// Waits for a [`Wake`], on the runtime it was made on.
#[derive(Debug)]
pub struct Listener {
    wake: &'static Wake,
    ready: AsyncFd<BorrowedFd<'static>>,
}

impl Listener {
    /// Listens to `wake` from here on; to be called on a runtime that has I/O enabled.
    ///
    /// # Errors
    ///
    /// When there is no counter to be had, or the runtime's poller refuses it.
    pub fn new(wake: &'static Wake) -> io::Result<Self> {
        let fd = wake.open()?.as_fd();
        // SAFETY: the descriptor lives in a static that never gives it up, so it stays open and the
        // same for as long as there is a process.
        let ready = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Self { wake, ready })
    }

    /// The next waking; several that nobody heard are one. Nothing is lost when the future is dropped.
    pub async fn next(&self) {
        while let Ok(mut guard) = self.ready.readable().await {
            if let Ok(Ok(())) = guard.try_io(|_| self.wake.hear()) {
                return;
            }
        }
        // The runtime is shutting down.
        std::future::pending().await
    }
}

impl Default for Wake {
    fn default() -> Self {
        Self::new()
    }
}
