//! Findings: conclusions about an incident, with their evidence.

use std::collections::BTreeMap;
use std::fmt;

use serde::{Deserialize, Serialize};

/// A conclusion about an incident.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct Finding {
    /// Position among the findings of the incident, from 1. The first explains the incident best.
    pub rank: u32,
    /// Kind of the finding.
    pub kind: FindingKind,
    /// Confidence. It follows from the measured values and their errors.
    pub confidence: Confidence,
    /// Function, spawn site, lock, file kind or resource, as a text to search for in the source.
    /// For a function: the innermost one of the application.
    pub subject: String,
    /// The conclusion in one sentence.
    pub text: String,
    /// Numbers of the conclusion by name, such as `bytes`, `standard_error` and `share`. Shares are
    /// between 0 and 1.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub numbers: BTreeMap<String, f64>,
    /// Further properties by name, such as `task`, `span` and `thread`.
    #[serde(default, skip_serializing_if = "BTreeMap::is_empty")]
    pub labels: BTreeMap<String, String>,
    /// The stack behind the conclusion, innermost function first. Empty if it has none.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub stack: Vec<String>,
    /// Files that show it.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub evidence: Vec<FindingEvidence>,
}

/// A file that shows a [`Finding`], and a command that reads it.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub struct FindingEvidence {
    /// File name in the incident's directory.
    pub file: String,
    /// Command to run in that directory.
    pub command: String,
}

/// The kind of a [`Finding`].
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum FindingKind {
    /// The live heap of a function grew.
    HeapGrowth,
    /// Blocks of a function are allocated and not freed.
    LeakSuspect,
    /// Most of the memory is not in the heap profile.
    MemoryOutsideHeap,
    /// A function uses much CPU time.
    CpuHot,
    /// A function uses much more CPU time than before.
    CpuChanged,
    /// A poll blocks its worker.
    Stall,
    /// The workers or the blocking pool of a runtime are busy.
    RuntimeStarved,
    /// The number of tasks of a spawn site grew, or is large.
    TaskGrowth,
    /// Tasks wait for an event that cannot occur.
    TaskLeak,
    /// Threads or tasks wait for the same lock.
    LockWait,
    /// The number of open file descriptors grew, or is large.
    FdGrowth,
    /// The number of threads grew, or is large.
    ThreadGrowth,
    /// The CPU quota throttled the process.
    Throttled,
    /// The service panicked.
    Panics,
    /// The process waited for memory, CPU or I/O of the machine.
    Pressure,
    /// The captured data does not explain the incident.
    Unexplained,
}

impl FindingKind {
    /// Returns the name used in manifests and metrics.
    pub const fn name(self) -> &'static str {
        match self {
            Self::HeapGrowth => "heap-growth",
            Self::LeakSuspect => "leak-suspect",
            Self::MemoryOutsideHeap => "memory-outside-heap",
            Self::CpuHot => "cpu-hot",
            Self::CpuChanged => "cpu-changed",
            Self::Stall => "stall",
            Self::RuntimeStarved => "runtime-starved",
            Self::TaskGrowth => "task-growth",
            Self::TaskLeak => "task-leak",
            Self::LockWait => "lock-wait",
            Self::FdGrowth => "fd-growth",
            Self::ThreadGrowth => "thread-growth",
            Self::Throttled => "throttled",
            Self::Panics => "panics",
            Self::Pressure => "pressure",
            Self::Unexplained => "unexplained",
        }
    }
}

impl fmt::Display for FindingKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}

/// The confidence of a [`Finding`], the lowest first.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
#[cfg_attr(not(feature = "internals"), non_exhaustive)]
pub enum Confidence {
    /// The data allows the conclusion, but other explanations fit as well.
    Possible,
    /// The measured value is at least two standard errors from the value that would refute it.
    Likely,
    /// Measured without sampling, or at least five standard errors from a refutation.
    Certain,
}

impl Confidence {
    /// Returns the name used in manifests and reports.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Possible => "possible",
            Self::Likely => "likely",
            Self::Certain => "certain",
        }
    }
}

impl fmt::Display for Confidence {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(self.name())
    }
}
