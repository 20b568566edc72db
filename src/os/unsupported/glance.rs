//! Sees no thread.

use std::time::Duration;

use super::threads::Thread;

/// How much the kernel let a thread run.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Runs {
    /// CPU time.
    pub cpu: Duration,
    /// Time it waited for a core.
    pub waited: Duration,
    /// How often it was given one.
    pub turns: u64,
}

/// What cannot be opened.
pub struct Eyes;

impl Eyes {
    /// Why threads cannot be seen.
    pub fn open() -> Result<Self, String> {
        Err("threads can be seen on Linux only".to_owned())
    }

    /// None.
    pub fn look(&self, _tid: u32) -> Option<(Thread, Runs)> {
        None
    }

    /// None.
    pub fn runs(&self, _tid: u32) -> Option<Runs> {
        None
    }
}
