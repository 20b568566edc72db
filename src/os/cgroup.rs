//! The limits that the cgroups above the process set, v1 and v2, and what counts against them.
//!
//! A limit holds for a cgroup and all below it, so the one in force is the smallest on the way from
//! the process's own cgroup to the highest that can be seen. Used memory is then that of the cgroup *with
//! the limit*: its usage, the neighbours' share included, is what meets the limit. Of two equal limits the
//! higher one counts, because its usage is never less.
//!
//! | | v1 | v2 |
//! |---|---|---|
//! | memory limit, which kills | `memory.limit_in_bytes`; a huge number is none | `memory.max`; `max` is none |
//! | memory limit, which slows | none (`memory.soft_limit_in_bytes` holds back nobody) | `memory.high` |
//! | memory used | `memory.usage_in_bytes` | `memory.current` |
//! | of it, reclaimable | `total_inactive_file` + `total_active_file` of `memory.stat` | `inactive_file` + `active_file` + `slab_reclaimable` of it |
//! | CPU quota | `cpu.cfs_quota_us` of `cpu.cfs_period_us`; -1 is none | both in `cpu.max` |
//!
//! # Working set
//!
//! ```text
//! working set = usage - reclaimable
//! ```
//!
//! The kernel takes file pages back before it kills, whether they were read or mapped, used once or often: both lists of
//! file pages (`inactive_file`, `active_file`) are reclaimable. Pages that are dirty or being written count too, as in the
//! kernel's own estimate `MemAvailable` (Documentation/filesystems/proc.rst): they can be taken back once they are
//! written. So do dentries and inodes (`slab_reclaimable`). Not reclaimable without swap, and on neither
//! list: heap, shared memory and files on tmpfs (they are on the lists of anonymous pages), and locked pages
//! (`unevictable`).
//!
//! That cache is reclaimable does not make it free: a service that needs it again at once (its own code, say) becomes slow
//! before it is killed. That is what `memory.pressure`, `memory.high_events` and `memory.max_events` measure.
//!
//! **Cost.** [`Cgroup::memory_use`], for every tick: two reads, 1.3 and 7 us on v1; `memory.stat`
//! of v2 first gathers what each CPU has not handed in yet, which takes longer on machines of many.
//! It is read anew each time all the same, with the usage: cache being traded for heap at the limit
//! changes only the split between them, and that is the very moment to see it. [`Cgroup::refresh`],
//! for every second: one open and read of 4 us for each ancestor and limit, 30 to 60 us in all. Neither
//! allocates while nothing changes, and no descriptor is held for each ancestor: a service in deeply nested
//! cgroups has as many left as another.
//!
//! **Not seen**: ancestors above the root of the process's cgroup namespace (a pod's limit from inside its
//! container), and limits of swap. [`Cgroup::problem`] says so where no other limit is known.

mod memory;
mod place;
mod strain;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::memory::{MemoryUse, Problem};
pub use self::strain::Strain;

use self::memory::Memory;
use self::place::{Place, Version, place};
use self::strain::StrainFiles;
use super::kernel_file::{BUFFER, KernelFile, ReopenedFile, number, under, words};
use crate::base::Bytes;
use crate::model::{AtLimit, Limit};

/// Levels looked at on the way up. Kubernetes makes five, systemd rarely more than eight.
const LEVELS: usize = 16;

/// The limits of the process's cgroups.
#[derive(Debug)]
pub struct Cgroup {
    root: PathBuf,
    /// `/proc/self/cgroup`, and what stood in it when the levels were found.
    membership: Option<KernelFile>,
    found_for: Vec<u8>,
    memory: Memory,
    cpu: Vec<CpuLevel>,
    /// Why the process's cgroups are not known, if they are not.
    unknown: Option<Problem>,
    cpu_limit: Option<Limit<f64>>,
    /// The level of `cpu` whose quota that is, and its `cpu.stat`.
    cpu_level: usize,
    cpu_stat: Option<KernelFile>,
    strain: StrainFiles,
}

impl Cgroup {
    /// Finds our cgroups and reads their limits, with paths taken under `root`, which is `/` but in
    /// tests. No cgroup, or none with a limit, is no error: there is no limit then.
    pub fn discover(root: &Path) -> Self {
        let membership = KernelFile::open(&under(root, Path::new("/proc/self/cgroup")));
        let mut cgroup = Self {
            root: root.to_owned(),
            membership,
            found_for: Vec::new(),
            memory: Memory::default(),
            cpu: Vec::new(),
            unknown: Some(Problem::NoMembership),
            cpu_limit: None,
            cpu_level: 0,
            cpu_stat: None,
            strain: StrainFiles::default(),
        };
        cgroup.refresh();
        cgroup
    }

    /// Reads the limits again, and finds our cgroups again if we were moved.
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

    /// What tells that the process is being held back; for every second.
    pub fn strain(&self) -> Strain {
        self.strain.read_pressure(self.strain_counters())
    }

    /// The same but for pressure, of which the kernel makes a new average each two seconds.
    pub fn strain_counters(&self) -> Strain {
        self.strain.read(self.cpu_stat.as_ref(), self.memory.events())
    }

    /// The smallest memory limit above the process, as of the last refresh.
    pub fn memory_limit(&self) -> Option<&Limit<Bytes>> {
        self.memory.limit()
    }

    /// What the kernel does at [`Self::memory_limit`].
    pub fn at_memory_limit(&self) -> AtLimit {
        self.memory.at_limit()
    }

    /// Returns the smallest limit at which the kernel kills, as of the last refresh.
    pub fn kill_limit(&self) -> Option<Bytes> {
        self.memory.kill_limit()
    }

    /// The smallest CPU quota above us, in cores, as of the last refresh.
    pub fn cpu_limit(&self) -> Option<&Limit<f64>> {
        self.cpu_limit.as_ref()
    }

    /// What counts against [`Self::memory_limit`], of the cgroup with the limit. `None` without a limit, or where
    /// the kernel does not tell both usage and file cache.
    pub fn memory_use(&self) -> Option<MemoryUse> {
        self.memory.usage()
    }

    /// What of the limits cannot be read here, if anything.
    pub fn problem(&self) -> Option<Problem> {
        self.unknown.or_else(|| self.memory.problem())
    }

    /// Returns `problem` in a sentence, with what to do about it.
    pub fn describe(&self, problem: Problem) -> String {
        self.memory.describe(problem)
    }

    /// Finds the limit files of our cgroups and of all above them.
    fn find(&mut self, membership: &[u8]) {
        let mountinfo = std::fs::read(under(&self.root, Path::new("/proc/self/mountinfo")));
        let mountinfo = mountinfo.unwrap_or_default();
        let exists = |dir: &Path| under(&self.root, dir).is_dir();
        let memory = place(membership, &mountinfo, "memory", exists);
        let cpu = place(membership, &mountinfo, "cpu", exists);
        // No controller has this name, so that our place in the v2 hierarchy is what is found.
        let own =
            place(membership, &mountinfo, "v2", exists).filter(|own| own.version == Version::V2);
        self.strain = StrainFiles::open(&self.root, own.as_ref(), memory.as_ref());
        self.unknown = match &memory {
            Some(_) => None,
            None if membership.is_empty() => Some(Problem::NoMembership),
            None => Some(Problem::NotMounted),
        };
        self.memory = memory.map_or_else(Memory::default, |place| Memory::open(&self.root, &place));
        self.cpu = cpu.map_or_else(Vec::new, |place| cpu_levels(&self.root, &place));
        self.cpu_stat = None;
        self.found_for = membership.to_vec();
    }
}

/// One cgroup that may limit CPU time.
#[derive(Debug)]
struct CpuLevel {
    quota: ReopenedFile,
    /// None in v2, where it stands behind the quota.
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

/// The smallest of `limits`, which go from the lowest level up, and its index.
fn smallest<T: PartialOrd>(
    limits: impl Iterator<Item = Option<Limit<T>>>,
) -> Option<(usize, Limit<T>)> {
    let known = limits.enumerate().filter_map(|(index, limit)| Some((index, limit?)));
    known.reduce(|least, next| if next.1.value <= least.1.value { next } else { least })
}

/// The directories from `place` up to its mount.
fn ancestors(place: &Place) -> impl Iterator<Item = &Path> {
    place.dir.ancestors().take_while(|dir| dir.starts_with(&place.mount)).take(LEVELS)
}

fn cpu_levels(root: &Path, place: &Place) -> Vec<CpuLevel> {
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

/// The number behind `key` in a file of lines `KEY NUMBER`.
fn value_of(key: &str, text: &[u8]) -> Option<u64> {
    text.split(|&byte| byte == b'\n').find_map(|line| {
        let value = line.strip_prefix(key.as_bytes())?.strip_prefix(b" ")?;
        number(value)
    })
}
