//! One tick's measurements of the process.

use std::sync::Arc;
use std::time::Duration;

use super::own::{CounterReading, HistogramReading};
use crate::base::{Bytes, Moment, Percent};

/// Further off than this no limit is in sight: a trend of half a minute says nothing about tomorrow.
const HORIZON: Duration = Duration::from_secs(24 * 60 * 60);

/// A limit and where it was read.
#[derive(Clone, Debug, PartialEq)]
pub struct Limit<T> {
    /// The limit.
    pub value: T,
    /// The file it stands in, or what else it is: `physical memory`, `online cores`.
    pub source: Arc<str>,
}

/// What happens to a process whose memory reaches a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum AtLimit {
    /// The kernel kills: `memory.max`, `memory.limit_in_bytes`, the machine's memory.
    #[default]
    Kill,
    /// The kernel slows it down and reclaims: `memory.high`.
    Throttle,
    /// Its allocations fail, which ends most programs: `RLIMIT_AS`, `RLIMIT_DATA`.
    Fail,
}

/// A memory limit and what counts against it.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryWall {
    /// What counts.
    pub used: Bytes,
    /// The limit.
    pub limit: Limit<Bytes>,
    /// What happens at it.
    pub at_limit: AtLimit,
}

impl MemoryWall {
    /// What counts as a share of the limit.
    pub fn percent(&self) -> Option<Percent> {
        Percent::of(self.used.get() as f64, self.limit.value.get() as f64)
    }
}

/// Reclaimable cache of at least this share of the limit is named in the reason of an incident.
const LARGE_CACHE: f64 = 10.0;

/// One tick's measurements. A field is none when this machine does not tell it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vitals {
    /// When.
    pub at: Moment,
    /// Resident set of the process.
    pub rss: Option<Bytes>,
    /// What the program has asked its allocator for and not given back, estimated from samples; none
    /// where the allocator is not marple's.
    pub heap: Option<Bytes>,
    /// What counts against `memory_limit`: under a memory cgroup its usage less the cache that the kernel takes
    /// back; otherwise the resident set less file pages.
    pub working_set: Option<Bytes>,
    /// The cache that was taken off for `working_set`.
    pub reclaimable: Option<Bytes>,
    /// How much memory there is to use: the smallest limit of the cgroups above us, hard or soft, else physical
    /// memory.
    pub memory_limit: Option<Limit<Bytes>>,
    /// What happens at `memory_limit`.
    pub at_memory_limit: AtLimit,
    /// Memory at which the kernel kills, if it does not at `memory_limit`.
    pub kill_limit: Option<Bytes>,
    /// The limit on the address space or data of the process that is nearer, if there is one.
    pub address_space: Option<MemoryWall>,
    /// CPU time used since the previous tick, in cores (1.5: one and a half core's worth).
    pub cpu_cores: Option<f64>,
    /// How many cores' worth there is to use: the smallest quota of the cgroups above us, else the cores
    /// this process may run on.
    pub cpu_limit: Option<Limit<f64>>,
    /// Tasks alive on the observed runtimes.
    pub tasks: Option<u64>,
    /// Threads of the process.
    pub threads: Option<u64>,
    /// Open file descriptors.
    pub fds: Option<u64>,
    /// How late a probe task ran, on the worst of the observed runtimes; while a probe is still waiting,
    /// how late it is already.
    pub lag: Option<Duration>,
    /// What 99 of 100 lags of the last minute were below.
    pub lag_p99: Option<Duration>,
    /// Share of the last ten seconds in which a runtime ran what was ready more than 100 ms late, on the worst of the
    /// observed runtimes. The first ten seconds of a runtime, waits of its workers for a core and times in which the
    /// process stood still do not count.
    pub stalled: Option<Percent>,
    /// How long work waits for a thread of a runtime's blocking pool (`spawn_blocking`, files, name resolution), on the
    /// worst of the observed runtimes; zero while no thread of the pools does anything.
    pub blocking_lag: Option<Duration>,
    /// How long the longest poll has lasted that goes on, or ended since the tick before and was too long;
    /// none while polls are not recorded.
    pub stall: Option<Duration>,
    /// What `working_set` grew by in a second, on average over the last half minute, in bytes.
    pub memory_growth: Option<f64>,
    /// What `tasks` grew by, likewise.
    pub task_growth: Option<f64>,
    /// Of the CPU periods of the last second, the share in which we were throttled.
    pub cpu_throttled: Option<Percent>,
    /// How many descriptors may be open.
    pub fd_limit: Option<u64>,
    /// Share of the last ten seconds in which something waited for memory.
    pub memory_pressure: Option<Percent>,
    /// Likewise for a CPU.
    pub cpu_pressure: Option<Percent>,
    /// Likewise for input and output.
    pub io_pressure: Option<Percent>,
    /// Times in the last second that the cgroup's memory was above `memory.high`.
    pub memory_high: Option<u64>,
    /// Times in the last second that the cgroup's memory was at its limit, and some had to be given back.
    pub memory_max: Option<u64>,
    /// Processes of the cgroup killed in the last second for lack of memory.
    pub oom_kills: Option<u64>,
    /// Panics in the last second.
    pub panics: Option<u64>,
    /// Time in which threads that never slept waited for cores that other processes had in the last second, in cores;
    /// zero while the machine has a core to spare.
    pub cpu_waited: Option<f64>,
    /// Share of the workers' time in the last six seconds in which they polled tasks, and neither ran nor waited for
    /// a core.
    pub blocked: Option<Percent>,
    /// What `tasks` has risen by without a pause, if it has doubled; else zero.
    pub task_rise: Option<u64>,
    /// What `threads` has risen by, likewise.
    pub thread_rise: Option<u64>,
    /// What `fds` has risen by, likewise.
    pub fd_rise: Option<u64>,
    /// The service's own numbers: those it sets,
    pub gauges: Vec<(Arc<str>, f64)>,
    /// those it adds to,
    pub counters: Vec<(Arc<str>, CounterReading)>,
    /// and those it records many values of.
    pub histograms: Vec<(Arc<str>, HistogramReading)>,
}

impl Vitals {
    /// The memory limit that is nearest, by share.
    pub fn memory_wall(&self) -> Option<MemoryWall> {
        let of_limit = |limit: &Limit<Bytes>| {
            let (used, at_limit) = (self.working_set?, self.at_memory_limit);
            Some(MemoryWall { used, limit: limit.clone(), at_limit })
        };
        let memory = self.memory_limit.as_ref().and_then(of_limit);
        let share = |wall: &Option<MemoryWall>| wall.as_ref()?.percent().map(Percent::get);
        match share(&self.address_space) > share(&memory) {
            true => self.address_space.clone(),
            false => memory,
        }
    }

    /// Used memory as a share of the nearest limit.
    pub fn memory_percent(&self) -> Option<Percent> {
        self.memory_wall()?.percent()
    }

    /// How much memory is left below the nearest limit.
    pub fn headroom(&self) -> Option<Bytes> {
        let wall = self.memory_wall()?;
        Some(Bytes(wall.limit.value.get().saturating_sub(wall.used.get())))
    }

    /// What a reader of a memory incident has to know beside the numbers: what happens at a limit that does
    /// not kill, and how much cache is charged that does not count.
    pub fn memory_note(&self) -> Option<String> {
        let wall = self.memory_wall()?;
        let (value, source) = (wall.limit.value, &wall.limit.source);
        let at_limit = match wall.at_limit {
            AtLimit::Kill => None,
            AtLimit::Throttle => Some(format!(
                "the limit is {value} of {source}, above which the kernel slows the process and reclaims, but does \
                 not kill"
            )),
            AtLimit::Fail => {
                Some(format!("the limit is {value} of {source}, at which allocations fail"))
            }
        };
        let is_large = |cache: &Bytes| {
            Percent::of(cache.get() as f64, value.get() as f64)
                .is_some_and(|share| share.get() >= LARGE_CACHE)
        };
        let cache = self.reclaimable.filter(is_large).filter(|_| wall.at_limit != AtLimit::Fail);
        let cache = cache.map(|cache| {
            format!(
                "{cache} of reclaimable file cache and kernel caches are charged and do not count"
            )
        });
        let parts: Vec<String> = at_limit.into_iter().chain(cache).collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }

    /// Open descriptors as a share of how many there may be.
    pub fn fd_percent(&self) -> Option<Percent> {
        Percent::of(self.fds? as f64, self.fd_limit? as f64)
    }

    /// CPU time as a share of the CPU limit.
    pub fn cpu_percent(&self) -> Option<Percent> {
        Percent::of(self.cpu_cores?, self.cpu_limit.as_ref()?.value)
    }

    /// CPU time, and the time that threads waited for cores other processes had, as a share of the CPU limit: what
    /// the process would use if it were alone, 100 % at most.
    pub fn cpu_demand_percent(&self) -> Option<Percent> {
        let used = self.cpu_percent()?;
        let waited = self.cpu_waited.unwrap_or(0.0);
        let demand = Percent::of(self.cpu_cores? + waited, self.cpu_limit.as_ref()?.value)?;
        Some(Percent(used.get().max(demand.get().min(100.0))))
    }

    /// In how many seconds the working set is at the limit, were it to grow on as it did in the last half
    /// minute. Infinite when no limit is in sight: it does not grow, or the limit is more than a day off.
    pub fn time_to_limit(&self) -> Option<f64> {
        let (room, growth) = (self.headroom()?.get() as f64, self.memory_growth?);
        let seconds = if growth > 0.0 { room / growth } else { f64::INFINITY };
        Some(if room <= 0.0 {
            0.0
        } else if seconds > HORIZON.as_secs_f64() {
            f64::INFINITY
        } else {
            seconds
        })
    }

    /// The service's gauge called `name`.
    pub fn gauge(&self, name: &str) -> Option<f64> {
        self.gauges.iter().find(|(known, _)| **known == *name).map(|&(_, value)| value)
    }

    /// The service's counter called `name`.
    pub fn counter(&self, name: &str) -> Option<CounterReading> {
        self.counters.iter().find(|(known, _)| **known == *name).map(|&(_, reading)| reading)
    }

    /// The service's histogram called `name`.
    pub fn histogram(&self, name: &str) -> Option<HistogramReading> {
        self.histograms.iter().find(|(known, _)| **known == *name).map(|&(_, reading)| reading)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shares_need_a_limit() {
        let mut vitals = Vitals { working_set: Some(Bytes(50)), ..Vitals::default() };
        assert_eq!(vitals.memory_percent(), None);
        vitals.memory_limit = Some(Limit { value: Bytes(200), source: "test".into() });
        assert_eq!(vitals.memory_percent(), Some(Percent(25.0)));
        vitals.memory_limit = Some(Limit { value: Bytes(0), source: "test".into() });
        assert_eq!(vitals.memory_percent(), None);
    }

    #[test]
    fn cpu_demand_has_the_cores_of_neighbours_and_no_more_than_all() {
        let vitals = |cores, waited| Vitals {
            cpu_cores: Some(cores),
            cpu_waited: waited,
            cpu_limit: Some(Limit { value: 2.0, source: "test".into() }),
            ..Vitals::default()
        };
        for (cores, waited, demand) in [
            (1.0, None, 50.0),
            (1.0, Some(0.0), 50.0),
            (1.0, Some(0.9), 95.0),
            (1.0, Some(9.0), 100.0),
            // The clock of a tick and that of the kernel differ.
            (2.1, Some(1.0), 105.0),
        ] {
            assert_eq!(vitals(cores, waited).cpu_demand_percent(), Some(Percent(demand)));
        }
    }

    #[test]
    fn nearest_limit_counts_and_says_what_happens_at_it() {
        let limit = |mib, source: &str| Limit { value: Bytes::mib(mib), source: source.into() };
        let mut vitals = Vitals {
            working_set: Some(Bytes::mib(300)),
            reclaimable: Some(Bytes::mib(51)),
            memory_limit: Some(limit(512, "/memory.high")),
            ..Vitals::default()
        };
        assert_eq!(vitals.memory_note(), None, "51 of 512 MiB are less than a tenth");
        vitals.at_memory_limit = AtLimit::Throttle;
        let note = vitals.memory_note().unwrap();
        assert!(note.contains("/memory.high") && note.contains("does not kill"), "{note}");
        assert!(!note.contains("cache"), "{note}");
        vitals.reclaimable = Some(Bytes::mib(52));
        assert!(vitals.memory_note().unwrap().contains("52.0 MiB of reclaimable file cache"));
        let space = |used| MemoryWall {
            used: Bytes::mib(used),
            limit: limit(4096, "RLIMIT_AS"),
            at_limit: AtLimit::Fail,
        };
        vitals.address_space = Some(space(2400));
        assert_eq!(vitals.headroom(), Some(Bytes::mib(212)), "58.59 % are more than 58.58 %");
        vitals.address_space = Some(space(2401));
        assert_eq!(vitals.headroom(), Some(Bytes::mib(1695)));
        let note = vitals.memory_note().unwrap();
        assert!(note.contains("RLIMIT_AS, at which allocations fail"), "{note}");
        vitals.working_set = None;
        assert_eq!(vitals.memory_wall().unwrap().limit, limit(4096, "RLIMIT_AS"));
    }

    #[test]
    fn a_limit_is_in_sight_within_a_day() {
        let at = |used: u64, growth| Vitals {
            working_set: Some(Bytes(used)),
            memory_limit: Some(Limit { value: Bytes(1_000_000), source: "test".into() }),
            memory_growth: growth,
            ..Vitals::default()
        };
        let day = 86_400.0;
        for (vitals, seconds) in [
            (at(400_000, Some(1000.0)), Some(600.0)),
            (at(400_000, Some(600_000.0 / day)), Some(day)),
            (at(400_000, Some(600_000.0 / (day + 1.0))), Some(f64::INFINITY)),
            (at(400_000, Some(0.0)), Some(f64::INFINITY)),
            (at(400_000, Some(-5.0)), Some(f64::INFINITY)),
            (at(1_000_000, Some(-5.0)), Some(0.0)),
            (at(1_000_001, Some(0.0)), Some(0.0)),
            (at(400_000, None), None),
            (Vitals { memory_growth: Some(1.0), ..Vitals::default() }, None),
        ] {
            assert_eq!(vitals.time_to_limit(), seconds, "{vitals:?}");
        }
    }
}
