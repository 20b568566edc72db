//! Stub: cgroups exist only on Linux.

use std::path::Path;

use super::{MemoryUse, ResourcePressure};
use crate::base::Bytes;
use crate::model::{Limit, LimitEffect};

/// A problem with limits; never occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitProblem {}

/// Stub of the cgroup limits.
#[derive(Debug)]
pub struct Cgroup;

impl Cgroup {
    /// Creates the stub.
    pub fn discover(_root: &Path) -> Self {
        Self
    }

    /// Does nothing.
    pub fn refresh(&mut self) {}

    /// Returns `None`.
    pub fn memory_limit(&self) -> Option<&Limit<Bytes>> {
        None
    }

    /// Returns `None`.
    pub fn cpu_limit(&self) -> Option<&Limit<f64>> {
        None
    }

    /// Returns the default: no values.
    pub fn pressure(&self) -> ResourcePressure {
        ResourcePressure::default()
    }

    /// Returns the default: no values.
    pub fn pressure_counters(&self) -> ResourcePressure {
        ResourcePressure::default()
    }

    /// Returns `None`.
    pub fn memory_use(&self) -> Option<MemoryUse> {
        None
    }

    /// Returns `None`.
    pub fn kill_limit(&self) -> Option<Bytes> {
        None
    }

    /// Returns the default.
    pub fn at_memory_limit(&self) -> LimitEffect {
        LimitEffect::default()
    }

    /// Returns `None`: the absence of cgroups is not a problem.
    pub fn problem(&self) -> Option<LimitProblem> {
        None
    }

    /// Returns no text: a [`LimitProblem`] cannot exist.
    pub fn describe(&self, problem: LimitProblem) -> String {
        match problem {}
    }
}
