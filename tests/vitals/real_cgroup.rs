//! Tests of the limits of a real cgroup created for the test. The whole process moves into it, so
//! the test needs a process of its own (nextest). It needs root, or ownership of the current
//! cgroup; elsewhere it prints that it was skipped.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use marple::internals::base::{Bytes, Clock, Moment, SystemClock};
use marple::internals::metrics::Gauges;
use marple::internals::vitals::{Reader, Runtimes};

/// Longer than anything but a hang.
const WAIT_TIMEOUT: Duration = Duration::from_secs(60);

/// A v1 cgroup that contains this process until it is dropped.
struct Cgroup {
    parent: PathBuf,
    dir: PathBuf,
}

impl Cgroup {
    /// Creates a cgroup for `controller` and one below it, and moves into the lower.
    fn enter(controller: &str) -> io::Result<Self> {
        let own = fs::read_to_string("/proc/self/cgroup")?;
        let missing = || io::Error::other(format!("no v1 hierarchy of {controller}"));
        let path = own
            .lines()
            .filter_map(|line| line.split_once(':')?.1.split_once(':'))
            .find(|(controllers, _)| controllers.split(',').any(|name| name == controller))
            .map(|(_, path)| path.trim_start_matches('/'))
            .ok_or_else(missing)?;
        let parent = Path::new("/sys/fs/cgroup").join(controller).join(path);
        let dir = parent.join(format!("marple-test-{}", std::process::id()));
        fs::create_dir(&dir)?;
        let cgroup = Self { parent, dir };
        fs::create_dir(cgroup.dir.join("below"))?;
        fs::write(cgroup.dir.join("below/cgroup.procs"), std::process::id().to_string())?;
        Ok(cgroup)
    }

    fn write(&self, file: &str, text: impl ToString) {
        fs::write(self.dir.join(file), text.to_string()).unwrap();
    }

    fn path(&self, file: &str) -> String {
        self.dir.join(file).to_str().unwrap().to_owned()
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        let _ = fs::write(self.parent.join("cgroup.procs"), std::process::id().to_string());
        let _ = fs::remove_dir(self.dir.join("below"));
        let _ = fs::remove_dir(&self.dir);
    }
}

fn read_number(path: &str) -> u64 {
    fs::read_to_string(path).unwrap().trim().parse().unwrap()
}

/// Returns the working set and the excluded file cache, at a moment at which the kernel's numbers
/// did not change around the reading: the reading is exactly their difference.
fn stable_working_set(
    reader: &mut Reader,
    now: Moment,
    usage: impl Fn() -> u64,
    inactive: impl Fn() -> u64,
) -> (u64, u64) {
    let started = Instant::now();
    loop {
        let before = (usage(), inactive());
        let reported = reader.read(now).working_set.unwrap().get();
        let (usage, inactive) = (usage(), inactive());
        if before == (usage, inactive) && reported == usage - inactive {
            return (reported, inactive);
        }
        let late = started.elapsed() >= WAIT_TIMEOUT;
        assert!(!late, "{reported} of usage {usage} with inactive file cache {inactive}");
        thread::sleep(Duration::from_millis(5));
    }
}

#[test]
fn real_cgroup_limits_are_reported_and_followed() {
    let (memory, cpu) = match (Cgroup::enter("memory"), Cgroup::enter("cpu")) {
        (Ok(memory), Ok(cpu)) => (memory, cpu),
        (Err(error), _) | (_, Err(error)) => {
            println!("skipped: no cgroup can be made here: {error}");
            return;
        }
    };
    memory.write("memory.limit_in_bytes", 512 << 20);
    memory.write("below/memory.limit_in_bytes", 768 << 20);
    cpu.write("cpu.cfs_quota_us", 50_000);
    cpu.write("below/cpu.cfs_quota_us", 25_000);
    let mut reader = Reader::new(Runtimes::new(), Gauges::new());
    let start = SystemClock.now();

    let before = reader.read(start);
    let limit = before.memory_limit.unwrap();
    assert_eq!(limit.value, Bytes::mib(512));
    assert_eq!(*limit.source, *memory.path("memory.limit_in_bytes"));
    let limit = before.cpu_limit.unwrap();
    assert_eq!(limit.value, 0.25);
    assert_eq!(*limit.source, *cpu.path("below/cpu.cfs_quota_us"));

    // Heap memory counts.
    const GROWTH: u64 = 64 << 20;
    let usage = || read_number(&memory.path("memory.usage_in_bytes"));
    let inactive = || {
        let stat = fs::read_to_string(memory.path("memory.stat")).unwrap();
        let of = |key: &str| {
            let line = stat.lines().find_map(|line| line.strip_prefix(key));
            line.unwrap().parse::<u64>().unwrap()
        };
        of("total_inactive_file ") + of("total_active_file ")
    };
    let mut block: Vec<u8> = Vec::with_capacity(GROWTH as usize);
    block.resize(GROWTH as usize, 1);
    let (working_set, _) = stable_working_set(&mut reader, start, usage, inactive);
    assert!(working_set >= GROWTH, "{working_set} with {GROWTH} of heap");

    // File pages are charged but do not count, however often they are read: the kernel can reclaim
    // them.
    let mut file = tempfile::NamedTempFile::new_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    file.write_all(&block[..GROWTH as usize / 2]).unwrap();
    let mut read_again = fs::File::open(file.path()).unwrap();
    for _ in 0..3 {
        io::Seek::rewind(&mut read_again).unwrap();
        io::copy(&mut read_again, &mut io::sink()).unwrap();
    }
    let (working_set, left_out) = stable_working_set(&mut reader, start, usage, inactive);
    println!("{left_out} bytes of file cache are left out of {working_set}");
    assert!(left_out >= GROWTH / 2, "{left_out} bytes of {} in the file", GROWTH / 2);

    // Shared memory counts.
    let mut shared = tempfile::NamedTempFile::new_in("/dev/shm").unwrap();
    shared.write_all(&block[..GROWTH as usize / 2]).unwrap();
    let (with_shared, _) = stable_working_set(&mut reader, start, usage, inactive);
    assert!(with_shared >= GROWTH + GROWTH / 2, "{with_shared} after {working_set}");
    drop(shared);

    memory.write("below/memory.limit_in_bytes", 256 << 20);
    cpu.write("below/cpu.cfs_quota_us", -1);
    let soon = reader.read(start + Duration::from_millis(999));
    assert_eq!(soon.memory_limit.unwrap().value, Bytes::mib(512));
    let later = reader.read(start + Duration::from_millis(1000));
    let limit = later.memory_limit.unwrap();
    assert_eq!(limit.value, Bytes::mib(256));
    assert_eq!(*limit.source, *memory.path("below/memory.limit_in_bytes"));
    assert_eq!(later.cpu_limit.unwrap().value, 0.5);

    // The process has left the cgroup: its limits do not apply.
    drop(memory);
    let moved = reader.read(start + Duration::from_millis(2000));
    let limit = moved.memory_limit.unwrap();
    assert!(limit.value != Bytes::mib(256) && !limit.source.contains("marple-test"), "{limit:?}");
    drop(block);
}
