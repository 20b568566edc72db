//! Limits of cgroups, which only Linux has.

use std::path::Path;

use crate::base::{Bytes, Percent};
use crate::model::{AtLimit, Limit};

/// What the kernel has counted and measured: nothing.
#[derive(Clone, Copy, Debug, Default, PartialEq)]
#[allow(missing_docs, reason = "as on Linux")]
pub struct Strain {
    pub periods: Option<u64>,
    pub throttled: Option<u64>,
    pub memory_level: Option<usize>,
    pub memory_high: Option<u64>,
    pub memory_max: Option<u64>,
    pub oom_kills: Option<u64>,
    pub memory_pressure: Option<Percent>,
    pub cpu_pressure: Option<Percent>,
    pub io_pressure: Option<Percent>,
}

/// There is none.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Problem {}

/// Memory charged to a cgroup.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[allow(missing_docs, reason = "as on Linux")]
pub struct MemoryUse {
    pub working_set: Bytes,
    pub reclaimable: Bytes,
}

/// No cgroup.
#[derive(Debug)]
pub struct Cgroup;

impl Cgroup {
    /// Finds none.
    pub fn discover(_root: &Path) -> Self {
        Self
    }

    /// Does nothing.
    pub fn refresh(&mut self) {}

    /// None.
    pub fn memory_limit(&self) -> Option<&Limit<Bytes>> {
        None
    }

    /// None.
    pub fn cpu_limit(&self) -> Option<&Limit<f64>> {
        None
    }

    /// Nothing.
    pub fn strain(&self) -> Strain {
        Strain::default()
    }

    /// Nothing.
    pub fn strain_counters(&self) -> Strain {
        Strain::default()
    }

    /// None.
    pub fn memory_use(&self) -> Option<MemoryUse> {
        None
    }

    /// None.
    pub fn kill_limit(&self) -> Option<Bytes> {
        None
    }

    /// The default.
    pub fn at_memory_limit(&self) -> AtLimit {
        AtLimit::default()
    }

    /// None: that there are no cgroups is no problem.
    pub fn problem(&self) -> Option<Problem> {
        None
    }

    /// Nothing.
    pub fn describe(&self, problem: Problem) -> String {
        match problem {}
    }
}
