//! Asks no thread.

use crate::base::Clock;
use crate::os::copied::Copied;
use crate::os::images::Error;
use crate::unwind::{End, Walker};

/// The signal there would be.
pub const SIGNAL: i32 = libc::SIGURG;

/// Threads signalled at once.
pub const BATCH: usize = 64;

/// What a thread that was asked would show.
pub struct Caught<'a> {
    /// Its registers and stack.
    pub copied: &'a Copied,
    /// Where it is.
    pub frames: &'a [u64],
    /// The stack pointers.
    pub pointers: &'a [u64],
    /// How the walk ended.
    pub end: End,
}

/// The right to ask, which nobody has.
pub struct Net;

impl Drop for Net {
    /// As on Linux there is something to give back.
    fn drop(&mut self) {}
}

impl Net {
    /// Why there are no stacks.
    pub fn cast() -> Result<Self, String> {
        Err("no stacks: threads are asked on Linux only".to_owned())
    }

    /// Nobody answers.
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

    /// Nobody answers.
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
