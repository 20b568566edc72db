//! Tests of the resource pressure on the process, from files such as hosts have, and from a real
//! quota.

use std::fs;
use std::panic::catch_unwind;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use marple::internals::base::{Clock, ManualClock, Percent};
use marple::internals::metrics::Gauges;
use marple::internals::model::{Metric, Vitals};
use marple::internals::vitals::cgroup::Cgroup;
use marple::internals::vitals::{Reader, Runtimes};
use marple::metrics::count_panics;

fn write(root: &Path, path: &str, text: &str) {
    let path = root.join(path);
    fs::create_dir_all(path.parent().unwrap()).unwrap();
    fs::write(path, text).unwrap();
}

/// Returns a v2 container with a quota and a limit, as seen from inside.
fn container() -> tempfile::TempDir {
    let root = tempfile::tempdir().unwrap();
    let path = root.path();
    write(path, "proc/self/cgroup", "0::/\n");
    let mount = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
    write(path, "proc/self/mountinfo", mount);
    write(path, "sys/fs/cgroup/memory.max", "268435456\n");
    write(path, "sys/fs/cgroup/memory.current", "100000000\n");
    write(path, "sys/fs/cgroup/memory.stat", "inactive_file 0\n");
    write(path, "sys/fs/cgroup/cpu.max", "50000 100000\n");
    for (file, share) in [("memory", "1.50"), ("cpu", "20.00"), ("io", "0.25")] {
        let text = format!("some avg10={share} avg60=0.00 avg300=0.00 total=1\n");
        write(path, &format!("sys/fs/cgroup/{file}.pressure"), &text);
    }
    write_counters(path, 100, 10, 0, 3);
    root
}

fn write_counters(root: &Path, periods: u64, throttled: u64, high: u64, kills: u64) {
    let stat = format!("usage_usec 5\nnr_periods {periods}\nnr_throttled {throttled}\n");
    write(root, "sys/fs/cgroup/cpu.stat", &stat);
    let events = format!("low 0\nhigh {high}\nmax 9\noom 9\noom_kill {kills}\n");
    write(root, "sys/fs/cgroup/memory.events", &events);
}

#[test]
fn counters_are_reported_as_increase_of_last_second() {
    let root = container();
    let clock = Arc::new(ManualClock::new(jiff::Timestamp::UNIX_EPOCH));
    let (runtimes, gauges) = (Runtimes::new(), Gauges::new());
    let mut reader = Reader::with_root(runtimes, gauges, root.path(), clock.clone());
    let mut vitals = Vitals::default();
    let mut tick = |millis: u64| {
        clock.advance(Duration::from_millis(millis));
        reader.read_into(clock.now(), &mut vitals);
        vitals.clone()
    };
    let first = tick(250);
    assert_eq!((first.cpu_throttled, first.oom_kills, first.memory_high), (None, None, None));
    assert_eq!(first.memory_pressure, Some(Percent(1.5)));
    assert_eq!(first.cpu_pressure, Some(Percent(20.0)));
    assert_eq!(first.io_pressure, Some(Percent(0.25)));

    write_counters(root.path(), 110, 14, 7, 4);
    assert_eq!(tick(250).cpu_throttled, None, "a second has not passed");
    let second = tick(1000);
    assert_eq!(second.cpu_throttled, Some(Percent(40.0)));
    assert_eq!((second.memory_high, second.oom_kills), (Some(7), Some(1)));
    assert_eq!(tick(250).oom_kills, Some(1), "holds until the next reading");
    let idle = tick(1000);
    assert_eq!((idle.cpu_throttled, idle.oom_kills), (Some(Percent(0.0)), Some(0)));
}

#[test]
fn v1_reports_kills_and_throttling_and_machine_pressure() {
    let root = tempfile::tempdir().unwrap();
    let path = root.path();
    write(path, "proc/self/cgroup", "4:memory:/\n1:cpu:/\n");
    let mounts = "30 23 0:26 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n\
                  31 23 0:27 / /sys/fs/cgroup/cpu rw - cgroup cgroup rw,cpu\n";
    write(path, "proc/self/mountinfo", mounts);
    write(path, "sys/fs/cgroup/memory/memory.limit_in_bytes", "268435456\n");
    write(path, "sys/fs/cgroup/memory/memory.failcnt", "17\n");
    let control = "oom_kill_disable 0\nunder_oom 0\noom_kill 2\n";
    write(path, "sys/fs/cgroup/memory/memory.oom_control", control);
    write(path, "sys/fs/cgroup/cpu/cpu.cfs_quota_us", "50000\n");
    write(path, "sys/fs/cgroup/cpu/cpu.cfs_period_us", "100000\n");
    write(path, "sys/fs/cgroup/cpu/cpu.stat", "nr_periods 7\nnr_throttled 3\nthrottled_time 9\n");
    write(path, "proc/pressure/cpu", "some avg10=3.00 avg60=0.00 avg300=0.00 total=1\n");
    let strain = Cgroup::discover(path).pressure();
    assert_eq!((strain.cpu_periods, strain.throttled_periods), (Some(7), Some(3)));
    assert_eq!((strain.oom_kills, strain.memory_high_events), (Some(2), None));
    assert_eq!(strain.memory_max_events, Some(17));
    assert_eq!((strain.cpu_pressure, strain.memory_pressure), (Some(Percent(3.0)), None));
}

#[test]
fn descriptors_are_utilization_and_panics_are_counts() {
    let clock = Arc::new(ManualClock::new(jiff::Timestamp::UNIX_EPOCH));
    let mut reader =
        Reader::with_root(Runtimes::new(), Gauges::new(), Path::new("/"), clock.clone());
    let mut tick = || {
        clock.advance(Duration::from_secs(1));
        reader.read(clock.now())
    };
    let vitals = tick();
    let share = Metric::FdUtilization.value(&vitals).unwrap();
    let percent = vitals.fds.unwrap() as f64 / vitals.fd_limit.unwrap() as f64 * 100.0;
    assert!((share - percent).abs() < 1e-9, "{share} is not {percent}");
    assert_eq!(vitals.panics, None, "nobody counts");
    count_panics();
    count_panics();
    tick();
    for _ in 0..3 {
        assert!(catch_unwind(|| panic!("counted")).is_err());
    }
    assert_eq!(tick().panics, Some(3), "each once, though counting was asked for twice");
    assert_eq!(tick().panics, Some(0));
}
