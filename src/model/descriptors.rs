//! The open file descriptors of the process, grouped.

use jiff::Timestamp;

use super::Losses;

/// A count of descriptors with the same `target`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescriptorCount {
    /// Kind of the target, such as `"file"`, `"tcp"` or `"eventfd"`.
    pub kind: &'static str,
    /// Target, escaped. Empty if the entry counts a whole kind.
    pub target: String,
    /// Number of descriptors.
    pub count: u64,
}

/// The open file descriptors of the process, grouped by target. Each list is sorted by count, the
/// largest first.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DescriptorDump {
    /// Wall-clock time of the dump.
    pub taken_at: Timestamp,
    /// Number of open descriptors.
    pub open: u64,
    /// Soft limit of open descriptors (`RLIMIT_NOFILE`), or `None` if unlimited.
    pub limit: Option<u64>,
    /// Counts by kind.
    pub kinds: Vec<DescriptorCount>,
    /// Counts by target, the most frequent only.
    pub targets: Vec<DescriptorCount>,
    /// Counts of files by path pattern, with each run of digits replaced by `#`. Patterns that
    /// match a single file are left out.
    pub patterns: Vec<DescriptorCount>,
    /// Counts of files by directory, the most frequent only.
    pub directories: Vec<DescriptorCount>,
    /// Data missing from the dump, by cause.
    pub losses: Losses,
}
