//! Memory limits along a path of cgroups, and the usage charged to the effective one.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use rustix::io::Errno;

use super::MemoryUse;
use super::levels::{ancestors, smallest_limit};
use super::path::{CgroupPath, Version};
use crate::base::Bytes;
use crate::model::{Limit, LimitEffect};
use crate::os::kernel_file::{BUFFER_BYTES, KernelFile, ReopenedFile, join_root, parse_value};

/// Smallest v1 value that means "no limit". An unlimited v1 cgroup reads as the highest multiple of
/// the page size below 2^63 (below 2^64 before Linux 3.19), which varies; no machine has an
/// exbibyte.
const UNLIMITED_THRESHOLD: u64 = 1 << 60;

/// The part of the limits that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum LimitProblem {
    /// The cgroup of the process is unknown.
    NoMembership,
    /// The cgroup is known but no mount shows it.
    NotMounted,
    /// Some limit files cannot be read.
    Unreadable,
    /// No limit is visible, and there are ancestors above the highest visible cgroup.
    HiddenAncestors,
    /// A limit exists, but the usage charged to it cannot be read.
    UsageUnreadable {
        /// Index of the limit.
        level: usize,
    },
}

/// The limits from the process's cgroup upwards, and the effective one.
#[derive(Debug, Default)]
pub(super) struct MemoryLimits {
    limit_files: Vec<LimitFile>,
    effective: Option<EffectiveLimit>,
    /// Smallest limit at which the kernel kills.
    kill_limit: Option<Bytes>,
    /// Limit files that exist but cannot be read, with the error.
    unreadable: Vec<String>,
    /// Set if there are ancestors above the highest visible cgroup.
    has_hidden_ancestors: bool,
}

/// A limit file. A v2 cgroup has two.
#[derive(Debug)]
struct LimitFile {
    version: Version,
    dir: PathBuf,
    at_limit: LimitEffect,
    file: ReopenedFile,
    source: Arc<str>,
}

impl LimitFile {
    fn read(&mut self) -> Option<Limit<Bytes>> {
        let value = self.file.read_number().filter(|&bytes| bytes < UNLIMITED_THRESHOLD)?;
        // `memory.high = 0` is written to force a one-time reclaim of cold memory; usage is never
        // below it.
        if value == 0 && self.at_limit == LimitEffect::Throttle {
            return None;
        }
        Some(Limit { value: Bytes(value), source: self.source.clone() })
    }
}

/// The effective limit and the files with the usage charged to it.
#[derive(Debug)]
struct EffectiveLimit {
    index: usize,
    limit: Limit<Bytes>,
    usage: Option<KernelFile>,
    stat: Option<KernelFile>,
    /// `memory.events` in v2, `memory.failcnt` in v1.
    events: Option<KernelFile>,
}

impl MemoryLimits {
    /// Opens the limit files from `place` up.
    pub(super) fn open(root: &Path, cgroup: &CgroupPath) -> Self {
        let mut memory = Self::default();
        // Before Linux 5.11 a v1 cgroup could be configured not to count its descendants' usage.
        let counts_descendants = |dir: &Path| {
            let own = KernelFile::open(&join_root(root, &dir.join("memory.use_hierarchy")));
            own.and_then(|file| file.read_number()) != Some(0)
        };
        let levels = ancestors(cgroup).enumerate();
        for (_, dir) in levels.take_while(|&(above, dir)| above == 0 || counts_descendants(dir)) {
            let files: &[_] = match cgroup.version {
                Version::V1 => &[("memory.limit_in_bytes", LimitEffect::Kill)],
                // `memory.max` is last: of two equal limits the later one wins, and that is the one
                // that kills.
                Version::V2 => {
                    &[("memory.high", LimitEffect::Throttle), ("memory.max", LimitEffect::Kill)]
                }
            };
            for &(name, at_limit) in files {
                memory.add(root, cgroup.version, dir, name, at_limit);
            }
        }
        // A v2 root has no limits, so a `memory.max` at the mount point means that it is not the
        // root. A v1 root has limits, so only a partial mount reveals ancestors above it.
        memory.has_hidden_ancestors = match cgroup.version {
            Version::V1 => cgroup.is_partial_mount,
            Version::V2 => {
                cgroup.is_partial_mount
                    || join_root(root, &cgroup.mount.join("memory.max")).exists()
            }
        };
        memory
    }

    fn add(
        &mut self,
        root: &Path,
        version: Version,
        dir: &Path,
        name: &str,
        at_limit: LimitEffect,
    ) {
        let path = dir.join(name);
        let source: Arc<str> = path.to_string_lossy().into();
        match ReopenedFile::try_new(join_root(root, &path)) {
            Ok(file) => {
                self.limit_files.push(LimitFile {
                    version,
                    dir: dir.to_owned(),
                    at_limit,
                    file,
                    source,
                });
            }
            Err(Errno::NOENT) => {}
            Err(error) => self.unreadable.push(format!("{source}: {error}")),
        }
    }

    pub(super) fn refresh(&mut self, root: &Path) {
        self.kill_limit = None;
        let kill_limit = &mut self.kill_limit;
        let limits = self.limit_files.iter_mut().map(|wall| {
            let limit = wall.read();
            if let (Some(limit), LimitEffect::Kill) = (&limit, wall.at_limit) {
                *kill_limit =
                    Some(kill_limit.map_or(limit.value, |smallest| smallest.min(limit.value)));
            }
            limit
        });
        let Some((index, limit)) = smallest_limit(limits) else {
            self.effective = None;
            return;
        };
        if let Some(current) = self.effective.as_mut().filter(|known| known.index == index) {
            current.limit = limit;
            return;
        }
        self.effective = self.limit_files.get(index).map(|wall| {
            let open = |name| KernelFile::open(&join_root(root, &wall.dir.join(name)));
            let (usage, events) = match wall.version {
                Version::V1 => ("memory.usage_in_bytes", "memory.failcnt"),
                Version::V2 => ("memory.current", "memory.events"),
            };
            let usage = open(usage);
            let events = open(events);
            EffectiveLimit { index, limit, usage, stat: open("memory.stat"), events }
        });
    }

    pub(super) fn limit(&self) -> Option<&Limit<Bytes>> {
        self.effective.as_ref().map(|effective| &effective.limit)
    }

    pub(super) fn kill_limit(&self) -> Option<Bytes> {
        self.kill_limit
    }

    fn effective_file(&self) -> Option<&LimitFile> {
        self.limit_files.get(self.effective.as_ref()?.index)
    }

    pub(super) fn at_limit(&self) -> LimitEffect {
        self.effective_file().map_or_else(LimitEffect::default, |wall| wall.at_limit)
    }

    /// Returns the events file of the cgroup with the effective limit, and the limit's index.
    pub(super) fn events_file(&self) -> Option<(usize, &KernelFile)> {
        let effective = self.effective.as_ref()?;
        effective.events.as_ref().map(|events| (effective.index, events))
    }

    pub(super) fn usage(&self) -> Option<MemoryUse> {
        let effective = self.effective.as_ref()?;
        let mut buffer = [0; BUFFER_BYTES];
        let usage = effective.usage.as_ref()?.read_number()?;
        let stat = effective.stat.as_ref()?.read(&mut buffer)?;
        let reclaimable = reclaimable(self.effective_file()?.version, stat)?.min(usage);
        Some(MemoryUse { working_set: Bytes(usage - reclaimable), reclaimable: Bytes(reclaimable) })
    }

    /// Returns the part of the limits that cannot be read, or `None` if all can.
    pub(super) fn problem(&self) -> Option<LimitProblem> {
        match &self.effective {
            _ if !self.unreadable.is_empty() => Some(LimitProblem::Unreadable),
            None => self.has_hidden_ancestors.then_some(LimitProblem::HiddenAncestors),
            Some(effective) => self
                .usage()
                .is_none()
                .then_some(LimitProblem::UsageUnreadable { level: effective.index }),
        }
    }

    pub(super) fn describe(&self, problem: LimitProblem) -> String {
        let dir = |level: usize| self.limit_files.get(level).map(|wall| wall.dir.display());
        match problem {
            LimitProblem::NoMembership => "cgroup limits are unknown because /proc/self/cgroup \
                cannot be read: percentages are of physical memory and of all CPUs; mount /proc"
                .to_owned(),
            LimitProblem::NotMounted => "cgroup limits are unknown because no mounted cgroup file \
                system contains the cgroup of this process: percentages are of physical memory and \
                of all CPUs; mount /sys/fs/cgroup"
                .to_owned(),
            LimitProblem::Unreadable => {
                format!("unreadable limits are ignored: {}", self.unreadable.join(", "))
            }
            LimitProblem::HiddenAncestors => "the visible cgroups have no memory limit, and their \
                ancestors are hidden (cgroup namespace): percentages are of physical memory; set \
                the limit on the container"
                .to_owned(),
            LimitProblem::UsageUnreadable { level } => format!(
                "usage or memory.stat of {} cannot be read: the resident set of this process is \
                 compared with the limit, which applies to all processes in the cgroup",
                dir(level).map(|dir| dir.to_string()).unwrap_or_default()
            ),
        }
    }
}

/// Returns the reclaimable part of the charged memory by `memory.stat`, or `None` if the file has
/// no file cache.
fn reclaimable(version: Version, stat: &[u8]) -> Option<u64> {
    let [inactive, active] = match version {
        Version::V1 => ["total_inactive_file", "total_active_file"],
        Version::V2 => ["inactive_file", "active_file"],
    };
    let value_or_zero = |key| parse_value(key, stat).unwrap_or(0);
    let slab = match version {
        // v1 does not charge slab to this counter.
        Version::V1 => 0,
        Version::V2 => value_or_zero("slab_reclaimable"),
    };
    Some(parse_value(inactive, stat)?.saturating_add(value_or_zero(active)).saturating_add(slab))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn reclaimable_memory_is_file_cache_plus_v2_slab() {
        let v2 = b"anon 1\nfile 700\nshmem 400\ninactive_file 100\nactive_file 200\nslab_reclaimable 30\n";
        assert_eq!(reclaimable(Version::V2, v2), Some(330), "shared memory is none");
        let v1 =
            b"inactive_file 1\nactive_file 1\ntotal_inactive_file 100\ntotal_active_file 200\n";
        assert_eq!(reclaimable(Version::V1, v1), Some(300), "of those below, too");
        assert_eq!(reclaimable(Version::V2, b"inactive_file 5\n"), Some(5));
        assert_eq!(reclaimable(Version::V2, b"anon 5\n"), None);
    }
}
