//! Stub: stack samples of other threads are taken on Linux only.

use crate::base::Clock;
use crate::os::images::Error;
use crate::os::stack_snapshot::StackSnapshot;
use crate::unwind::{StackWalker, WalkEnd};

/// Signal used for sampling on Linux.
pub const SIGNAL: i32 = libc::SIGURG;

/// Maximum signals in flight on Linux.
pub const MAX_IN_FLIGHT: usize = 64;

/// Sampled state of a thread.
pub struct ThreadStack<'a> {
    /// Its registers and stack.
    pub snapshot: &'a StackSnapshot,
    /// Addresses of the frames.
    pub frames: &'a [u64],
    /// Stack pointer of each of these frames.
    pub pointers: &'a [u64],
    /// Reason for the end of the walk.
    pub end: WalkEnd,
}

/// Stub of the sampler. It is never constructed, because [`ThreadSampler::cast`] always fails.
pub struct ThreadSampler;

impl Drop for ThreadSampler {
    /// Present because the Linux version has a destructor.
    fn drop(&mut self) {}
}

impl ThreadSampler {
    /// Returns an error: stacks are unavailable on this platform.
    pub fn lock() -> Result<Self, String> {
        Err("no stacks: threads can be sampled on Linux only".to_owned())
    }

    /// Samples nothing.
    pub fn sample(
        &self,
        _clock: &dyn Clock,
        _tids: impl IntoIterator<Item = u32>,
        _walker: &mut StackWalker,
        _ended: impl FnMut(u32),
        _take: impl FnMut(u32, &[u64], WalkEnd),
    ) -> Result<(), Error> {
        Ok(())
    }

    /// Samples nothing.
    pub fn sample_with_registers(
        &self,
        _clock: &dyn Clock,
        _tids: impl IntoIterator<Item = u32>,
        _walker: &mut StackWalker,
        _ended: impl FnMut(u32),
        _take: impl FnMut(ThreadStack<'_>),
    ) -> Result<(), Error> {
        Ok(())
    }
}
