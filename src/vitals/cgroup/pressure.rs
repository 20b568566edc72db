//! Resource pressure on the process: CPU throttling, reclaim at memory limits, OOM kills and
//! stalls.
//!
//! | | v1 | v2 |
//! |---|---|---|
//! | CPU periods, throttled ones | `nr_periods`, `nr_throttled` of `cpu.stat` (1) | the same |
//! | reclaim at `memory.high` | none | `high` of `memory.events` (2) |
//! | reclaim at the limit | `memory.failcnt` (2) | `max` of `memory.events` (2) |
//! | OOM kills | `oom_kill` of `memory.oom_control` (Linux 4.13) | `oom_kill` of `memory.events` |
//! | pressure | `/proc/pressure`, of the machine | `*.pressure` of the process's own cgroup |
//!
//! (1) Of the cgroup with the effective quota. (2) Of the cgroup with the effective memory limit.
//!
//! The counters of a cgroup include events of its limits and of its descendants' limits, but not of
//! its ancestors'. Without a limit the memory events are those of the process's own cgroup.
//!
//! The counters only increase; the caller computes differences. Intended for once a second: at most
//! seven reads of 1.3 us each.

use std::path::Path;

use super::ResourcePressure;
use super::path::{CgroupPath, Version};
use crate::base::Percent;
use crate::os::kernel_file::{BUFFER_BYTES, KernelFile, join_root, parse_number, parse_value};

/// The open files behind [`ResourcePressure`].
#[derive(Debug, Default)]
pub(super) struct PressureFiles {
    pub(super) memory_events: Option<KernelFile>,
    /// `memory.failcnt`, which exists only in v1.
    failcnt: Option<KernelFile>,
    pressure: [Option<KernelFile>; 3],
}

impl PressureFiles {
    /// Opens the files that exist. `own` is the process's cgroup in the v2 hierarchy, `memory` the
    /// one that may limit memory.
    pub(super) fn open(root: &Path, own: Option<&CgroupPath>, memory: Option<&CgroupPath>) -> Self {
        let open = |path: &Path| KernelFile::open(&join_root(root, path));
        let memory_events = memory.and_then(|cgroup| match cgroup.version {
            Version::V1 => open(&cgroup.dir.join("memory.oom_control")),
            Version::V2 => open(&cgroup.dir.join("memory.events")),
        });
        let failures = memory
            .filter(|cgroup| cgroup.version == Version::V1)
            .and_then(|cgroup| open(&cgroup.dir.join("memory.failcnt")));
        let pressure = ["memory", "cpu", "io"].map(|resource| {
            own.and_then(|cgroup| open(&cgroup.dir.join(format!("{resource}.pressure"))))
                .or_else(|| open(&Path::new("/proc/pressure").join(resource)))
        });
        Self { memory_events, failcnt: failures, pressure }
    }

    /// Reads the counters. `cpu_stat` has the CPU counters, `at_limit` those of the effective
    /// memory limit.
    pub(super) fn read(
        &self,
        cpu_stat: Option<&KernelFile>,
        effective_events: Option<(usize, &KernelFile)>,
    ) -> ResourcePressure {
        let [periods, throttled] = read_counters(cpu_stat, ["nr_periods", "nr_throttled"]);
        let [oom_kills] = read_counters(self.memory_events.as_ref(), ["oom_kill"]);
        let events = match &self.failcnt {
            Some(_) => None,
            None => effective_events.map(|(_, file)| file).or(self.memory_events.as_ref()),
        };
        let [memory_high, memory_max] = read_counters(events, ["high", "max"]);
        let failures = self.failcnt.as_ref();
        let failures = failures.map(|own| effective_events.map_or(own, |(_, file)| file));
        ResourcePressure {
            cpu_periods: periods,
            throttled_periods: throttled,
            memory_level: effective_events.map(|(level, _)| level),
            memory_high_events: memory_high,
            memory_max_events: memory_max.or(failures.and_then(KernelFile::read_number)),
            oom_kills,
            ..ResourcePressure::default()
        }
    }

    /// Adds the pressure averages to `counters`.
    pub(super) fn with_averages(&self, counters: ResourcePressure) -> ResourcePressure {
        let pressure = |file: &Option<KernelFile>| {
            let mut buffer = [0; 512];
            parse_some_avg10(file.as_ref()?.read(&mut buffer)?)
        };
        let [memory_pressure, cpu_pressure, io_pressure] =
            [0, 1, 2].map(|index| pressure(&self.pressure[index]));
        ResourcePressure { memory_pressure, cpu_pressure, io_pressure, ..counters }
    }
}

/// Returns the numbers after `keys`, from a single read.
fn read_counters<const N: usize>(file: Option<&KernelFile>, keys: [&str; N]) -> [Option<u64>; N] {
    let mut buffer = [0; BUFFER_BYTES];
    let text = file.and_then(|file| file.read(&mut buffer));
    keys.map(|key| text.and_then(|text| parse_value(key, text)))
}

/// Returns the number after `avg10=` in the line `some`.
fn parse_some_avg10(text: &[u8]) -> Option<Percent> {
    let line = text.split(|&byte| byte == b'\n').find(|line| line.starts_with(b"some "))?;
    let value = line.split(|&byte| byte == b' ').find_map(|word| word.strip_prefix(b"avg10="))?;
    let (integer, hundredths) = match value.iter().position(|&byte| byte == b'.') {
        Some(dot) => (value.get(..dot)?, value.get(dot + 1..)?),
        None => (value, &b"0"[..]),
    };
    Some(Percent(parse_number(integer)? as f64 + parse_number(hundredths)? as f64 / 100.0))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_file_avg10_is_parsed() {
        let text = b"some avg10=12.05 avg60=0.00 avg300=0.00 total=7\nfull avg10=1.00 total=0\n";
        assert_eq!(parse_some_avg10(text), Some(Percent(12.05)));
        assert_eq!(parse_some_avg10(b"full avg10=1.00\n"), None);
        assert_eq!(parse_some_avg10(b"some avg10=x\n"), None);
        assert_eq!(parse_some_avg10(b""), None);
    }
}
