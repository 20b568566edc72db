//! With 512 KiB left below the limit of a real memory cgroup, the profile is written to disk with
//! function names, and the process survives.
//!
//! The test needs root and the memory controller (v1 or v2) to create a cgroup. Otherwise it prints
//! one line and checks nothing, except that it fails if it runs as root and `CI` is set.

use std::fs::{self, File};
use std::hint::black_box;
use std::path::{Path, PathBuf};
use std::process::Command;

use jiff::Timestamp;
use marple::internals::agent::{HeapWriter, ProcessMemory};
use marple::internals::base::Bytes;
use marple::internals::{codec::pprof, heap};

use crate::support::rerun::{self, test_path};

const LIMIT: u64 = 256 << 20;
const HEADROOM: u64 = 512 << 10;
const RUNS: usize = 20;

/// Path of the cgroup, set in the process that runs out of memory.
const CGROUP_ENV: &str = "MARPLE_TEST_GROUP";

/// A memory cgroup with the limit, removed on drop.
struct MemoryCgroup(PathBuf);

impl MemoryCgroup {
    fn create() -> Result<Self, String> {
        let (v1, v2) = (Path::new("/sys/fs/cgroup/memory"), Path::new("/sys/fs/cgroup"));
        let (base, limit) = if v1.join("memory.limit_in_bytes").exists() {
            (v1, "memory.limit_in_bytes")
        } else if fs::read_to_string(v2.join("cgroup.subtree_control"))
            .is_ok_and(|controllers| controllers.contains("memory"))
        {
            (v2, "memory.max")
        } else {
            return Err("no memory controller".to_owned());
        };
        let path = base.join(format!("marple-test-{}", std::process::id()));
        let failed = |error| format!("{}: {error}", path.display());
        fs::create_dir(&path).map_err(failed)?;
        let group = Self(path.clone());
        fs::write(path.join(limit), LIMIT.to_string()).map_err(failed)?;
        Ok(group)
    }
}

impl Drop for MemoryCgroup {
    fn drop(&mut self) {
        let _ = fs::remove_dir(&self.0);
    }
}

/// Returns the memory in use that the kernel cannot reclaim by dropping clean file pages.
fn unreclaimable_bytes(group: &Path) -> u64 {
    let number = |text: &str| text.trim().parse::<u64>().unwrap();
    let usage = ["memory.usage_in_bytes", "memory.current"];
    let usage = usage.iter().find_map(|name| fs::read_to_string(group.join(name)).ok()).unwrap();
    let stat = fs::read_to_string(group.join("memory.stat")).unwrap();
    let files: u64 = stat
        .lines()
        .filter_map(|line| line.split_once(' '))
        .filter(|(key, _)| ["active_file", "inactive_file"].contains(key))
        .map(|(_, value)| number(value))
        .sum();
    number(&usage).saturating_sub(files)
}

#[inline(never)]
fn fill_until_headroom(group: &Path) -> Vec<Vec<u8>> {
    // Reserved, so that the vector does not grow near the limit.
    let mut kept = Vec::with_capacity(1 << 16);
    loop {
        let remaining = LIMIT.saturating_sub(unreclaimable_bytes(group));
        if remaining <= HEADROOM {
            return kept;
        }
        // Steps shrink, because the kernel charges in batches.
        for _ in 0..(remaining - HEADROOM).div_ceil(64 << 10).div_ceil(4) {
            kept.push(black_box(vec![1u8; 16 << 10]));
        }
    }
}

/// Runs in the process that runs out of memory. The last line it prints has the bytes that were
/// left at its dump.
fn run_out_of_memory(group: &Path) {
    heap::set_rate(Bytes::kib(16));
    let mut writer = HeapWriter::reserve();
    // The agent also writes once when it starts.
    writer.write(Timestamp::now(), ProcessMemory::default(), std::io::sink()).unwrap();
    let out = std::env::var("MARPLE_TEST_OUT").unwrap();
    let kept = fill_until_headroom(group);
    let remaining = LIMIT.saturating_sub(unreclaimable_bytes(group));
    let mut file = File::create(out).unwrap();
    writer.write(Timestamp::now(), ProcessMemory::default(), &mut file).unwrap();
    file.sync_all().unwrap();
    println!("left {remaining} alive with {}", kept.len());
}

#[test]
fn symbolized_profile_is_written_512_kib_below_limit() {
    if let Some(group) = std::env::var_os(CGROUP_ENV) {
        return run_out_of_memory(Path::new(&group));
    }
    let group = match MemoryCgroup::create() {
        Ok(group) => group,
        Err(why) => {
            let must = std::env::var_os("CI").is_some() && rustix::process::getuid().is_root();
            assert!(!must, "cannot make a memory cgroup: {why}");
            return println!("skipped: cannot make a memory cgroup: {why}");
        }
    };
    let dir = tempfile::tempdir_in(env!("CARGO_TARGET_TMPDIR")).unwrap();
    let mut min_remaining = u64::MAX;
    for run in 0..RUNS {
        let out = dir.path().join(format!("{run}.pprof"));
        let output = Command::new("/bin/sh")
            .args(["-c", "echo $$ > \"$MARPLE_TEST_GROUP/cgroup.procs\" && exec \"$0\" \"$@\""])
            .arg(std::env::current_exe().unwrap())
            .args(rerun::args(test_path!(symbolized_profile_is_written_512_kib_below_limit)))
            .env(CGROUP_ENV, &group.0)
            .env("MARPLE_TEST_OUT", &out)
            .output()
            .unwrap();
        let printed = String::from_utf8_lossy(&output.stdout);
        let remaining = printed.split("left ").nth(1).and_then(|rest| rest.split(' ').next());
        let context = format!("run {run}: {}\n{printed}", output.status);
        assert!(output.status.success() && remaining.is_some(), "{context}");
        let remaining: u64 = remaining.unwrap().parse().unwrap();
        // The kernel may reclaim a few file pages between the last block and the reading.
        assert!(remaining <= HEADROOM + (128 << 10), "{context}");
        min_remaining = min_remaining.min(remaining);
        let profile = pprof::read(&fs::read(&out).unwrap()).unwrap();
        let names: Vec<&str> = profile.function.iter().map(|f| profile.text(f.name)).collect();
        assert!(names.contains(&"heap::near_oom::fill_until_headroom"), "{context}{names:?}");
        let in_use: i64 = profile.sample.iter().map(|sample| sample.value[3]).sum();
        assert!(in_use > LIMIT as i64 / 2, "{context}{in_use}");
    }
    println!(
        "{RUNS} of {RUNS} written with names; at the least {} KiB were left",
        min_remaining >> 10
    );
}
