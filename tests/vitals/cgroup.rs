//! Tests of cgroup limits on all kinds of hosts, each a tree of the files that such a host has.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use marple::internals::base::{Bytes, Moment, SystemClock, warnings};
use marple::internals::metrics::Gauges;
use marple::internals::model::{LimitEffect, Metric};
use marple::internals::vitals::cgroup::Cgroup;
use marple::internals::vitals::{Reader, Runtimes};
use rustix::process::{Resource, Rlimit, getrlimit, setrlimit};

use crate::support::rerun::{self, test_path};

struct HostCase {
    name: &'static str,
    memory: Option<(u64, &'static str)>,
    /// Usage without file cache and reclaimable slab.
    working_set: Option<u64>,
    cpu: Option<(f64, &'static str)>,
}

/// Value in `memory.stat` of every host.
const ACTIVE_FILE: u64 = 29_265_920;
/// Value in `memory.stat` of every v2 host.
const SLAB: u64 = 2_531_704;

const HOSTS: [HostCase; 7] = [
    HostCase {
        name: "v2_pod",
        memory: Some((512 << 20, "/sys/fs/cgroup/memory.max")),
        working_set: Some(240_123_904 - 59_596_800 - ACTIVE_FILE - SLAB),
        cpu: Some((0.5, "/sys/fs/cgroup/cpu.max")),
    },
    HostCase {
        name: "v2_nested",
        memory: Some((1 << 30, "/sys/fs/cgroup/shop.slice/shop-eu.slice/memory.max")),
        working_set: Some(800_000_000 - ACTIVE_FILE - SLAB),
        cpu: Some((1.5, "/sys/fs/cgroup/shop.slice/shop-eu.slice/cpu.max")),
    },
    HostCase {
        name: "v1_docker",
        memory: Some((256 << 20, "/sys/fs/cgroup/memory/memory.limit_in_bytes")),
        working_set: Some(232_456_192 - 59_600_896 - ACTIVE_FILE),
        cpu: Some((3.0, "/sys/fs/cgroup/cpu,cpuacct/cpu.cfs_quota_us")),
    },
    HostCase { name: "v1_unlimited", memory: None, working_set: None, cpu: None },
    HostCase {
        name: "v1_flat",
        memory: Some((200 << 20, "/sys/fs/cgroup/memory/batch/job-7/memory.limit_in_bytes")),
        working_set: Some(70_000_000 - ACTIVE_FILE),
        cpu: Some((0.5, "/sys/fs/cgroup/cpu,cpuacct/batch/cpu.cfs_quota_us")),
    },
    HostCase {
        name: "hybrid",
        memory: Some((
            768 << 20,
            "/sys/fs/cgroup/memory/system.slice/orders.service/memory.limit_in_bytes",
        )),
        working_set: Some(450_000_000 - ACTIVE_FILE),
        cpu: Some((
            0.75,
            "/sys/fs/cgroup/cpu,cpuacct/system.slice/orders.service/cpu.cfs_quota_us",
        )),
    },
    HostCase { name: "none", memory: None, working_set: None, cpu: None },
];

fn working_set(cgroup: &Cgroup) -> Option<Bytes> {
    cgroup.memory_use().map(|memory| memory.working_set)
}

fn fixture(name: &str) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/cgroup").join(name)
}

fn copy_tree(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap() {
        let entry = entry.unwrap();
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy_tree(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

#[test]
fn limits_are_read_on_every_kind_of_host() {
    for host in HOSTS {
        let cgroup = Cgroup::discover(&fixture(host.name));
        let memory = cgroup.memory_limit().map(|limit| (limit.value.get(), &*limit.source));
        assert_eq!(memory, host.memory, "{}", host.name);
        assert_eq!(working_set(&cgroup), host.working_set.map(Bytes), "{}", host.name);
        let cpu = cgroup.cpu_limit().map(|limit| (limit.value, &*limit.source));
        assert_eq!(cpu, host.cpu, "{}", host.name);
    }
}

#[test]
fn limit_changes_and_cgroup_moves_are_followed() {
    let host = tempfile::tempdir().unwrap();
    copy_tree(&fixture("v2_nested"), host.path());
    let write = |path: &str, text: &str| std::fs::write(host.path().join(path), text).unwrap();
    let slice = "sys/fs/cgroup/shop.slice";
    let mut cgroup = Cgroup::discover(host.path());

    write(&format!("{slice}/shop-eu.slice/memory.max"), "2147483648\n");
    write(&format!("{slice}/shop-eu.slice/cpu.max"), "max 100000\n");
    assert_eq!(cgroup.memory_limit().unwrap().value, Bytes::gib(1));
    cgroup.refresh();
    // The service's own limit is the same; the parent's is used, because its usage includes the
    // siblings.
    let limit = cgroup.memory_limit().unwrap();
    assert_eq!(limit.value, Bytes::gib(2));
    assert!(limit.source.ends_with("shop-eu.slice/memory.max"), "{}", limit.source);
    assert_eq!(cgroup.cpu_limit().unwrap().value, 4.0);

    write(&format!("{slice}/shop-eu.slice/orders.service/memory.max"), "1073741824\n");
    cgroup.refresh();
    assert!(cgroup.memory_limit().unwrap().source.ends_with("orders.service/memory.max"));
    assert_eq!(working_set(&cgroup), Some(Bytes(250_000_000 - ACTIVE_FILE - SLAB)));

    // Moves the process up: the limit below does not apply any more.
    write(&format!("{slice}/memory.max"), "4294967296\n");
    write("proc/self/cgroup", "0::/shop.slice\n");
    cgroup.refresh();
    let limit = cgroup.memory_limit().unwrap();
    let expected = (Bytes::gib(4), "/sys/fs/cgroup/shop.slice/memory.max");
    assert_eq!((limit.value, &*limit.source), expected);
    assert_eq!(
        working_set(&cgroup),
        Some(Bytes(3_221_225_472 - 1_073_741_824 - ACTIVE_FILE - SLAB))
    );
}

/// Returns the number of descriptors of this process for files below `root`.
fn open_descriptors_below(root: &Path) -> usize {
    let links = std::fs::read_dir("/proc/self/fd").unwrap().flatten();
    let targets = links.filter_map(|link| std::fs::read_link(link.path()).ok());
    targets.filter(|target| target.starts_with(root)).count()
}

#[test]
fn deeply_nested_cgroups_hold_no_more_descriptors_than_one() {
    let descriptors_at_depth = |depth: usize| {
        let host = tempfile::tempdir().unwrap();
        copy_tree(&fixture("v2_pod"), host.path());
        let mut dir = host.path().join("sys/fs/cgroup");
        let files = ["memory.max", "memory.current", "memory.stat", "cpu.max", "cpu.stat"];
        let texts = files.map(|file| std::fs::read(dir.join(file)).unwrap_or_default());
        for _ in 0..depth {
            dir.push("x");
            std::fs::create_dir(&dir).unwrap();
            for (file, text) in files.iter().zip(&texts) {
                std::fs::write(dir.join(file), text).unwrap();
            }
        }
        let membership = format!("0::/{}\n", vec!["x"; depth].join("/"));
        std::fs::write(host.path().join("proc/self/cgroup"), membership).unwrap();
        let mut cgroup = Cgroup::discover(host.path());
        for _ in 0..3 {
            cgroup.refresh();
        }
        assert_eq!(cgroup.memory_limit().unwrap().value, Bytes::mib(512));
        open_descriptors_below(host.path())
    };
    let (flat, deep) = (descriptors_at_depth(1), descriptors_at_depth(12));
    assert!(flat > 0, "nothing is held: not measured");
    assert_eq!(deep, flat);
}

#[test]
fn limits_stay_known_without_free_descriptors() {
    const ALONE_ENV: &str = "MARPLE_TEST_ALONE";
    // The descriptor limit is per process, so the test runs in a separate one.
    if std::env::var_os(ALONE_ENV).is_none() {
        let test = test_path!(limits_stay_known_without_free_descriptors);
        let output = rerun::command(test).env(ALONE_ENV, "1").output().unwrap();
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(output.status.success() && text.contains("1 passed"), "{text}");
        return;
    }
    let host = tempfile::tempdir().unwrap();
    copy_tree(&fixture("v2_nested"), host.path());
    let mut cgroup = Cgroup::discover(host.path());
    let known = |cgroup: &Cgroup| {
        let memory = cgroup.memory_limit().map(|limit| limit.value);
        (memory, cgroup.cpu_limit().map(|limit| limit.value))
    };
    let before = known(&cgroup);
    assert_eq!(before, (Some(Bytes::gib(1)), Some(1.5)));
    let limit = getrlimit(Resource::Nofile);
    setrlimit(Resource::Nofile, Rlimit { current: Some(0), ..limit }).unwrap();
    assert!(std::fs::File::open("/dev/null").is_err());
    cgroup.refresh();
    assert_eq!(known(&cgroup), before);
    setrlimit(Resource::Nofile, limit).unwrap();
    let slice = host.path().join("sys/fs/cgroup/shop.slice/shop-eu.slice");
    std::fs::write(slice.join("cpu.max"), "max 100000\n").unwrap();
    cgroup.refresh();
    assert_eq!(known(&cgroup), (Some(Bytes::gib(1)), Some(4.0)));
}

#[test]
fn working_set_needs_usage_and_inactive_file() {
    for (file, text) in [("memory.stat", "anon 5\n"), ("memory.current", "\n")] {
        let host = tempfile::tempdir().unwrap();
        copy_tree(&fixture("v2_pod"), host.path());
        std::fs::write(host.path().join("sys/fs/cgroup").join(file), text).unwrap();
        let cgroup = Cgroup::discover(host.path());
        assert!(cgroup.memory_limit().is_some());
        assert_eq!(working_set(&cgroup), None, "{file}");
    }
}

#[test]
fn vitals_use_machine_limits_without_cgroup_limit() {
    let root = fixture("none");
    let mut reader =
        Reader::with_root(Runtimes::new(), Gauges::new(), &root, Arc::new(SystemClock));
    let vitals = reader.read(Moment::default());
    let memory = vitals.memory_limit.unwrap();
    assert_eq!(&*memory.source, "physical memory");
    assert!(memory.value > Bytes::mib(16));
    assert_eq!(&*vitals.cpu_limit.unwrap().source, "cpu affinity");
    assert!(
        vitals.rss.is_some() && vitals.working_set == vitals.rss,
        "the fixture has no `status`"
    );
}

#[test]
fn limit_above_machine_memory_is_ignored() {
    let host = tempfile::tempdir().unwrap();
    copy_tree(&fixture("v2_pod"), host.path());
    let cgroup = host.path().join("sys/fs/cgroup");
    std::fs::write(cgroup.join("memory.max"), (1_u64 << 59).to_string()).unwrap();
    std::fs::write(cgroup.join("cpu.max"), "9999900000 100000\n").unwrap();
    let mut reader =
        Reader::with_root(Runtimes::new(), Gauges::new(), host.path(), Arc::new(SystemClock));
    let vitals = reader.read(Moment::default());
    assert_eq!(&*vitals.memory_limit.unwrap().source, "physical memory");
    assert_eq!(&*vitals.cpu_limit.unwrap().source, "cpu affinity");
    assert_eq!(vitals.working_set, vitals.rss);
}

/// Creates a service in a v2 slice with these limits: first the service's, then the slice's.
fn create_service(high: &str, max: &str, slice_high: &str, slice_max: &str) -> tempfile::TempDir {
    let host = tempfile::tempdir().unwrap();
    let write = |path: &str, text: &str| {
        let path = host.path().join(path);
        std::fs::create_dir_all(path.parent().unwrap()).unwrap();
        std::fs::write(path, text).unwrap();
    };
    write("proc/self/cgroup", "0::/svc.slice/app.service\n");
    let mount = "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n";
    write("proc/self/mountinfo", mount);
    for (dir, high, max, events) in
        [("svc.slice/app.service", high, max, 1), ("svc.slice", slice_high, slice_max, 1000)]
    {
        let file = |name: &str| format!("sys/fs/cgroup/{dir}/{name}");
        write(&file("memory.high"), high);
        write(&file("memory.max"), max);
        write(&file("memory.current"), &(507_u64 << 20).to_string());
        let stat = "inactive_file 1048576\nactive_file 1048576\nslab_reclaimable 0\n";
        write(&file("memory.stat"), stat);
        write(&file("memory.events"), &format!("high {events}\nmax 0\noom_kill 0\n"));
    }
    host
}

#[test]
fn smallest_soft_or_hard_limit_of_path_applies() {
    let (low, mid, none) = ("536870912\n", "4294967296\n", "max\n");
    let own = "/sys/fs/cgroup/svc.slice/app.service";
    let slice = "/sys/fs/cgroup/svc.slice";
    for (limits, dir, file, at_limit, high_events) in [
        ([none, low, none, none], own, "memory.max", LimitEffect::Kill, 1),
        ([low, none, none, none], own, "memory.high", LimitEffect::Throttle, 1),
        ([low, mid, none, none], own, "memory.high", LimitEffect::Throttle, 1),
        ([none, mid, low, none], slice, "memory.high", LimitEffect::Throttle, 1000),
        ([mid, none, none, low], slice, "memory.max", LimitEffect::Kill, 1000),
        // Of two equal limits, the one that kills is used.
        ([low, low, none, none], own, "memory.max", LimitEffect::Kill, 1),
        // 0 in `memory.high` reclaims all cold memory; usage is always above it, so it is not the
        // limit.
        (["0\n", low, none, none], own, "memory.max", LimitEffect::Kill, 1),
    ] {
        let [high, max, slice_high, slice_max] = limits;
        let host = create_service(high, max, slice_high, slice_max);
        let (runtimes, clock) = (Runtimes::new(), Arc::new(SystemClock));
        let mut reader = Reader::with_root(runtimes, Gauges::new(), host.path(), clock);
        let vitals = reader.read(Moment::default());
        let limit = vitals.memory_limit.as_ref().unwrap();
        let found = (limit.value, limit.source.to_string(), vitals.memory_limit_effect);
        assert_eq!(found, (Bytes::mib(512), format!("{dir}/{file}"), at_limit), "{limits:?}");
        let percent = Metric::Memory.value(&vitals).unwrap();
        assert!((percent - 505.0 / 5.12).abs() < 1e-9, "{percent} % in {limits:?}");
        assert_eq!(vitals.headroom(), Some(Bytes::mib(7)), "room before a capture");
        let note = vitals.memory_note();
        let is_told =
            note.is_some_and(|note| note.contains("memory.high") && note.contains("slows"));
        assert_eq!(is_told, at_limit == LimitEffect::Throttle, "{limits:?}");
        let strain = Cgroup::discover(host.path()).pressure();
        assert_eq!(
            strain.memory_high_events,
            Some(high_events),
            "of the cgroup with the limit: {limits:?}"
        );
    }
}

#[test]
fn unreadable_limits_are_warned_about() {
    let warning_text = || {
        let found = warnings::list().into_iter().find(|entry| entry.topic == "memory.limit");
        found.map(|warning| warning.text)
    };
    let read = |root: &Path| {
        let (runtimes, clock) = (Runtimes::new(), Arc::new(SystemClock));
        let mut reader = Reader::with_root(runtimes, Gauges::new(), root, clock);
        let vitals = reader.read(Moment::default());
        (vitals, warning_text())
    };
    let host = create_service("max\n", "max\n", "max\n", "max\n");
    // The root of the hierarchy is visible, and has no limit.
    assert!(read(host.path()).1.is_none_or(|text| !text.contains("are hidden")));
    let top = host.path().join("sys/fs/cgroup/memory.max");
    std::fs::write(&top, "max\n").unwrap();
    let (_, text) = read(host.path());
    assert!(text.unwrap().contains("their ancestors are hidden"));

    std::fs::write(&top, "536870912\n").unwrap();
    let (vitals, text) = read(host.path());
    let text = text.unwrap();
    assert!(text.contains("memory.stat of /sys/fs/cgroup cannot be read"), "{text}");
    assert!(Metric::Memory.value(&vitals).is_none() == vitals.rss.is_none(), "by the resident set");

    std::fs::remove_dir_all(host.path().join("sys")).unwrap();
    let (_, text) = read(host.path());
    assert!(text.unwrap().contains("mount /sys/fs/cgroup"));
}
