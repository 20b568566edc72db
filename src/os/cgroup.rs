//! Limits of the process's cgroup and its ancestors, v1 and v2, and the usage charged to them.
//!
//! A limit applies to a cgroup and all its descendants. The effective limit is the smallest one
//! between the process's own cgroup and the highest visible ancestor. Memory use is that of the
//! cgroup *with the limit*, other processes included, because that usage is what reaches the limit.
//! Of two equal limits the higher cgroup counts, because its usage is never less.
//!
//! | | v1 | v2 |
//! |---|---|---|
//! | limit that kills | `memory.limit_in_bytes` (huge: none) | `memory.max` (`max`: none) |
//! | limit that throttles | none: `memory.soft_limit_in_bytes` does not | `memory.high` |
//! | memory used | `memory.usage_in_bytes` | `memory.current` |
//! | reclaimable | `memory.stat`, see below | `memory.stat`, see below |
//! | CPU quota | `cpu.cfs_quota_us` / `cpu.cfs_period_us`; -1 is no quota | both in `cpu.max` |
//!
//! # Working set
//!
//! ```text
//! working set = usage - reclaimable
//! reclaimable = inactive_file + active_file + slab_reclaimable              (v2)
//!             = total_inactive_file + total_active_file                     (v1)
//! ```
//!
//! The kernel reclaims file pages before it kills, whether they were read or mapped, used once or
//! often. Both lists of file pages are therefore reclaimable. Dirty pages and pages under writeback
//! count too, as in the kernel's own estimate `MemAvailable` (Documentation/filesystems/proc.rst):
//! they can be reclaimed once written. So do dentries and inodes (`slab_reclaimable`). Not
//! reclaimable without swap, and on neither list: heap, shared memory and tmpfs files (on the
//! anonymous lists), and locked pages (`unevictable`).
//!
//! Reclaimable cache is not free: a service that needs it again at once, such as its own code,
//! becomes slow before it is killed. `memory.pressure`, `memory.high_events` and
//! `memory.max_events` measure that.
//!
//! **Cost.** [`Cgroup::memory_use`], called at each tick: two reads, 1.3 and 7 us on v1. Reading
//! v2's `memory.stat` first collects per-CPU counts, which takes longer on machines with many CPUs.
//! It is still read each time together with the usage: if cache is traded for heap at the limit,
//! only the split between them changes, and that is when the value matters most.
//! [`Cgroup::refresh`], called each second: one open and read of 4 us for each ancestor and limit,
//! 30 to 60 us in all. Neither allocates while nothing changes. No descriptor is held per ancestor,
//! so deeply nested cgroups use no more descriptors.
//!
//! **Not visible**: ancestors above the root of the process's cgroup namespace (a pod's limit from
//! inside its container), and swap limits. [`Cgroup::problem`] reports this if no other limit is
//! known.

mod memory;
mod path;
mod pressure;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::memory::{LimitProblem, MemoryUse};
pub use crate::os::cgroup::pressure::ResourcePressure;

use self::memory::MemoryLimits;
use super::kernel_file::{BUFFER, KernelFile, ReopenedFile, number, under, words};
use crate::base::Bytes;
use crate::model::{AtLimit, Limit};
use crate::os::cgroup::path::{CgroupPath, Version, place};
use crate::os::cgroup::pressure::StrainFiles;

/// Maximum number of levels read on the way up. Kubernetes creates five, systemd rarely more than
/// eight.
const LEVELS: usize = 16;

/// The effective limits of the process's cgroups.
#[derive(Debug)]
pub struct Cgroup {
    root: PathBuf,
    /// `/proc/self/cgroup`, and its content at the time the levels were found.
    membership: Option<KernelFile>,
    found_for: Vec<u8>,
    memory: MemoryLimits,
    cpu: Vec<CpuLevel>,
    /// Reason the process's cgroups are unknown, or `None` if they are known.
    unknown: Option<LimitProblem>,
    cpu_limit: Option<Limit<f64>>,
    /// Index in `cpu` of the effective quota; `cpu_stat` is the `cpu.stat` of that level.
    cpu_level: usize,
    cpu_stat: Option<KernelFile>,
    strain: StrainFiles,
}

impl Cgroup {
    /// Finds the process's cgroups and reads their limits. Paths are resolved under `root`, which
    /// is `/` except in tests. A missing cgroup or limit is not an error: no limit applies.
    pub fn discover(root: &Path) -> Self {
        let membership = KernelFile::open(&under(root, Path::new("/proc/self/cgroup")));
        let mut cgroup = Self {
            root: root.to_owned(),
            membership,
            found_for: Vec::new(),
            memory: MemoryLimits::default(),
            cpu: Vec::new(),
            unknown: Some(LimitProblem::NoMembership),
            cpu_limit: None,
            cpu_level: 0,
            cpu_stat: None,
            strain: StrainFiles::default(),
        };
        cgroup.refresh();
        cgroup
    }

    /// Reads the limits again, and finds the cgroups again if the process was moved.
    pub fn refresh(&mut self) {
        let mut buffer = [0; BUFFER];
        let membership = self.membership.as_ref().and_then(|file| file.read(&mut buffer));
        let membership = membership.unwrap_or_default();
        if membership != self.found_for {
            self.find(membership);
        }
        self.memory.refresh(&self.root);
        let quota = smallest(self.cpu.iter_mut().map(CpuLevel::read));
        let level = quota.as_ref().map_or(0, |(level, _)| *level);
        if level != self.cpu_level || self.cpu_stat.is_none() {
            self.cpu_stat = self.cpu.get(level).and_then(|level| KernelFile::open(&level.stat));
        }
        self.cpu_level = level;
        self.cpu_limit = quota.map(|(_, limit)| limit);
    }

    /// Reads all resource pressure counters and averages. Intended for once a second.
    pub fn strain(&self) -> ResourcePressure {
        self.strain.read_pressure(self.strain_counters())
    }

    /// Reads the counters of [`Self::strain`] without the pressure averages, which the kernel
    /// updates only every two seconds.
    pub fn strain_counters(&self) -> ResourcePressure {
        self.strain.read(self.cpu_stat.as_ref(), self.memory.events())
    }

    /// Returns the smallest memory limit that applies to the process, as of the last refresh.
    pub fn memory_limit(&self) -> Option<&Limit<Bytes>> {
        self.memory.limit()
    }

    /// Returns the kernel's action at [`Self::memory_limit`].
    pub fn at_memory_limit(&self) -> AtLimit {
        self.memory.at_limit()
    }

    /// Returns the smallest limit at which the kernel kills, as of the last refresh.
    pub fn kill_limit(&self) -> Option<Bytes> {
        self.memory.kill_limit()
    }

    /// Returns the smallest CPU quota that applies to the process, in cores, as of the last
    /// refresh.
    pub fn cpu_limit(&self) -> Option<&Limit<f64>> {
        self.cpu_limit.as_ref()
    }

    /// Returns the memory use of the cgroup with [`Self::memory_limit`]. Returns `None` if there is
    /// no limit, or if usage or file cache cannot be read.
    pub fn memory_use(&self) -> Option<MemoryUse> {
        self.memory.usage()
    }

    /// Returns the part of the limits that cannot be read, or `None` if all can.
    pub fn problem(&self) -> Option<LimitProblem> {
        self.unknown.or_else(|| self.memory.problem())
    }

    /// Returns a sentence that describes `problem` and the remedy.
    pub fn describe(&self, problem: LimitProblem) -> String {
        self.memory.describe(problem)
    }

    /// Finds the limit files of the process's cgroups and their ancestors.
    fn find(&mut self, membership: &[u8]) {
        let mountinfo = std::fs::read(under(&self.root, Path::new("/proc/self/mountinfo")));
        let mountinfo = mountinfo.unwrap_or_default();
        let exists = |dir: &Path| under(&self.root, dir).is_dir();
        let memory = place(membership, &mountinfo, "memory", exists);
        let cpu = place(membership, &mountinfo, "cpu", exists);
        // No controller has this name, so the lookup falls through to the v2 hierarchy.
        let own =
            place(membership, &mountinfo, "v2", exists).filter(|own| own.version == Version::V2);
        self.strain = StrainFiles::open(&self.root, own.as_ref(), memory.as_ref());
        self.unknown = match &memory {
            Some(_) => None,
            None if membership.is_empty() => Some(LimitProblem::NoMembership),
            None => Some(LimitProblem::NotMounted),
        };
        self.memory = memory
            .map_or_else(MemoryLimits::default, |place| MemoryLimits::open(&self.root, &place));
        self.cpu = cpu.map_or_else(Vec::new, |place| cpu_levels(&self.root, &place));
        self.cpu_stat = None;
        self.found_for = membership.to_vec();
    }
}

/// A cgroup that may limit CPU time.
#[derive(Debug)]
struct CpuLevel {
    quota: ReopenedFile,
    /// `None` in v2, where the period follows the quota in the same file.
    period: Option<ReopenedFile>,
    stat: PathBuf,
    source: Arc<str>,
}

impl CpuLevel {
    fn read(&mut self) -> Option<Limit<f64>> {
        let mut fields = words(self.quota.read()?);
        let quota = number(fields.next()?)?;
        let period = match &mut self.period {
            Some(file) => file.read_number(),
            None => number(fields.next()?),
        };
        let period = period.filter(|&period| period > 0)?;
        Some(Limit { value: quota as f64 / period as f64, source: self.source.clone() })
    }
}

/// Returns the smallest of `limits`, which are ordered from the lowest level up, and its index. Of
/// equal limits the higher level wins.
fn smallest<T: PartialOrd>(
    limits: impl Iterator<Item = Option<Limit<T>>>,
) -> Option<(usize, Limit<T>)> {
    let known = limits.enumerate().filter_map(|(index, limit)| Some((index, limit?)));
    known.reduce(|least, next| if next.1.value <= least.1.value { next } else { least })
}

/// Returns the directories from `place` up to its mount point.
fn ancestors(place: &CgroupPath) -> impl Iterator<Item = &Path> {
    place.dir.ancestors().take_while(|dir| dir.starts_with(&place.mount)).take(LEVELS)
}

fn cpu_levels(root: &Path, place: &CgroupPath) -> Vec<CpuLevel> {
    ancestors(place)
        .filter_map(|dir| {
            let file = |path: &Path| ReopenedFile::new(under(root, path));
            let (path, period) = match place.version {
                Version::V1 => {
                    (dir.join("cpu.cfs_quota_us"), Some(file(&dir.join("cpu.cfs_period_us"))?))
                }
                Version::V2 => (dir.join("cpu.max"), None),
            };
            let source = path.to_string_lossy().into();
            let stat = under(root, &dir.join("cpu.stat"));
            Some(CpuLevel { quota: file(&path)?, period, stat, source })
        })
        .collect()
}

/// Returns the number after `key` in a file of lines `KEY NUMBER`.
fn value_of(key: &str, text: &[u8]) -> Option<u64> {
    text.split(|&byte| byte == b'\n').find_map(|line| {
        let value = line.strip_prefix(key.as_bytes())?.strip_prefix(b" ")?;
        number(value)
    })
}
