//! The effective memory and CPU limits, and the files behind them.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::levels::{ancestors, smallest_limit};
use super::memory::{LimitProblem, MemoryLimits};
use super::path::{CgroupPath, Version, find_cgroup};
use super::pressure::PressureFiles;
use super::{MemoryUse, ResourcePressure};
use crate::base::Bytes;
use crate::model::{Limit, LimitEffect};
use crate::os::kernel_file::{
    BUFFER_BYTES, KernelFile, ReopenedFile, join_root, parse_number, split_words,
};

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
