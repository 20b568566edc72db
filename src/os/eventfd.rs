//! Thread wakeups by one `write` to an `eventfd`.
//!
//! The waking side takes no lock and does not allocate, so it may be the allocator or a signal
//! handler. `errno` is unchanged, because the call is made without libc. A condition variable would
//! need a lock, and the waiting thread waits for many other events at once.

#![allow(unsafe_code, reason = "registration of a descriptor, which must stay open, in the poller")]

use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::OnceLock;

use rustix::event::{EventfdFlags, eventfd};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::fork::NotInherited;

/// A counter that a thread can wait for.
#[derive(Debug)]
pub struct WakeFd(OnceLock<(Option<NotInherited>, OwnedFd)>);

impl WakeFd {
    /// Creates a counter without a waiter.
    pub const fn new() -> Self {
        Self(OnceLock::new())
    }

    /// Returns the counter, which is created at the first call. It is readable after a wakeup.
    pub fn open(&self) -> io::Result<&OwnedFd> {
        if let Some((_, fd)) = self.0.get() {
            return Ok(fd);
        }
        let fresh = eventfd(0, EventfdFlags::CLOEXEC | EventfdFlags::NONBLOCK)?;
        // Without the registration, a forked child would wake its parent and consume the parent's
        // wakeups.
        let own = NotInherited::for_eventfd(fresh.as_fd());
        Ok(&self.0.get_or_init(|| (own, fresh)).1)
    }

    /// Makes the counter readable, if it was opened.
    pub fn wake(&self) {
        if let Some((_, fd)) = self.0.get() {
            // Fails only if the counter is at its maximum, and then it is readable.
            let _ = rustix::io::write(fd, &1u64.to_ne_bytes());
        }
    }

    /// Resets the counter to unreadable. Fails with `WouldBlock` if it was not readable.
    pub fn consume(&self) -> io::Result<()> {
        let (_, fd) = self.0.get().ok_or(io::ErrorKind::WouldBlock)?;
        rustix::io::read(fd, &mut [0; 8])?;
        Ok(())
    }
}

/// A waiter for a [`WakeFd`], bound to the runtime it was created on.
#[derive(Debug)]
pub struct EventListener {
    wake: &'static WakeFd,
    ready: AsyncFd<BorrowedFd<'static>>,
}

impl EventListener {
    /// Creates a waiter for `wake`. Must be called on a runtime with I/O enabled.
    ///
    /// # Errors
    ///
    /// Returns an error if no counter can be created, or the runtime's poller rejects it.
    pub fn new(wake: &'static WakeFd) -> io::Result<Self> {
        let fd = wake.open()?.as_fd();
        // SAFETY: the descriptor is in a static that never releases it, so it stays open and
        // unchanged for the life of the process.
        let ready = unsafe { AsyncFd::register_with_interest(fd, Interest::READABLE) }?;
        Ok(Self { wake, ready })
    }

    /// Waits for the next wakeup; several pending wakeups count as one. Cancel-safe: no wakeup is
    /// lost if the future is dropped.
    pub async fn next(&self) {
        while let Ok(mut guard) = self.ready.readable().await {
            if let Ok(Ok(())) = guard.try_io(|_| self.wake.consume()) {
                return;
            }
        }
        // The runtime is shutting down.
        std::future::pending().await
    }
}

impl Default for WakeFd {
    fn default() -> Self {
        Self::new()
    }
}
