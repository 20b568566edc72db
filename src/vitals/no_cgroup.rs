//! Stub: cgroups exist only on Linux.

use std::path::Path;

use crate::base::{Bytes, Percent};
use crate::model::{Limit, LimitEffect};

/// Pressure counters and averages; always `None`.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[allow(missing_docs, reason = "documented in the Linux module")]
pub struct ResourcePressure {
    pub cpu_periods: Option<u64>,
    pub throttled_periods: Option<u64>,
    pub memory_level: Option<usize>,
    pub memory_high_events: Option<u64>,
    pub memory_max_events: Option<u64>,
    pub oom_kills: Option<u64>,
    pub memory_pressure: Option<Percent>,
    pub cpu_pressure: Option<Percent>,
    pub io_pressure: Option<Percent>,
}

/// A problem with limits; never occurs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitProblem {}

/// Memory charged to a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "documented in the Linux module")]
pub struct MemoryUse {
    pub working_set: Bytes,
    pub reclaimable: Bytes,
}

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
