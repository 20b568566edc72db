//! Stub: stack samples of other threads are taken on Linux only.

use super::ThreadStack;
use crate::base::Clock;
use crate::os::images::Error;
use crate::unwind::{StackWalker, WalkEnd};

/// Stub of the sampler. It is never constructed, because [`ThreadSampler::lock`] always fails.
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
