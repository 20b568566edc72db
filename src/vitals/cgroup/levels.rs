//! The levels of cgroups from the process's own up to the mount point.

use std::path::Path;

use super::path::CgroupPath;
use crate::model::Limit;

/// Maximum number of levels read on the way up. Kubernetes creates five, systemd rarely more than
/// eight.
const MAX_LEVELS: usize = 16;

/// Returns the smallest of `limits`, which are ordered from the lowest level up, and its index. Of
/// equal limits the higher level wins.
pub(super) fn smallest_limit<T: PartialOrd>(
    limits: impl Iterator<Item = Option<Limit<T>>>,
) -> Option<(usize, Limit<T>)> {
    let present_limits = limits.enumerate().filter_map(|(index, limit)| Some((index, limit?)));
    present_limits
        .reduce(|smallest, next| if next.1.value <= smallest.1.value { next } else { smallest })
}

/// Returns the directories from that of `cgroup` up to its mount point.
pub(super) fn ancestors(cgroup: &CgroupPath) -> impl Iterator<Item = &Path> {
    cgroup.dir.ancestors().take_while(|dir| dir.starts_with(&cgroup.mount)).take(MAX_LEVELS)
}
