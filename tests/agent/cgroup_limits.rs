//! Tests in real cgroups: a leak that the kernel ends, and a CPU quota that throttles. The services
//! are child processes in v1 cgroups created for them. The tests need root, or ownership of the
//! current cgroup; elsewhere each prints that it was skipped.

use std::hint::black_box;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::process::Child;
use std::sync::Arc;
use std::time::{Duration, Instant};
use std::{env, fs, io, thread};

use marple::config::{StoreSettings, default_rules};
use marple::internals::base::SystemClock;
use marple::internals::model::{CaptureKind, IncidentState, Manifest, Metric, Rule};
use marple::internals::store::Store;
use marple::{Builder, Settings};

use crate::support::host::{WAIT_TIMEOUT, incidents, settings, wait_for};
use crate::support::peers;
use crate::support::rerun::{self, test_path};

const DIR_ENV: &str = "MARPLE_TEST_DIR";
const CGROUP_ENV: &str = "MARPLE_TEST_CGROUP";
const RATE_ENV: &str = "MARPLE_TEST_RATE";
const LIMIT: u64 = 256 << 20;

/// A v1 cgroup below our own.
struct Cgroup(PathBuf);

impl Cgroup {
    fn create(controller: &str, name: &str) -> Result<Self, String> {
        let own = fs::read_to_string("/proc/self/cgroup").map_err(|error| error.to_string())?;
        let path = own
            .lines()
            .filter_map(|line| line.split_once(':')?.1.split_once(':'))
            .find(|(controllers, _)| {
                controllers.split(',').any(|candidate| candidate == controller)
            })
            .map(|(_, path)| path.trim_start_matches('/').to_owned())
            .ok_or_else(|| format!("no v1 hierarchy of {controller}"))?;
        let parent = Path::new("/sys/fs/cgroup").join(controller).join(path);
        let dir = parent.join(format!("marple-test-{name}-{}", std::process::id()));
        fs::create_dir(&dir).map_err(|error| format!("{}: {error}", dir.display()))?;
        Ok(Self(dir))
    }

    fn write(&self, file: &str, value: impl ToString) {
        fs::write(self.0.join(file), value.to_string()).unwrap();
    }
}

impl Drop for Cgroup {
    fn drop(&mut self) {
        // A killed process leaves its cgroup a moment later.
        let start = Instant::now();
        while fs::remove_dir(&self.0).is_err() && start.elapsed() < Duration::from_secs(10) {
            thread::sleep(Duration::from_millis(20));
        }
    }
}

/// Starts this program again in `cgroup`, as the test at this path.
fn spawn(test: &str, dir: &Path, cgroup: &Cgroup, rate: u64) -> io::Result<Child> {
    rerun::command(test)
        .env(DIR_ENV, dir)
        .env(CGROUP_ENV, &cgroup.0)
        .env(RATE_ENV, rate.to_string())
        .stdout(std::process::Stdio::null())
        .spawn()
}

/// Returns the directory of the service after moving into its cgroup, or `None` if this process is
/// not a service.
fn enter_cgroup() -> Option<PathBuf> {
    let (dir, cgroup) = (env::var_os(DIR_ENV)?, env::var_os(CGROUP_ENV)?);
    fs::write(Path::new(&cgroup).join("cgroup.procs"), std::process::id().to_string()).unwrap();
    Some(dir.into())
}

#[inline(never)]
fn leak_block(bytes: usize) -> Vec<u8> {
    black_box(vec![1; bytes])
}

#[test]
fn leaking_service() {
    let Some(dir) = enter_cgroup() else { return };
    let rate: u64 = env::var(RATE_ENV).unwrap().parse().unwrap();
    let rules = default_rules().into_iter().filter(|rule| rule.metric == Metric::Memory).collect();
    let settings = Settings { dir, rules, interval: Duration::from_millis(250), ..settings() };
    let _agent = Builder::from_settings(settings).start().unwrap();
    let working = black_box(vec![1_u8; 100 << 20]);
    thread::sleep(Duration::from_secs(4)); // at least ten ticks before the load starts
    let mut orders = Vec::new();
    let step = Duration::from_millis(25);
    let start = Instant::now();
    for n in 1_u32.. {
        orders.push(leak_block((rate / 40) as usize));
        thread::sleep((step * n).saturating_sub(start.elapsed()));
    }
    drop((working, orders));
}

#[test]
fn burning_service() {
    let Some(dir) = enter_cgroup() else { return };
    let rule = Rule {
        abs: Some(50.0),
        capture: [CaptureKind::Trace].into(),
        duration: Duration::from_millis(100),
        ..Rule::new(Metric::Throttled)
    };
    let _agent =
        Builder::from_settings(Settings { dir, rules: vec![rule], ..settings() }).start().unwrap();
    let start = Instant::now();
    while start.elapsed() < WAIT_TIMEOUT {
        black_box(start.elapsed());
    }
}

#[test]
fn crowded_service() {
    let Some(dir) = enter_cgroup() else { return };
    let rule = Rule {
        abs: Some(90.0),
        capture: [CaptureKind::Threads, CaptureKind::Trace, CaptureKind::Heap].into(),
        duration: Duration::from_millis(100),
        ..Rule::new(Metric::Memory)
    };
    let _agent =
        Builder::from_settings(Settings { dir, rules: vec![rule], ..settings() }).start().unwrap();
    // Together with the other memory of the process this is 93 % of the limit: less than 32 MiB are
    // left.
    let orders = leak_block((LIMIT / 100 * 92) as usize);
    thread::sleep(WAIT_TIMEOUT);
    drop(orders);
}

/// Returns the last heap profile of an incident, and the fraction of the limit in use when it was
/// taken, according to the profile itself.
fn last_profile(dir: &Path, manifest: &Manifest) -> (PathBuf, f64) {
    let heap = manifest.artifacts.iter().filter(|artifact| artifact.kind == CaptureKind::Heap);
    let last = heap.max_by_key(|artifact| artifact.taken).expect("a heap profile");
    let path = dir.join(&last.file);
    let profile = marple::internals::codec::pprof::read(&fs::read(&path).unwrap()).unwrap();
    let comments: Vec<&str> = profile.comment.iter().map(|&text| profile.text(text)).collect();
    let used = comments.iter().find_map(|text| {
        let (used, limit) = text.strip_prefix("process: ")?.split_once(" bytes count against ")?;
        assert!(limit.ends_with(&LIMIT.to_string()), "{limit}");
        used.parse::<f64>().ok()
    });
    (path, used.unwrap_or_else(|| panic!("{comments:?}")) / LIMIT as f64 * 100.0)
}

/// Runs a service that leaks `mib` MiB per second until the kernel ends it.
fn assert_captured_before_oom(mib: u64, min_fraction: f64) {
    let cgroup = match Cgroup::create("memory", &format!("oom-{mib}")) {
        Ok(cgroup) => cgroup,
        Err(error) => return println!("skipped: no cgroup can be made here: {error}"),
    };
    cgroup.write("memory.limit_in_bytes", LIMIT);
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("captures");
    let ended =
        spawn(test_path!(leaking_service), &dir, &cgroup, mib << 20).unwrap().wait().unwrap();
    assert_eq!(ended.signal(), Some(9), "the kernel kills it: {ended:?}");

    let (_, recovery) = Store::open(&dir, StoreSettings::default(), Arc::new(SystemClock)).unwrap();
    let found = incidents(&dir);
    let [(path, manifest)] = &found[..] else { panic!("{found:#?}") };
    assert_eq!(recovery.interrupted, [manifest.id]);
    assert_eq!(manifest.state, IncidentState::Interrupted);
    let (profile, value) = last_profile(path, manifest);
    println!("{mib} MiB/s: {} profiles, the last at {value:.1} %", manifest.artifacts.len());
    assert!(value >= min_fraction, "{value} of {:#?}", manifest.reasons);
    let top = peers::go_pprof(&["-top", "-sample_index=inuse_space", profile.to_str().unwrap()]);
    // Columns: flat, flat%, sum%, cum, cum%, name.
    let row =
        top.lines().find(|line| line.contains("leak_block")).unwrap_or_else(|| panic!("{top}"));
    let share = row.split_whitespace().nth(4).and_then(|share| share.strip_suffix('%'));
    let share: f64 = share.and_then(|share| share.parse().ok()).unwrap_or_else(|| panic!("{top}"));
    assert!(share > 50.0, "{top}");
    let report = fs::read_to_string(path.join("incident.md")).unwrap();
    println!("{}", report.lines().take(6).collect::<Vec<_>>().join("\n"));
    assert!(report.contains("leak_block"), "{report}");
}

#[test]
fn leak_of_5_mib_per_second_is_captured_at_90_percent() {
    assert_captured_before_oom(5, 90.0);
}

#[test]
fn leak_of_40_mib_per_second_is_captured_at_80_percent() {
    assert_captured_before_oom(40, 80.0);
}

#[test]
fn heap_profile_is_written_first_near_limit() {
    let cgroup = match Cgroup::create("memory", "crowded") {
        Ok(cgroup) => cgroup,
        Err(error) => return println!("skipped: no cgroup can be made here: {error}"),
    };
    cgroup.write("memory.limit_in_bytes", LIMIT);
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("captures");
    let mut child = spawn(test_path!(crowded_service), &dir, &cgroup, 0).unwrap();
    let manifest = wait_for("the trace of an incident", || {
        let (_, manifest) = incidents(&dir).pop()?;
        let is_trace = |kind| kind == CaptureKind::Trace;
        manifest.artifacts.iter().any(|artifact| is_trace(artifact.kind)).then_some(manifest)
    });
    child.kill().unwrap();
    child.wait().unwrap();
    let kinds: Vec<CaptureKind> = manifest.artifacts.iter().map(|artifact| artifact.kind).collect();
    // Elsewhere the most transient evidence comes first, and the heap after the threads.
    assert_eq!(kinds[0], CaptureKind::Heap, "{kinds:?}");
    assert!(kinds.contains(&CaptureKind::Threads), "{kinds:?}");
}

#[test]
fn cpu_throttling_fires_its_rule() {
    let cgroup = match Cgroup::create("cpu", "throttle") {
        Ok(cgroup) => cgroup,
        Err(error) => return println!("skipped: no cgroup can be made here: {error}"),
    };
    cgroup.write("cpu.cfs_period_us", 50_000);
    cgroup.write("cpu.cfs_quota_us", 10_000);
    let home = tempfile::tempdir().unwrap();
    let dir = home.path().join("captures");
    let mut child = spawn(test_path!(burning_service), &dir, &cgroup, 0).unwrap();
    let manifest = wait_for("an incident", || {
        let (_, manifest) = incidents(&dir).pop()?;
        (!manifest.artifacts.is_empty()).then_some(manifest)
    });
    child.kill().unwrap();
    child.wait().unwrap();
    assert_eq!(manifest.reasons[0].metric, Some(Metric::Throttled));
    assert!(manifest.reasons[0].value > Some(50.0), "{:?}", manifest.reasons);
    println!("{}", manifest.reasons[0].text);
}
