//! Stub: stack samples of other threads are taken on Linux only.

use crate::base::Clock;
use crate::os::images::Error;
use crate::os::stack_snapshot::Copied;
use crate::unwind::{End, Walker};

/// Signal used for sampling on Linux.
pub const SIGNAL: i32 = libc::SIGURG;

/// Maximum signals in flight on Linux.
pub const BATCH: usize = 64;

/// Sampled state of a thread.
pub struct Caught<'a> {
    /// Its registers and stack.
    pub copied: &'a Copied,
    /// Addresses of the frames.
    pub frames: &'a [u64],
    /// Stack pointer of each of these frames.
    pub pointers: &'a [u64],
    /// Reason for the end of the walk.
    pub end: End,
}

/// Stub of the sampler. It is never constructed, because [`Net::cast`] always fails.
pub struct Net;

impl Drop for Net {
    /// Present because the Linux version has a destructor.
    fn drop(&mut self) {}
}

impl Net {
    /// Returns an error: stacks are unavailable on this platform.
    pub fn cast() -> Result<Self, String> {
        Err("no stacks: threads are asked on Linux only".to_owned())
    }

    /// Samples nothing.
    pub fn catch(
        &self,
        _clock: &dyn Clock,
        _tids: impl IntoIterator<Item = u32>,
        _walker: &mut Walker,
        _ended: impl FnMut(u32),
        _take: impl FnMut(u32, &[u64], End),
    ) -> Result<(), Error> {
        Ok(())
    }

    /// Samples nothing.
    pub fn catch_whole(
        &self,
        _clock: &dyn Clock,
        _tids: impl IntoIterator<Item = u32>,
        _walker: &mut Walker,
        _ended: impl FnMut(u32),
        _take: impl FnMut(Caught<'_>),
    ) -> Result<(), Error> {
        Ok(())
    }
}
