//! The measurements of the process at one tick.

use std::sync::Arc;
use std::time::Duration;

use crate::base::{Bytes, Moment, Percent};
use crate::model::custom_metrics::{CounterReading, HistogramReading};

/// Maximum time to a limit that is forecast. A trend over half a minute does not predict more than
/// a day.
const MAX_FORECAST_HORIZON: Duration = Duration::from_secs(24 * 60 * 60);

/// A limit and its source.
#[derive(Clone, Debug, PartialEq)]
pub struct Limit<T> {
    /// Value of the limit.
    pub value: T,
    /// File that contains the limit, or a description: `physical memory`, `online cores`.
    pub source: Arc<str>,
}

/// The effect on a process whose memory reaches a limit.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum LimitEffect {
    /// The kernel kills the process: `memory.max`, `memory.limit_in_bytes`, physical memory.
    #[default]
    Kill,
    /// The kernel throttles the process and reclaims memory: `memory.high`.
    Throttle,
    /// Allocations fail, which ends most programs: `RLIMIT_AS`, `RLIMIT_DATA`.
    Fail,
}

/// A memory limit and the usage charged to it.
#[derive(Clone, Debug, PartialEq)]
pub struct MemoryLimitUsage {
    /// Usage charged to the limit.
    pub used: Bytes,
    /// Limit.
    pub limit: Limit<Bytes>,
    /// Effect of reaching the limit.
    pub limit_effect: LimitEffect,
}

impl MemoryLimitUsage {
    /// Returns the usage in percent of the limit.
    pub fn percent(&self) -> Option<Percent> {
        Percent::of(self.used.get() as f64, self.limit.value.get() as f64)
    }
}

/// Minimum reclaimable cache, in percent of the limit, that the reason of an incident mentions.
const MIN_REPORTED_CACHE_PERCENT: f64 = 10.0;

/// The measurements of one tick. A field is `None` if this machine does not provide it.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Vitals {
    /// Time of the tick.
    pub at: Moment,
    /// Resident set of the process.
    pub rss: Option<Bytes>,
    /// Live heap (allocated and not yet freed), estimated from samples. `None` if the allocator is
    /// not marple's.
    pub heap: Option<Bytes>,
    /// Memory charged to `memory_limit`. In a memory cgroup: its usage minus the cache the kernel
    /// can reclaim. Otherwise: the resident set minus file pages.
    pub working_set: Option<Bytes>,
    /// Cache subtracted to compute `working_set`.
    pub reclaimable: Option<Bytes>,
    /// Available memory: the smallest limit of all enclosing cgroups, hard or soft, or else
    /// physical memory.
    pub memory_limit: Option<Limit<Bytes>>,
    /// Effect of reaching `memory_limit`.
    pub memory_limit_effect: LimitEffect,
    /// Memory at which the kernel kills, if it does not kill at `memory_limit`.
    pub kill_limit: Option<Bytes>,
    /// Nearest limit on the address space or data size of the process, if one is set.
    pub address_space: Option<MemoryLimitUsage>,
    /// CPU time used since the previous tick, in cores (1.5: the time of one and a half cores).
    pub cpu_cores: Option<f64>,
    /// Available CPU in cores: the smallest quota of all enclosing cgroups, or else the cores the
    /// process may run on.
    pub cpu_limit: Option<Limit<f64>>,
    /// Tasks alive on the observed runtimes.
    pub tasks: Option<u64>,
    /// Threads of the process.
    pub threads: Option<u64>,
    /// Open file descriptors.
    pub fds: Option<u64>,
    /// Scheduling delay of a probe task, on the worst of the observed runtimes. For a probe that is
    /// still waiting, its delay so far.
    pub lag: Option<Duration>,
    /// 99th percentile of the lag over the last minute.
    pub lag_p99: Option<Duration>,
    /// Percentage of the last ten seconds in which a runtime ran ready tasks more than 100 ms late,
    /// on the worst of the observed runtimes. Excludes the first ten seconds of a runtime, waits of
    /// its workers for a core, and time in which the whole process stood still.
    pub stalled: Option<Percent>,
    /// Delay until work gets a thread of a runtime's blocking pool (`spawn_blocking`, files, name
    /// resolution), on the worst of the observed runtimes. Zero while all threads of the pools are
    /// idle.
    pub blocking_lag: Option<Duration>,
    /// Duration of the longest poll that is in progress, or that exceeded the threshold and ended
    /// since the previous tick. `None` while polls are not recorded.
    pub stall: Option<Duration>,
    /// Growth of `working_set` in bytes per second, averaged over the last half minute.
    pub memory_growth: Option<f64>,
    /// Growth of `tasks` per second, averaged over the last half minute.
    pub task_growth: Option<f64>,
    /// Percentage of the CPU periods of the last second in which the cgroup was throttled.
    pub cpu_throttled: Option<Percent>,
    /// Limit of open file descriptors.
    pub fd_limit: Option<u64>,
    /// Percentage of the last ten seconds in which some thread waited for memory.
    pub memory_pressure: Option<Percent>,
    /// The same for a CPU.
    pub cpu_pressure: Option<Percent>,
    /// The same for I/O.
    pub io_pressure: Option<Percent>,
    /// Times in the last second that the cgroup's memory exceeded `memory.high`.
    pub memory_high: Option<u64>,
    /// Times in the last second that the cgroup's memory reached its limit and some was reclaimed.
    pub memory_max: Option<u64>,
    /// Processes of the cgroup killed in the last second for lack of memory.
    pub oom_kills: Option<u64>,
    /// Panics in the last second.
    pub panics: Option<u64>,
    /// Time in the last second that threads which never slept waited for cores used by other
    /// processes, in cores. Zero while the machine has an idle core.
    pub cpu_wait: Option<f64>,
    /// Percentage of the workers' time in the last six seconds in which they polled tasks but
    /// neither ran nor waited for a core.
    pub blocked: Option<Percent>,
    /// Increase of `tasks` while it rises persistently; 0 unless it has at least doubled.
    pub task_rise: Option<u64>,
    /// The same for `threads`.
    pub thread_rise: Option<u64>,
    /// The same for `fds`.
    pub fd_rise: Option<u64>,
    /// Custom gauges by name.
    pub gauges: Vec<(Arc<str>, f64)>,
    /// Custom counters by name.
    pub counters: Vec<(Arc<str>, CounterReading)>,
    /// Custom histograms by name.
    pub histograms: Vec<(Arc<str>, HistogramReading)>,
}

impl Vitals {
    /// Returns the memory limit with the highest usage in percent.
    pub fn nearest_memory_limit(&self) -> Option<MemoryLimitUsage> {
        let of_limit = |limit: &Limit<Bytes>| {
            let used = self.working_set?;
            let at_limit = self.memory_limit_effect;
            Some(MemoryLimitUsage { used, limit: limit.clone(), limit_effect: at_limit })
        };
        let memory = self.memory_limit.as_ref().and_then(of_limit);
        let used_percent =
            |usage: &Option<MemoryLimitUsage>| usage.as_ref()?.percent().map(Percent::get);
        match used_percent(&self.address_space) > used_percent(&memory) {
            true => self.address_space.clone(),
            false => memory,
        }
    }

    /// Returns the memory usage in percent of the nearest limit.
    pub fn memory_percent(&self) -> Option<Percent> {
        self.nearest_memory_limit()?.percent()
    }

    /// Returns the memory left below the nearest limit.
    pub fn headroom(&self) -> Option<Bytes> {
        let usage = self.nearest_memory_limit()?;
        Some(Bytes(usage.limit.value.get().saturating_sub(usage.used.get())))
    }

    /// Returns remarks for the reader of a memory incident, or `None` if there are none.
    ///
    /// The remarks give the effect of a limit that does not kill, and the amount of cache that is
    /// charged but not counted if it is large.
    pub fn memory_note(&self) -> Option<String> {
        let usage = self.nearest_memory_limit()?;
        let value = usage.limit.value;
        let source = &usage.limit.source;
        let at_limit = match usage.limit_effect {
            LimitEffect::Kill => None,
            LimitEffect::Throttle => Some(format!(
                "the limit is {value} ({source}), above which the kernel slows the process and \
                 reclaims memory, but does not kill"
            )),
            LimitEffect::Fail => {
                Some(format!("the limit is {value} ({source}), at which allocations fail"))
            }
        };
        let is_large = |cache: &Bytes| {
            Percent::of(cache.get() as f64, value.get() as f64)
                .is_some_and(|share| share.get() >= MIN_REPORTED_CACHE_PERCENT)
        };
        let cache =
            self.reclaimable.filter(is_large).filter(|_| usage.limit_effect != LimitEffect::Fail);
        let cache = cache.map(|cache| {
            format!(
                "{cache} of reclaimable file cache and kernel caches are charged but not counted"
            )
        });
        let parts: Vec<String> = at_limit.into_iter().chain(cache).collect();
        (!parts.is_empty()).then(|| parts.join("; "))
    }

    /// Returns open descriptors in percent of their limit.
    pub fn fd_percent(&self) -> Option<Percent> {
        Percent::of(self.fds? as f64, self.fd_limit? as f64)
    }

    /// Returns CPU time in percent of the CPU limit.
    pub fn cpu_percent(&self) -> Option<Percent> {
        Percent::of(self.cpu_cores?, self.cpu_limit.as_ref()?.value)
    }

    /// Returns `(CPU time + time waiting for cores used by other processes) / CPU limit` in
    /// percent. This is the usage the process would have if it were alone; the waiting time raises
    /// it to 100 % at most.
    pub fn cpu_demand_percent(&self) -> Option<Percent> {
        let used = self.cpu_percent()?;
        let waited = self.cpu_wait.unwrap_or(0.0);
        let demand = Percent::of(self.cpu_cores? + waited, self.cpu_limit.as_ref()?.value)?;
        Some(Percent(used.get().max(demand.get().min(100.0))))
    }

    /// Returns the seconds until the working set reaches the limit at its growth of the last half
    /// minute. Infinite if it does not grow or the limit is more than a day away.
    pub fn time_to_limit(&self) -> Option<f64> {
        let headroom = self.headroom()?.get() as f64;
        let growth = self.memory_growth?;
        let seconds = if growth > 0.0 { headroom / growth } else { f64::INFINITY };
        Some(if headroom <= 0.0 {
            0.0
        } else if seconds > MAX_FORECAST_HORIZON.as_secs_f64() {
            f64::INFINITY
        } else {
            seconds
        })
    }

    /// Returns the custom gauge called `name`.
    pub fn gauge(&self, name: &str) -> Option<f64> {
        self.gauges.iter().find(|(known, _)| **known == *name).map(|&(_, value)| value)
    }

    /// Returns the custom counter called `name`.
    pub fn counter(&self, name: &str) -> Option<CounterReading> {
        self.counters.iter().find(|(known, _)| **known == *name).map(|&(_, reading)| reading)
    }

    /// Returns the custom histogram called `name`.
    pub fn histogram(&self, name: &str) -> Option<HistogramReading> {
        self.histograms.iter().find(|(known, _)| **known == *name).map(|&(_, reading)| reading)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn percentages_require_a_positive_limit() {
        let mut vitals = Vitals { working_set: Some(Bytes(50)), ..Vitals::default() };
        assert_eq!(vitals.memory_percent(), None);
        vitals.memory_limit = Some(Limit { value: Bytes(200), source: "test".into() });
        assert_eq!(vitals.memory_percent(), Some(Percent(25.0)));
        vitals.memory_limit = Some(Limit { value: Bytes(0), source: "test".into() });
        assert_eq!(vitals.memory_percent(), None);
    }

    #[test]
    fn cpu_demand_includes_waiting_and_is_capped_at_limit() {
        let vitals = |cores, waited| Vitals {
            cpu_cores: Some(cores),
            cpu_wait: waited,
            cpu_limit: Some(Limit { value: 2.0, source: "test".into() }),
            ..Vitals::default()
        };
        for (cores, waited, demand) in [
            (1.0, None, 50.0),
            (1.0, Some(0.0), 50.0),
            (1.0, Some(0.9), 95.0),
            (1.0, Some(9.0), 100.0),
            // The tick clock and the kernel's CPU clock differ slightly.
            (2.1, Some(1.0), 105.0),
        ] {
            assert_eq!(vitals(cores, waited).cpu_demand_percent(), Some(Percent(demand)));
        }
    }

    #[test]
    fn memory_note_describes_the_nearest_limit() {
        let limit = |mib, source: &str| Limit { value: Bytes::mib(mib), source: source.into() };
        let mut vitals = Vitals {
            working_set: Some(Bytes::mib(300)),
            reclaimable: Some(Bytes::mib(51)),
            memory_limit: Some(limit(512, "/memory.high")),
            ..Vitals::default()
        };
        assert_eq!(vitals.memory_note(), None, "51 of 512 MiB are less than a tenth");
        vitals.memory_limit_effect = LimitEffect::Throttle;
        let note = vitals.memory_note().unwrap();
        assert!(note.contains("/memory.high") && note.contains("does not kill"), "{note}");
        assert!(!note.contains("cache"), "{note}");
        vitals.reclaimable = Some(Bytes::mib(52));
        assert!(vitals.memory_note().unwrap().contains("52.0 MiB of reclaimable file cache"));
        let space = |used| MemoryLimitUsage {
            used: Bytes::mib(used),
            limit: limit(4096, "RLIMIT_AS"),
            limit_effect: LimitEffect::Fail,
        };
        vitals.address_space = Some(space(2400));
        assert_eq!(vitals.headroom(), Some(Bytes::mib(212)), "58.59 % are more than 58.58 %");
        vitals.address_space = Some(space(2401));
        assert_eq!(vitals.headroom(), Some(Bytes::mib(1695)));
        let note = vitals.memory_note().unwrap();
        assert!(note.contains("RLIMIT_AS), at which allocations fail"), "{note}");
        vitals.working_set = None;
        assert_eq!(vitals.nearest_memory_limit().unwrap().limit, limit(4096, "RLIMIT_AS"));
    }

    #[test]
    fn time_to_limit_is_infinite_beyond_one_day() {
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
