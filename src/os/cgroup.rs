//! The limits the cgroups above us set, v1 and v2, and what counts against them.
//!
//! A limit holds for a cgroup and all below it, so the one in force is the smallest on the way from
//! our own cgroup to the highest that can be seen. Memory used is then told of the cgroup *that has
//! the limit*: it is that one's usage, our neighbours' share included, that meets it. Where two are
//! equal the higher one counts, because its usage is never less.
//!
//! | | v1 | v2 |
//! |---|---|---|
//! | memory limit | `memory.limit_in_bytes`; a huge number is none | `memory.max`; `max` is none |
//! | memory used | `memory.usage_in_bytes` | `memory.current` |
//! | of it, file cache | `total_inactive_file` of `memory.stat` | `inactive_file` of it |
//! | CPU quota | `cpu.cfs_quota_us` of `cpu.cfs_period_us`; -1 is none | both in `cpu.max` |
//!
//! **Cost.** [`Cgroup::working_set`], for every tick: two reads, 1.3 and 7 us on v1; `memory.stat`
//! of v2 first gathers what each CPU has not handed in yet, which takes longer on machines of many.
//! It is read anew each time all the same, with the usage: cache being traded for heap at the limit
//! changes only the split between them, and that is the very moment to see it. [`Cgroup::refresh`],
//! for every second: one read of 1.3 us for each ancestor and limit, 10 to 20 us in all. Neither
//! allocates while nothing changes.
//!
//! **Not seen**: ancestors above the root of our cgroup namespace (a pod's limit from inside its
//! container), swap, and `memory.high`, which slows a process but does not kill it.

mod place;
mod strain;

use std::path::{Path, PathBuf};
use std::sync::Arc;

pub use self::strain::Strain;

use self::place::{Place, Version, place};
use self::strain::StrainFiles;
use super::kernel_file::{BUFFER, KernelFile, number, under, words};
use crate::base::Bytes;
use crate::model::Limit;

/// From here on a v1 limit is none. Unlimited reads as the highest multiple of the page size below
/// 2^63 (below 2^64 before Linux 3.19), which is not one number; no machine has an exbibyte.
const UNLIMITED: u64 = 1 << 60;

/// Levels looked at on the way up. Kubernetes makes five, systemd rarely more than eight; a level
/// costs up to three descriptors.
const LEVELS: usize = 16;

/// Our cgroups' limits.
#[derive(Debug)]
pub struct Cgroup {
    root: PathBuf,
    /// `/proc/self/cgroup`, and what stood in it when the levels were found.
    membership: Option<KernelFile>,
    found_for: Vec<u8>,
    memory: Vec<MemoryLevel>,
    cpu: Vec<CpuLevel>,
    memory_limit: Option<MemoryLimit>,
    cpu_limit: Option<Limit<f64>>,
    /// The level of `cpu` whose quota that is.
    cpu_level: usize,
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
            memory: Vec::new(),
            cpu: Vec::new(),
            memory_limit: None,
            cpu_limit: None,
            cpu_level: 0,
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
        self.read_memory_limit();
        let quota = smallest(self.cpu.iter().map(CpuLevel::read));
        self.cpu_level = quota.as_ref().map_or(0, |(level, _)| *level);
        self.cpu_limit = quota.map(|(_, limit)| limit);
    }

    /// What tells that we are being held back; for every second.
    pub fn strain(&self) -> Strain {
        self.strain.read_pressure(self.strain_counters())
    }

    /// The same but for pressure, of which the kernel makes a new average each two seconds.
    pub fn strain_counters(&self) -> Strain {
        self.strain.read(self.cpu.get(self.cpu_level).and_then(|level| level.stat.as_ref()))
    }

    /// The smallest memory limit above us, as of the last refresh.
    pub fn memory_limit(&self) -> Option<&Limit<Bytes>> {
        self.memory_limit.as_ref().map(|memory| &memory.limit)
    }

    /// The smallest CPU quota above us, in cores, as of the last refresh.
    pub fn cpu_limit(&self) -> Option<&Limit<f64>> {
        self.cpu_limit.as_ref()
    }

    /// What counts against [`Self::memory_limit`]: usage less inactive file cache, of the cgroup
    /// with the limit. None without a limit, or where the kernel does not tell both.
    pub fn working_set(&self) -> Option<Bytes> {
        let memory = self.memory_limit.as_ref()?;
        let mut buffer = [0; BUFFER];
        let usage = memory.usage.as_ref()?.read_number()?;
        let inactive = value_of(memory.inactive, memory.stat.as_ref()?.read(&mut buffer)?)?;
        Some(Bytes(usage.saturating_sub(inactive)))
    }

    /// Opens the limit files of our cgroups and of all above them.
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
        self.memory = memory.map_or_else(Vec::new, |place| memory_levels(&self.root, &place));
        self.cpu = cpu.map_or_else(Vec::new, |place| cpu_levels(&self.root, &place));
        self.memory_limit = None;
        self.found_for = membership.to_vec();
    }

    fn read_memory_limit(&mut self) {
        let smallest = smallest(self.memory.iter().map(MemoryLevel::read));
        let Some((index, limit)) = smallest else {
            self.memory_limit = None;
            return;
        };
        if let Some(known) = self.memory_limit.as_mut().filter(|known| known.index == index) {
            known.limit = limit;
            return;
        }
        self.memory_limit = self.memory.get(index).map(|level| {
            let open = |name| KernelFile::open(&under(&self.root, &level.dir.join(name)));
            let (usage, inactive) = match level.version {
                Version::V1 => ("memory.usage_in_bytes", "total_inactive_file"),
                Version::V2 => ("memory.current", "inactive_file"),
            };
            MemoryLimit { index, limit, usage: open(usage), stat: open("memory.stat"), inactive }
        });
    }
}

/// The memory limit in force and the files that tell what counts against it.
#[derive(Debug)]
struct MemoryLimit {
    index: usize,
    limit: Limit<Bytes>,
    usage: Option<KernelFile>,
    stat: Option<KernelFile>,
    /// The line of `stat` to take off.
    inactive: &'static str,
}

/// One cgroup that may limit memory.
#[derive(Debug)]
struct MemoryLevel {
    version: Version,
    dir: PathBuf,
    limit: KernelFile,
    source: Arc<str>,
}

impl MemoryLevel {
    fn read(&self) -> Option<Limit<Bytes>> {
        let value = self.limit.read_number().filter(|&bytes| bytes < UNLIMITED)?;
        Some(Limit { value: Bytes(value), source: self.source.clone() })
    }
}

/// One cgroup that may limit CPU time.
#[derive(Debug)]
struct CpuLevel {
    quota: KernelFile,
    /// None in v2, where it stands behind the quota.
    period: Option<KernelFile>,
    stat: Option<KernelFile>,
    source: Arc<str>,
}

impl CpuLevel {
    fn read(&self) -> Option<Limit<f64>> {
        let mut buffer = [0; 64];
        let mut fields = words(self.quota.read(&mut buffer)?);
        let quota = number(fields.next()?)?;
        let period = match &self.period {
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

fn memory_levels(root: &Path, place: &Place) -> Vec<MemoryLevel> {
    let file = match place.version {
        Version::V1 => "memory.limit_in_bytes",
        Version::V2 => "memory.max",
    };
    // Before Linux 5.11 a v1 cgroup could be told not to count what those below it use.
    let counts_below = |dir: &Path| {
        let own = KernelFile::open(&under(root, &dir.join("memory.use_hierarchy")));
        own.and_then(|file| file.read_number()) != Some(0)
    };
    ancestors(place)
        .enumerate()
        .take_while(|&(above, dir)| above == 0 || counts_below(dir))
        .filter_map(|(_, dir)| {
            let path = dir.join(file);
            let limit = KernelFile::open(&under(root, &path))?;
            let source = path.to_string_lossy().into();
            Some(MemoryLevel { version: place.version, dir: dir.to_owned(), limit, source })
        })
        .collect()
}

fn cpu_levels(root: &Path, place: &Place) -> Vec<CpuLevel> {
    ancestors(place)
        .filter_map(|dir| {
            let open = |path: &Path| KernelFile::open(&under(root, path));
            let (path, period) = match place.version {
                Version::V1 => {
                    (dir.join("cpu.cfs_quota_us"), Some(open(&dir.join("cpu.cfs_period_us"))?))
                }
                Version::V2 => (dir.join("cpu.max"), None),
            };
            let source = path.to_string_lossy().into();
            let stat = open(&dir.join("cpu.stat"));
            Some(CpuLevel { quota: open(&path)?, period, stat, source })
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
