//! The rings of perf events that have samples to read.

use std::io;
use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;

use rustix::event::epoll;

use super::PerfEvent;
use crate::base::spare;

/// Maximum number of reads per call, of up to 64 filled rings each.
const MAX_READS: usize = 32;

/// The set of rings that have reached their watermark, found without checking each ring.
pub struct FilledRings {
    epoll: OwnedFd,
    pid: u32,
}

impl FilledRings {
    /// Creates an empty set. Takes one descriptor.
    ///
    /// # Errors
    ///
    /// Returns an error if no descriptor is left.
    pub fn new() -> io::Result<Self> {
        let epoll = spare::open_with_retry(|| epoll::create(epoll::CreateFlags::CLOEXEC))?;
        Ok(Self { epoll, pid: std::process::id() })
    }

    /// Adds the ring of `event`, which is reported as `id`. It is removed when the event is closed.
    ///
    /// # Errors
    ///
    /// Returns an error if the kernel has no memory left, or the user's limit of epoll watches is
    /// reached.
    pub fn add(&self, event: &PerfEvent, id: u32) -> io::Result<()> {
        let data = epoll::EventData::new_u64(id.into());
        Ok(epoll::add(&self.epoll, &event.fd, data, epoll::EventFlags::IN)?)
    }

    /// Appends the IDs of rings that were filled since the last call to `ids`, then sorts and
    /// deduplicates it. Costs 1 us, and some more for each ring.
    ///
    /// # Errors
    ///
    /// Returns an error in a forked child.
    pub fn read(&mut self, ids: &mut Vec<u32>) -> io::Result<()> {
        if self.pid != std::process::id() {
            return Err(io::ErrorKind::Unsupported.into());
        }
        let mut events = [MaybeUninit::uninit(); 64];
        let now = rustix::event::Timespec { tv_sec: 0, tv_nsec: 0 };
        // The kernel moves reported rings to the end of its list. A ring whose thread has exited is
        // reported each time, so the list might never end.
        for _ in 0..MAX_READS {
            let (filled, _) = epoll::wait(&self.epoll, &mut events, Some(&now))?;
            let count = filled.len();
            ids.extend(filled.iter().map(|event| event.data.u64() as u32));
            if count < 64 {
                break;
            }
        }
        ids.sort_unstable();
        ids.dedup();
        Ok(())
    }
}
