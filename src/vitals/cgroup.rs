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
pub use self::pressure::ResourcePressure;

use self::memory::MemoryLimits;
use self::path::{CgroupPath, Version, find_cgroup};
use self::pressure::PressureFiles;
use crate::base::Bytes;
use crate::model::{Limit, LimitEffect};
use crate::os::kernel_file::{
    BUFFER_BYTES, KernelFile, ReopenedFile, join_root, parse_number, split_words,
};

/// Maximum number of levels read on the way up. Kubernetes creates five, systemd rarely more than
/// eight.
const MAX_LEVELS: usize = 16;

/// The effective limits of the process's cgroups.
#[derive(Debug)]
pub struct Cgroup {
    root: PathBuf,
    /// `/proc/self/cgroup`, and its content at the time the levels were found.
    membership: Option<KernelFile>,
    last_membership: Vec<u8>,
    memory: MemoryLimits,
    cpu: Vec<CpuLevel>,
    /// Reason the process's cgroups are unknown, or `None` if they are known.
    unknown_reason: Option<LimitProblem>,
    cpu_limit: Option<Limit<f64>>,
    /// Index in `cpu` of the effective quota; `cpu_stat` is the `cpu.stat` of that level.
    cpu_level: usize,
    cpu_stat: Option<KernelFile>,
    pressure_files: PressureFiles,
}

impl Cgroup {
    /// Finds the process's cgroups and reads their limits. Paths are resolved under `root`, which
    /// is `/` except in tests. A missing cgroup or limit is not an error: no limit applies.
    pub fn discover(root: &Path) -> Self {
        let membership = KernelFile::open(&join_root(root, Path::new("/proc/self/cgroup")));
        let mut cgroup = Self {
            root: root.to_owned(),
            membership,
            last_membership: Vec::new(),
            memory: MemoryLimits::default(),
            cpu: Vec::new(),
            unknown_reason: Some(LimitProblem::NoMembership),
            cpu_limit: None,
            cpu_level: 0,
            cpu_stat: None,
            pressure_files: PressureFiles::default(),
        };
        cgroup.refresh();
        cgroup
    }

    /// Reads the limits again, and finds the cgroups again if the process was moved.
    pub fn refresh(&mut self) {
        let mut buffer = [0; BUFFER_BYTES];
        let membership = self.membership.as_ref().and_then(|file| file.read(&mut buffer));
        let membership = membership.unwrap_or_default();
        if membership != self.last_membership {
            self.find_cgroups(membership);
        }
        self.memory.refresh(&self.root);
        let quota = smallest_limit(self.cpu.iter_mut().map(CpuLevel::read));
        let level = quota.as_ref().map_or(0, |(level, _)| *level);
        if level != self.cpu_level || self.cpu_stat.is_none() {
            self.cpu_stat = self.cpu.get(level).and_then(|level| KernelFile::open(&level.stat));
        }
        self.cpu_level = level;
        self.cpu_limit = quota.map(|(_, limit)| limit);
    }

    /// Reads all resource pressure counters and averages. Intended for once a second.
    pub fn pressure(&self) -> ResourcePressure {
        self.pressure_files.with_averages(self.pressure_counters())
    }

    /// Reads the counters of [`Self::pressure`] without the pressure averages, which the kernel
    /// updates only every two seconds.
    pub fn pressure_counters(&self) -> ResourcePressure {
        self.pressure_files.read(self.cpu_stat.as_ref(), self.memory.events_file())
    }

    /// Returns the smallest memory limit that applies to the process, as of the last refresh.
    pub fn memory_limit(&self) -> Option<&Limit<Bytes>> {
        self.memory.limit()
    }

    /// Returns the kernel's action at [`Self::memory_limit`].
    pub fn at_memory_limit(&self) -> LimitEffect {
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
        self.unknown_reason.or_else(|| self.memory.problem())
    }

    /// Returns a sentence that describes `problem` and the remedy.
    pub fn describe(&self, problem: LimitProblem) -> String {
        self.memory.describe(problem)
    }

    /// Finds the limit files of the process's cgroups and their ancestors.
    fn find_cgroups(&mut self, membership: &[u8]) {
        let mountinfo = std::fs::read(join_root(&self.root, Path::new("/proc/self/mountinfo")));
        let mountinfo = mountinfo.unwrap_or_default();
        let exists = |dir: &Path| join_root(&self.root, dir).is_dir();
        let memory = find_cgroup(membership, &mountinfo, "memory", exists);
        let cpu = find_cgroup(membership, &mountinfo, "cpu", exists);
        // No controller has this name, so the lookup falls through to the v2 hierarchy.
        let own = find_cgroup(membership, &mountinfo, "v2", exists)
            .filter(|own| own.version == Version::V2);
        self.pressure_files = PressureFiles::open(&self.root, own.as_ref(), memory.as_ref());
        self.unknown_reason = match &memory {
            Some(_) => None,
            None if membership.is_empty() => Some(LimitProblem::NoMembership),
            None => Some(LimitProblem::NotMounted),
        };
        self.memory = memory
            .map_or_else(MemoryLimits::default, |cgroup| MemoryLimits::open(&self.root, &cgroup));
        self.cpu = cpu.map_or_else(Vec::new, |cgroup| cpu_levels(&self.root, &cgroup));
        self.cpu_stat = None;
        self.last_membership = membership.to_vec();
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
        let mut fields = split_words(self.quota.read()?);
        let quota = parse_number(fields.next()?)?;
        let period = match &mut self.period {
            Some(file) => file.read_number(),
            None => parse_number(fields.next()?),
        };
        let period = period.filter(|&period| period > 0)?;
        Some(Limit { value: quota as f64 / period as f64, source: self.source.clone() })
    }
}

/// Returns the smallest of `limits`, which are ordered from the lowest level up, and its index. Of
/// equal limits the higher level wins.
fn smallest_limit<T: PartialOrd>(
    limits: impl Iterator<Item = Option<Limit<T>>>,
) -> Option<(usize, Limit<T>)> {
    let present_limits = limits.enumerate().filter_map(|(index, limit)| Some((index, limit?)));
    present_limits
        .reduce(|smallest, next| if next.1.value <= smallest.1.value { next } else { smallest })
}

/// Returns the directories from `place` up to its mount point.
fn ancestors(cgroup: &CgroupPath) -> impl Iterator<Item = &Path> {
    cgroup.dir.ancestors().take_while(|dir| dir.starts_with(&cgroup.mount)).take(MAX_LEVELS)
}

fn cpu_levels(root: &Path, cgroup: &CgroupPath) -> Vec<CpuLevel> {
    ancestors(cgroup)
        .filter_map(|dir| {
            let file = |path: &Path| ReopenedFile::new(join_root(root, path));
            let (path, period) = match cgroup.version {
                Version::V1 => {
                    (dir.join("cpu.cfs_quota_us"), Some(file(&dir.join("cpu.cfs_period_us"))?))
                }
                Version::V2 => (dir.join("cpu.max"), None),
            };
            let source = path.to_string_lossy().into();
            let stat = join_root(root, &dir.join("cpu.stat"));
            Some(CpuLevel { quota: file(&path)?, period, stat, source })
        })
        .collect()
}

/// Returns the number after `key` in a file of lines `KEY NUMBER`.
fn parse_value(key: &str, text: &[u8]) -> Option<u64> {
    text.split(|&byte| byte == b'\n').find_map(|line| {
        let value = line.strip_prefix(key.as_bytes())?.strip_prefix(b" ")?;
        parse_number(value)
    })
}
