//! Histories as files of a v1 or v2 cgroup, read by the agent's reader: page cache up to the limit,
//! and soft limits. A history of memory in per cent belongs in `cases.rs`.

use std::collections::BTreeMap;
use std::fs::{self, File};
use std::ops::RangeInclusive;
use std::os::unix::fs::FileExt as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use jiff::Timestamp;
use marple::config::Settings;
use marple::internals::agent::replay;
use marple::internals::agent::{ReplayOutcome, ReplayTiming};
use marple::internals::base::ManualClock;
use marple::internals::metrics::Gauges;
use marple::internals::model::{LimitEffect, Vitals};
use marple::internals::vitals::{Reader, Runtimes};
use tempfile::TempDir;

use super::budget::{last_captured_value, ticks};
use super::cases::HOUR;
use super::trace::{Trace, TraceMetric};

const MIB: f64 = 1_048_576.0;

/// Limits of a cgroup, in MiB.
#[derive(Clone, Copy, Debug)]
enum MemoryLimits {
    V2 {
        /// `memory.high`, above which the kernel throttles.
        high: Option<u64>,
        /// `memory.max`, at which the kernel kills.
        max: Option<u64>,
    },
    V1 {
        /// `memory.soft_limit_in_bytes`, at which the kernel does nothing.
        soft: Option<u64>,
        /// `memory.limit_in_bytes`, at which the kernel kills.
        hard: u64,
    },
}

impl MemoryLimits {
    /// Returns the limit that the reader uses, in MiB.
    fn effective_limit(self) -> u64 {
        match self {
            Self::V2 { high, max } => high.into_iter().chain(max).min().unwrap(),
            Self::V1 { hard, .. } => hard,
        }
    }

    /// Returns the bytes of dentries and inodes, which v1 does not charge.
    const fn slab(self) -> u64 {
        match self {
            Self::V2 { .. } => 6 << 20,
            Self::V1 { .. } => 0,
        }
    }
}

/// The files of a cgroup below a directory that replaces `/`.
struct CgroupFiles {
    root: TempDir,
    cgroup: PathBuf,
    /// Files written so far.
    open: BTreeMap<&'static str, File>,
    limits: MemoryLimits,
    /// Number of times usage was at the limit.
    events: u64,
}

impl CgroupFiles {
    fn new(walls: MemoryLimits) -> Self {
        let root = TempDir::new().unwrap();
        let (membership, mount, dir) = match walls {
            MemoryLimits::V2 { .. } => {
                ("0::/orders\n", "30 23 0:26 / /sys/fs/cgroup rw - cgroup2 cgroup rw\n", "orders")
            }
            MemoryLimits::V1 { .. } => (
                "2:memory:/orders\n",
                "31 23 0:27 / /sys/fs/cgroup/memory rw - cgroup cgroup rw,memory\n",
                "memory/orders",
            ),
        };
        let cgroup = root.path().join("sys/fs/cgroup").join(dir);
        fs::create_dir_all(&cgroup).unwrap();
        fs::create_dir_all(root.path().join("proc/self")).unwrap();
        fs::write(root.path().join("proc/self/cgroup"), membership).unwrap();
        fs::write(root.path().join("proc/self/mountinfo"), mount).unwrap();
        let mut files = Self { root, cgroup, open: BTreeMap::new(), limits: walls, events: 0 };
        let limit = |mib: Option<u64>, none: &str| {
            mib.map_or(none.to_owned(), |mib| format!("{}\n", mib << 20))
        };
        match walls {
            MemoryLimits::V2 { high, max } => {
                files.write("memory.high", &limit(high, "max\n"));
                files.write("memory.max", &limit(max, "max\n"));
            }
            MemoryLimits::V1 { soft, hard } => {
                let none = "9223372036854771712\n";
                files.write("memory.soft_limit_in_bytes", &limit(soft, none));
                files.write("memory.limit_in_bytes", &limit(Some(hard), none));
            }
        }
        files
    }

    /// Overwrites a file in place with text padded to a constant length: truncating it first may
    /// flush it to disk at each write.
    fn write(&mut self, name: &'static str, text: &str) {
        let path = self.cgroup.join(name);
        let file = self.open.entry(name).or_insert_with(|| File::create(path).unwrap());
        let length = if text.len() < 60 { 60 } else { 300 };
        file.write_all_at(format!("{text:\n<length$}").as_bytes(), 0).unwrap();
    }

    /// Charges the cgroup with `heap` MiB of anonymous memory and `cache` MiB of file pages.
    fn charge(&mut self, heap: f64, cache: f64) {
        let (heap, cache) = ((heap * MIB) as u64, (cache * MIB) as u64);
        // Most pages that a copy has read are on the inactive list.
        let (inactive, active) = (cache / 4 * 3, cache - cache / 4 * 3);
        let slab = self.limits.slab();
        let usage = heap + cache + slab;
        self.events += u64::from(usage + (2 << 20) > self.limits.effective_limit() << 20);
        match self.limits {
            MemoryLimits::V2 { high, .. } => {
                self.write("memory.current", &format!("{usage}\n"));
                let stat = format!(
                    "anon {heap}\nfile {cache}\nshmem 0\ninactive_anon {heap}\nactive_anon 0\n\
                     inactive_file {inactive}\nactive_file {active}\nslab_reclaimable {slab}\n"
                );
                self.write("memory.stat", &stat);
                let (at_high, at_max) =
                    if high.is_some() { (self.events, 0) } else { (0, self.events) };
                let events = format!("high {at_high}\nmax {at_max}\noom_kill 0\n");
                self.write("memory.events", &events);
            }
            MemoryLimits::V1 { .. } => {
                self.write("memory.usage_in_bytes", &format!("{usage}\n"));
                let stat = format!(
                    "cache {cache}\nrss {heap}\ninactive_file 0\nactive_file 0\ntotal_cache {cache}\n\
                     total_rss {heap}\ntotal_inactive_file {inactive}\ntotal_active_file {active}\n"
                );
                self.write("memory.stat", &stat);
                self.write("memory.failcnt", &format!("{}\n", self.events));
            }
        }
    }
}

/// Amount of page cache.
#[derive(Clone, Copy, Debug)]
enum CacheAmount {
    None,
    /// All that the heap leaves of the nearest limit, except 1 MiB.
    FillsLimit,
}

/// Returns the memory vitals that a process in such a cgroup reads. Its heap is `trace` per cent of
/// the nearest limit.
fn vitals<'t>(
    trace: &'t Trace,
    walls: MemoryLimits,
    cache: CacheAmount,
) -> impl Iterator<Item = Vitals> + 't {
    let mut files = CgroupFiles::new(walls);
    let limit = walls.effective_limit() as f64;
    let mut charge = move |heap: f64| {
        let heap = heap / 100.0 * limit;
        let slab = walls.slab() as f64 / MIB;
        let cache = match cache {
            CacheAmount::None => 0.0,
            CacheAmount::FillsLimit => (limit - heap - slab - 1.0).max(0.0),
        };
        files.charge(heap, cache);
        files.root.path().to_owned()
    };
    let clock = Arc::new(ManualClock::new(Timestamp::UNIX_EPOCH));
    let root = charge(trace.value_at(0.0));
    let mut reader = Reader::with_root(Runtimes::new(), Gauges::new(), &root, clock.clone());
    let mut passed = Duration::ZERO;
    ticks(trace).map(move |tick| {
        let at = Duration::from_nanos(tick.at.as_nanos());
        clock.advance(at - passed);
        passed = at;
        charge(trace.value_at(at.as_secs_f64()));
        let read = reader.read(tick.at);
        // The other vitals would be those of the test process.
        Vitals {
            at: read.at,
            rss: read.rss,
            working_set: read.working_set,
            reclaimable: read.reclaimable,
            memory_limit: read.memory_limit,
            memory_limit_effect: read.memory_limit_effect,
            kill_limit: read.kill_limit,
            memory_growth: read.memory_growth,
            memory_high: read.memory_high,
            memory_max: read.memory_max,
            ..Vitals::default()
        }
    })
}

fn steady() -> Trace {
    Trace::new("", TraceMetric::Memory, vec![(0.0, 45.0), (3.0 * HOUR, 50.0)]).with_noise(1.0)
}

/// Returns a heap that is small for an hour and then rises to `to` per cent within `ramp` seconds.
fn leak(ramp: f64, to: f64) -> Trace {
    let start = HOUR;
    Trace::new("", TraceMetric::Memory, vec![(0.0, 45.0), (start, 50.0), (start + ramp, to)])
}

/// Returns a heap that rises to `to` per cent within an hour, stays there for an hour, and falls.
fn rise_and_hold(to: f64) -> Trace {
    let points = [(0.0, 40.0), (1.0, to), (2.0, to), (2.2, 60.0), (2.5, 60.0)];
    Trace::new("", TraceMetric::Memory, points.map(|(hours, at)| (hours * HOUR, at)).into())
}

struct Row {
    name: &'static str,
    limits: MemoryLimits,
    cache: CacheAmount,
    trace: Trace,
    captures: RangeInclusive<usize>,
    /// Lowest permitted value at the last capture.
    last: f64,
}

fn run(row: &Row) -> ReplayOutcome {
    replay(&Settings::default(), ReplayTiming::default(), vitals(&row.trace, row.limits, row.cache))
}

/// Replays `rows` and checks each: the number of captures, at most one incident, and the value at
/// the last capture.
fn assert_captured(rows: &[Row]) {
    let mut short = Vec::new();
    for row in rows {
        let outcome = run(row);
        let capture_count = outcome.captures.len();
        let at = if capture_count == 0 { 0.0 } else { last_captured_value(&row.trace, &outcome) };
        let limits: Vec<_> =
            outcome.fired.iter().map(|(_, rule, text)| format!("{rule}: {text}")).collect();
        println!("{:<44} {:?} {capture_count} @ {at:.1} %", row.name, row.limits);
        if !row.captures.contains(&capture_count) || at < row.last || outcome.incidents.len() > 1 {
            short.push((row.name, row.limits, capture_count, at, limits));
        }
    }
    assert!(short.is_empty(), "{short:#?}");
}

const V2: MemoryLimits = MemoryLimits::V2 { high: None, max: Some(512) };
const V1: MemoryLimits = MemoryLimits::V1 { soft: None, hard: 512 };
const SOFT: MemoryLimits = MemoryLimits::V2 { high: Some(512), max: Some(768) };

#[test]
fn page_cache_up_to_limit_causes_no_capture() {
    let row = |walls| Row {
        name: "page cache up to the limit, 3 h",
        limits: walls,
        cache: CacheAmount::FillsLimit,
        trace: steady(),
        captures: 0..=0,
        last: 0.0,
    };
    let rows = [V2, V1, SOFT].map(row);
    for row in &rows {
        let first = vitals(&row.trace, row.limits, row.cache).next().unwrap();
        let (working_set, reclaimable) = (first.working_set.unwrap(), first.reclaimable.unwrap());
        let charged = (working_set.get() + reclaimable.get()) as f64 / (512.0 * MIB);
        assert!(charged > 0.98 && reclaimable > working_set, "{charged} {first:?}");
        let at_wall = |read: Vitals| read.memory_high > Some(0) || read.memory_max > Some(0);
        assert!(vitals(&row.trace, row.limits, row.cache).any(at_wall), "{:?}", row.limits);
    }
    assert_captured(&rows);
}

#[test]
fn leaks_under_page_cache_are_captured_up_to_limit() {
    let row = |walls, ramp, last| Row {
        name: "page cache, and a leak beneath it",
        limits: walls,
        cache: CacheAmount::FillsLimit,
        trace: leak(ramp, 100.0),
        captures: 2..=10,
        last,
    };
    let rows = [V2, V1].map(|walls| {
        [(600.0, 97.0), (30.0, 97.0), (8.0, 90.0)].map(|(ramp, last)| row(walls, ramp, last))
    });
    assert_captured(rows.as_flattened());
}

#[test]
fn v2_soft_limit_is_effective_memory_limit() {
    let row = |name, walls, cache, trace| Row {
        name,
        limits: walls,
        cache,
        trace,
        captures: 2..=10,
        last: 97.0,
    };
    let only = MemoryLimits::V2 { high: Some(512), max: None };
    let rows = [
        row("held at memory.high", only, CacheAmount::None, rise_and_hold(99.5)),
        row("held at memory.high below memory.max", SOFT, CacheAmount::None, rise_and_hold(99.5)),
        row("held a little above memory.high", SOFT, CacheAmount::None, rise_and_hold(103.0)),
        row(
            "held at memory.high beneath page cache",
            SOFT,
            CacheAmount::FillsLimit,
            rise_and_hold(99.5),
        ),
        // `memory.high` is 100 %; 104 % is `memory.max`.
        Row {
            captures: 2..=16,
            last: 101.0,
            ..row(
                "through memory.high to memory.max",
                MemoryLimits::V2 { high: Some(500), max: Some(520) },
                CacheAmount::None,
                leak(600.0, 104.0),
            )
        },
        // Above 100 % the kernel throttles the process; it kills at 133.3 %.
        Row {
            captures: 2..=16,
            last: 129.3,
            ..row(
                "through memory.high to memory.max far above it",
                MemoryLimits::V2 { high: Some(384), max: Some(512) },
                CacheAmount::None,
                leak(600.0, 133.3),
            )
        },
        row(
            "memory.high above memory.max",
            MemoryLimits::V2 { high: Some(640), max: Some(512) },
            CacheAmount::None,
            leak(600.0, 100.0),
        ),
    ];
    assert_captured(&rows);
    for (row, at_limit) in
        rows.iter().zip([LimitEffect::Throttle; 6].into_iter().chain([LimitEffect::Kill]))
    {
        let read = vitals(&row.trace, row.limits, row.cache).next().unwrap();
        assert_eq!(read.memory_limit_effect, at_limit, "{}", row.name);
    }
}

#[test]
fn v1_soft_limit_is_ignored() {
    let walls = MemoryLimits::V1 { soft: Some(256), hard: 512 };
    let row = |name, trace, captures, last| Row {
        name,
        limits: walls,
        cache: CacheAmount::None,
        trace,
        captures,
        last,
    };
    assert_captured(&[
        row("twice the soft limit of v1, no leak", steady(), 0..=0, 0.0),
        row("from the soft limit of v1 to the hard one", leak(600.0, 100.0), 2..=10, 97.0),
    ]);
}
