//! Metrics of the process, from `/proc/self`.
//!
//! | metric | source | cost | maximum error |
//! |---|---|---|---|
//! | resident set | `statm`, field 2 | 1.5 us | see below |
//! | its file pages, data | `status`: `RssFile`, `VmData` | 7 us | as above |
//! | address space | `statm`, field 1 | 1.5 us | 0 |
//! | threads | link count of `task`, which is 2 + threads | 1 us | 0 |
//! | descriptors | size of `fd`, which is their number since Linux 6.2 | 1 us | 0 |
//!
//! `status` (6.7 us) prints 60 lines and is read only if needed: without a memory cgroup. The
//! alternatives cost more: `stat` (3.5 us) sums the CPU times of all threads to report their
//! number, and `smaps_rollup` walks every page under the lock that page faults need.
//!
//! The error of the resident set depends on the kernel, which batches its counters. Before 6.2 each
//! thread holds back up to 64 pages of each kind. From 6.2 each CPU holds back up to max(32, 2 x
//! CPUs) pages of each kind. Kernels from about 6.17 add up the pages held back.
//!
//! If the link count or size is not usable (an older kernel, another `/proc`), the entries are
//! counted. That costs about 1 us per entry, so large directories are counted less often.

use std::mem::MaybeUninit;
use std::os::fd::OwnedFd;
use std::path::Path;
use std::time::Duration;

use rustix::fs::{
    Mode, OFlags, PROC_SUPER_MAGIC, RawDir, SeekFrom, Stat, fstat, fstatfs, open, seek,
};

use crate::base::{Bytes, Moment};
use crate::os::kernel_file::{BUFFER_BYTES, KernelFile, join_root, parse_number, split_words};

/// Validity of a count for each entry counted: 1 us of work every 5 ms is 0.02 % of a core,
/// regardless of the number.
const VALIDITY_PER_ENTRY: Duration = Duration::from_millis(5);

/// Maximum validity of a count; reached at 2000 entries.
const MAX_VALIDITY: Duration = Duration::from_secs(10);

/// The open files of `/proc/self`. Values that the machine does not provide are `None`.
#[derive(Debug)]
pub struct Procfs {
    statm: Option<KernelFile>,
    status: Option<KernelFile>,
    page_size: u64,
    task_directory: Option<CountedDirectory>,
    fd_directory: Option<CountedDirectory>,
}

impl Procfs {
    /// Opens the files that exist in `proc/self` under `root`, which is `/` except in tests.
    pub fn open(root: &Path) -> Self {
        let own = join_root(root, Path::new("/proc/self"));
        Self {
            statm: KernelFile::open(&own.join("statm")),
            status: KernelFile::open(&own.join("status")),
            page_size: rustix::param::page_size() as u64,
            task_directory: CountedDirectory::open(&own.join("task"), threads_from_stat),
            fd_directory: CountedDirectory::open(&own.join("fd"), descriptors_from_stat),
        }
    }

    /// Opens only the directory with the number of descriptors.
    pub fn open_descriptors(root: &Path) -> Self {
        let fd = join_root(root, Path::new("/proc/self/fd"));
        let page = rustix::param::page_size() as u64;
        Self {
            statm: None,
            status: None,
            page_size: page,
            task_directory: None,
            fd_directory: CountedDirectory::open(&fd, descriptors_from_stat),
        }
    }

    /// Returns the resident set: pages of the process in memory, including shared ones.
    pub fn rss(&mut self, _now: Moment) -> Option<Bytes> {
        self.read_statm(1)
    }

    /// Returns the size of the address space, which `RLIMIT_AS` limits.
    pub fn address_space(&self) -> Option<Bytes> {
        self.read_statm(0)
    }

    fn read_statm(&self, field: usize) -> Option<Bytes> {
        let mut buffer = [0; 128];
        let pages = parse_number(split_words(self.statm.as_ref()?.read(&mut buffer)?).nth(field)?)?;
        Some(Bytes(pages.saturating_mul(self.page_size)))
    }

    /// Returns the reclaimable file pages in the resident set, excluding shared memory.
    pub fn file_pages(&self) -> Option<Bytes> {
        self.read_status("RssFile:")
    }

    /// Returns the private writable memory, which `RLIMIT_DATA` limits.
    pub fn data(&self) -> Option<Bytes> {
        self.read_status("VmData:")
    }

    fn read_status(&self, key: &str) -> Option<Bytes> {
        let mut buffer = [0; BUFFER_BYTES];
        let status = self.status.as_ref()?.read(&mut buffer)?;
        let lines = status.split(|&byte| byte == b'\n');
        let value = lines.into_iter().find_map(|line| line.strip_prefix(key.as_bytes()))?;
        Some(Bytes(parse_number(split_words(value).next()?)?.saturating_mul(1 << 10)))
    }

    /// Returns the number of threads.
    pub fn threads(&mut self, now: Moment) -> Option<u64> {
        self.task_directory.as_mut()?.entry_count(now)
    }

    /// Returns the number of open file descriptors, including marple's.
    pub fn fds(&mut self, now: Moment) -> Option<u64> {
        self.fd_directory.as_mut()?.entry_count(now)
    }
}

/// Returns the number of threads by the link count of `task`. Returns `None` for 0, which is wrong
/// because the calling thread exists.
#[allow(clippy::useless_conversion, reason = "link counts are 32 bits wide on some architectures")]
fn threads_from_stat(stat: &Stat) -> Option<u64> {
    u64::from(stat.st_nlink).checked_sub(2).filter(|&threads| threads > 0)
}

/// Returns the number of descriptors by the size of `fd`. Returns `None` for 0, which is wrong
/// because `fd` itself is open.
fn descriptors_from_stat(stat: &Stat) -> Option<u64> {
    u64::try_from(stat.st_size).ok().filter(|&fds| fds > 0)
}

/// A directory whose entries are counted.
#[derive(Debug)]
struct CountedDirectory {
    fd: OwnedFd,
    count_from_stat: fn(&Stat) -> Option<u64>,
    is_procfs: bool,
    last_count: Option<(Moment, u64)>,
}

impl CountedDirectory {
    fn open(path: &Path, count_from_stat: fn(&Stat) -> Option<u64>) -> Option<Self> {
        let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let fd = open(path, flags, Mode::empty()).ok()?;
        let is_procfs = fstatfs(&fd).is_ok_and(|fs| fs.f_type == PROC_SUPER_MAGIC);
        Some(Self { fd, count_from_stat, is_procfs, last_count: None })
    }

    fn entry_count(&mut self, now: Moment) -> Option<u64> {
        if self.is_procfs
            && let Some(entries) = fstat(&self.fd).ok().as_ref().and_then(self.count_from_stat)
        {
            return Some(entries);
        }
        if let Some((at, entries)) = self.last_count
            && now.since(at) < count_validity(entries)
        {
            return Some(entries);
        }
        let entries = self.count_entries()?;
        self.last_count = Some((now, entries));
        Some(entries)
    }

    fn count_entries(&self) -> Option<u64> {
        seek(&self.fd, SeekFrom::Start(0)).ok()?;
        let mut buffer = [MaybeUninit::uninit(); 4 << 10];
        let mut entries = 0;
        let mut dir = RawDir::new(&self.fd, &mut buffer);
        while let Some(entry) = dir.next() {
            let name = entry.ok()?;
            entries += u64::from(!matches!(name.file_name().to_bytes(), b"." | b".."));
        }
        Some(entries)
    }
}

/// Returns the validity of a count that found `entries`.
fn count_validity(entries: u64) -> Duration {
    u32::try_from(entries)
        .ok()
        .and_then(|entries| VALIDITY_PER_ENTRY.checked_mul(entries))
        .map_or(MAX_VALIDITY, |validity| validity.min(MAX_VALIDITY))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn count_validity_grows_with_number_of_entries() {
        for (entries, millis) in
            [(0, 0), (3, 15), (1999, 9995), (2000, 10_000), (2001, 10_000), (u64::MAX, 10_000)]
        {
            assert_eq!(count_validity(entries), Duration::from_millis(millis), "{entries}");
        }
    }

    #[test]
    fn entries_are_counted_outside_procfs_and_cached() {
        let root = tempfile::tempdir().unwrap();
        let own = root.path().join("proc/self");
        std::fs::create_dir_all(own.join("fd")).unwrap();
        std::fs::create_dir_all(own.join("task/1")).unwrap();
        std::fs::create_dir_all(own.join("task/2")).unwrap();
        std::fs::write(own.join("statm"), "765 440 412 5 0 123 0\n").unwrap();
        for fd in 0..300 {
            std::fs::write(own.join(format!("fd/{fd}")), "").unwrap();
        }
        std::fs::write(own.join("status"), "VmData:\t  20 kB\nRssFile:\t    1004 kB\n").unwrap();
        let mut procfs = Procfs::open(root.path());
        assert_eq!(
            (procfs.file_pages(), procfs.data()),
            (Some(Bytes(1004 << 10)), Some(Bytes(20 << 10)))
        );
        assert_eq!(procfs.address_space(), Some(Bytes(765 * rustix::param::page_size() as u64)));
        let at = |millis: u64| Moment::from_nanos(millis * 1_000_000);
        assert_eq!(procfs.rss(at(0)), Some(Bytes(440 * rustix::param::page_size() as u64)));
        assert_eq!(procfs.threads(at(0)), Some(2));
        assert_eq!(procfs.fds(at(0)), Some(300));
        std::fs::write(own.join("fd/300"), "").unwrap();
        assert_eq!(procfs.fds(at(1499)), Some(300));
        assert_eq!(procfs.fds(at(1500)), Some(301));
    }

    #[test]
    fn missing_proc_returns_none() {
        let root = tempfile::tempdir().unwrap();
        let mut procfs = Procfs::open(root.path());
        assert_eq!(procfs.rss(Moment::default()), None);
        assert_eq!(
            (procfs.file_pages(), procfs.data(), procfs.address_space()),
            (None, None, None)
        );
        assert_eq!(procfs.threads(Moment::default()), None);
        assert_eq!(procfs.fds(Moment::default()), None);
    }
}
