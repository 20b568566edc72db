//! The open file descriptors of the process, grouped.

use jiff::Timestamp;

use super::Losses;

/// A count of descriptors with the same `target`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescriptorCount {
    /// Kind of the target, such as `"file"`, `"tcp"` or `"eventfd"`.
    pub kind: &'static str,
    /// Target, escaped. Of a kind alone it is empty.
    pub target: String,
    /// Number of descriptors.
    pub count: u64,
}

/// The open file descriptors of the process, by what they refer to. Each list is sorted, the largest count first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescriptorDump {
    /// Wall-clock time at which it was taken.
    pub taken: Timestamp,
    /// Number of open descriptors.
    pub open: u64,
    /// Soft limit of their number, or `None` without one.
    pub limit: Option<u64>,
    /// Counts by kind.
    pub kinds: Vec<DescriptorCount>,
    /// Counts by target; the most frequent ones only.
    pub targets: Vec<DescriptorCount>,
    /// Counts of files by the pattern of their path: each run of digits is `#`. Patterns of one file are left out.
    pub patterns: Vec<DescriptorCount>,
    /// Counts of files by directory; the most frequent ones only.
    pub directories: Vec<DescriptorCount>,
    /// What it lacks.
    pub losses: Losses,
}
