//! Reader of all vitals at one tick.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use super::blocking::{BlockingPools, BlockingProbe};
use super::cgroup::Cgroup;
use super::contention::{ContentionInput, ContentionReader};
use super::intervals::take_if_due;
use super::limits::LimitReader;
use super::probe::{RuntimeProbe, idle_wake_interval};
use super::rise::RiseDetector;
use super::runtimes::Runtimes;
use super::slow_readings::SlowReadings;
use super::trend::GrowthTrend;
use crate::base::{Bytes, Clock, Moment, Percent, SystemClock, standstill};
use crate::metrics::{Distribution, Metrics, MetricsReader};
use crate::model::{Limit, LimitEffect, MemoryLimitUsage, Vitals, WorkerProgress};
use crate::os::proc::process;
use crate::os::proc::procfs::Procfs;
use crate::vitals::lag_percentile::LagPercentile;

/// Interval at which limits are read again. They are changed by hand or by an autoscaler, which
/// poll less often than once a second. Reading them at every tick would double its cost.
const LIMITS_INTERVAL: Duration = Duration::from_secs(1);

/// Minimum interval of closures sent through blocking pools.
const BLOCKING_PROBE_INTERVAL: Duration = Duration::from_secs(1);

/// Maximum threads of a process in which contention is measured. The measurement reads the CPU time
/// of the process each second, for which the kernel adds up all threads.
const MAX_CONTENTION_THREADS: u64 = 2000;

/// Minimum interval of closures per pool with more than one runtime, unless the last closure was
/// late. Most pools are idle, which cannot be detected here, and would get a thread for the
/// closure.
const MULTI_RUNTIME_PROBE_INTERVAL: Duration = Duration::from_secs(30);

/// Reader of the vitals. It belongs to one thread; dropping it ends its tasks on the observed
/// runtimes.
pub struct Reader {
    runtimes: Runtimes,
    metrics: MetricsReader,
    clock: Arc<dyn Clock>,
    probes: Vec<RuntimeProbe>,
    seen_additions: u64,
    procfs: Procfs,
    cgroup: Cgroup,
    limits_read_at: Option<Moment>,
    limits: LimitReader,
    previous_cpu: Option<(Moment, Duration)>,
    slow_readings: SlowReadings,
    lag_percentile: LagPercentile,
    blocking_pools: BlockingPools,
    /// `true` if the kernel counts run delays.
    has_run_delays: bool,
    pools_scanned_at: Option<Moment>,
    memory_trend: GrowthTrend,
    task_trend: GrowthTrend,
    contention: ContentionReader,
    worker_progress: Vec<WorkerProgress>,
    task_rise: RiseDetector,
    thread_rise: RiseDetector,
    fd_rise: RiseDetector,
    root: PathBuf,
}

/// Result of one tick for all observed runtimes together.
#[derive(Clone, Copy, Debug)]
struct RuntimesReading {
    tasks: u64,
    lag: Option<Duration>,
    stalled: Percent,
}

impl Reader {
    /// Creates a reader of this process's vitals. Opens about ten files and keeps them open.
    pub fn new(runtimes: Runtimes, metrics: impl Into<Metrics>) -> Self {
        Self::with_root(runtimes, metrics, Path::new("/"), Arc::new(SystemClock))
    }

    /// Creates a reader that finds `proc` and the cgroup mount points under `root`. Its probes use
    /// `clock`, which must also be the source of the times passed to [`Self::read`].
    pub fn with_root(
        runtimes: Runtimes,
        metrics: impl Into<Metrics>,
        root: &Path,
        clock: Arc<dyn Clock>,
    ) -> Self {
        let mut pools = BlockingPools::new();
        Self {
            runtimes,
            metrics: MetricsReader::new(metrics.into()),
            clock,
            probes: Vec::new(),
            seen_additions: 0,
            procfs: Procfs::open(root),
            cgroup: Cgroup::discover(root),
            limits_read_at: None,
            limits: LimitReader::new(),
            previous_cpu: None,
            slow_readings: SlowReadings::default(),
            lag_percentile: LagPercentile::default(),
            has_run_delays: pools.check_run_delays(),
            blocking_pools: pools,
            pools_scanned_at: None,
            memory_trend: GrowthTrend::default(),
            task_trend: GrowthTrend::default(),
            contention: ContentionReader::default(),
            worker_progress: Vec::new(),
            task_rise: RiseDetector::default(),
            thread_rise: RiseDetector::default(),
            fd_rise: RiseDetector::default(),
            root: root.to_owned(),
        }
    }

    /// Returns the vitals at `now`.
    pub fn read(&mut self, now: Moment) -> Vitals {
        let mut vitals = Vitals::default();
        self.read_into(now, &mut vitals);
        vitals
    }

    /// Writes the vitals at `now` into `vitals`. Allocates only for new metrics and runtimes, and
    /// once a minute for the machine's memory.
    pub fn read_into(&mut self, now: Moment, vitals: &mut Vitals) {
        if take_if_due(&mut self.limits_read_at, now, LIMITS_INTERVAL) {
            let are_process_limits_due = self.limits.read(now, &mut self.cgroup);
            if are_process_limits_due && !self.has_run_delays {
                self.has_run_delays = self.blocking_pools.check_run_delays();
            }
            self.slow_readings.read(now, &self.cgroup);
            self.metrics.update(now);
            self.read_contention(vitals.threads);
        }
        let runtimes = self.read_runtimes(now);
        vitals.at = now;
        vitals.rss = self.procfs.rss(now);
        self.read_memory(vitals);
        vitals.cpu_cores = self.read_cpu(vitals);
        vitals.cpu_limit.clone_from(&self.limits.cpu);
        vitals.fd_limit = self.limits.descriptors;
        vitals.tasks = runtimes.map(|reading| reading.tasks);
        vitals.threads = self.procfs.threads(now);
        vitals.fds = self.procfs.fds(now);
        vitals.lag = runtimes.and_then(|reading| reading.lag);
        vitals.lag_p99 = self.lag_percentile.push(now, vitals.lag);
        vitals.stalled = runtimes.map(|reading| reading.stalled).filter(|_| self.has_run_delays);
        vitals.blocking_lag = self.read_blocking_lag(now);
        vitals.memory_growth =
            self.memory_trend.push(now, vitals.working_set.map(|it| it.get() as f64));
        vitals.task_growth = self.task_trend.push(now, vitals.tasks.map(|tasks| tasks as f64));
        vitals.task_rise = self.task_rise.push(now, vitals.tasks);
        vitals.thread_rise = self.thread_rise.push(now, vitals.threads);
        vitals.fd_rise = self.fd_rise.push(now, vitals.fds);
        vitals.cpu_wait = self.contention.cpu_waited();
        vitals.blocked = self.contention.blocked();
        self.slow_readings.write(vitals);
        self.metrics.write(vitals);
    }

    /// Returns all values recorded by the service's histograms.
    pub fn distributions(&self) -> Vec<Distribution> {
        self.metrics.distributions()
    }

    /// Reads memory usage and its limit.
    fn read_memory(&mut self, vitals: &mut Vitals) {
        vitals.memory_limit.clone_from(&self.limits.memory);
        let is_cgroup_limit = self.limits.is_cgroup_memory;
        let cgroup_use = is_cgroup_limit.then(|| self.cgroup.memory_use()).flatten();
        match cgroup_use {
            Some(memory) => {
                vitals.working_set = Some(memory.working_set);
                vitals.reclaimable = Some(memory.reclaimable);
            }
            None => {
                vitals.reclaimable = self.procfs.file_pages();
                let file = vitals.reclaimable.map_or(0, Bytes::get);
                vitals.working_set = vitals.rss.map(|rss| Bytes(rss.get().saturating_sub(file)));
            }
        }
        vitals.memory_limit_effect = match is_cgroup_limit {
            true => self.cgroup.at_memory_limit(),
            false => LimitEffect::Kill,
        };
        vitals.kill_limit = match vitals.memory_limit_effect {
            LimitEffect::Kill => None,
            _ => {
                let machine = self.limits.machine_memory.as_ref().map(|machine| machine.value);
                self.cgroup.kill_limit().into_iter().chain(machine).min()
            }
        };
        let memory_wall = |limit: &Option<Limit<Bytes>>, used: &dyn Fn() -> Option<Bytes>| {
            let limit = limit.clone()?;
            Some(MemoryLimitUsage { used: used()?, limit, limit_effect: LimitEffect::Fail })
        };
        let space = memory_wall(&self.limits.address_space, &|| self.procfs.address_space());
        let data = memory_wall(&self.limits.data, &|| self.procfs.data());
        vitals.address_space = space.into_iter().chain(data).max_by(|a, b| {
            let share = |wall: &MemoryLimitUsage| wall.percent().map_or(0.0, Percent::get);
            share(a).total_cmp(&share(b))
        });
    }

    /// Returns the cores used since the previous reading, or `None` at the first and if no time has
    /// passed. In a process of many threads it is read less often, and the last value is returned
    /// until then. Both clocks are read here, next to each other, because the `now` of a delayed
    /// tick may be long past.
    fn read_cpu(&mut self, last: &Vitals) -> Option<f64> {
        let now = self.clock.now();
        let pause = process::min_cpu_time_interval(last.threads);
        if self.previous_cpu.is_some_and(|(before, _)| now.since(before) < pause) {
            return last.cpu_cores;
        }
        let cpu_time = process::cpu_time();
        let (before, cpu_time_before) = self.previous_cpu.replace((now, cpu_time))?;
        let elapsed = now.since(before).as_secs_f64();
        (elapsed > 0.0).then(|| cpu_time.saturating_sub(cpu_time_before).as_secs_f64() / elapsed)
    }

    /// Measures contention, in a process that had `threads` threads at the last tick.
    fn read_contention(&mut self, threads: Option<u64>) {
        if threads.is_some_and(|threads| threads > MAX_CONTENTION_THREADS) {
            return;
        }
        let now = self.clock.now();
        self.runtimes.read_worker_progress(&mut self.worker_progress);
        let cores = self.limits.cpu.as_ref().map_or(f64::INFINITY, |limit| limit.value);
        let cpu = process::cpu_time();
        let workers = self.worker_progress.as_slice();
        let was_suspended = self
            .contention
            .last_read_at()
            .is_some_and(|last| !standstill::overlap(last - Duration::from_secs(2), now).is_zero());
        let input = ContentionInput { now, cpu, cores, workers, was_suspended };
        self.contention.read(input, &self.root);
    }

    /// Returns the tasks of all runtimes and the largest lag, or `None` if no runtime is observed.
    fn read_runtimes(&mut self, now: Moment) -> Option<RuntimesReading> {
        let probes = &self.probes;
        let known = |id| probes.iter().any(|probe| probe.id() == id);
        let new_handles = self.runtimes.new_handles(&mut self.seen_additions, known);
        let clock = &self.clock;
        self.probes.extend(
            new_handles.into_iter().map(|handle| RuntimeProbe::start(handle, clock.clone())),
        );

        // Waking an idle runtime is most of the cost of a tick, at the expense of the service.
        let wake_interval = idle_wake_interval(self.probes.len());
        let mut total: Option<RuntimesReading> = None;
        self.probes.retain_mut(|probe| {
            let Some(reading) = probe.read(&**clock, wake_interval) else {
                self.runtimes.remove(probe.id());
                return false;
            };
            if let Some(thread) = probe.take_changed_thread() {
                self.runtimes.record_thread(probe.id(), thread);
                probe.stalled.add_thread(thread);
            }
            let stalled =
                probe.stalled.push(now, reading.state, |tid| self.blocking_pools.run_delay(tid));
            let Some(so_far) = &mut total else {
                total = Some(RuntimesReading { tasks: reading.tasks, lag: reading.lag, stalled });
                return true;
            };
            so_far.tasks += reading.tasks;
            so_far.lag = so_far.lag.max(reading.lag);
            if stalled.get() > so_far.stalled.get() {
                so_far.stalled = stalled;
            }
            true
        });
        total
    }
}

impl Reader {
    /// Returns the longest time that work waits for a thread of a blocking pool. `None` if no
    /// runtime is observed or threads cannot be listed.
    fn read_blocking_lag(&mut self, now: Moment) -> Option<Duration> {
        if self.probes.is_empty() || !self.blocking_pools.is_available() {
            return None;
        }
        let longest = self.probes.iter_mut().map(|probe| probe.blocking.lag(now)).max();
        if take_if_due(&mut self.pools_scanned_at, now, BLOCKING_PROBE_INTERVAL) {
            let workers = self.probes.iter().map(RuntimeProbe::worker_count).sum();
            let probes = self.probes.iter().map(|probe| &probe.blocking);
            let due = self.blocking_pools.scan(now, &self.runtimes, workers, probes);
            let is_one = self.probes.len() == 1;
            let may_send = |probe: &BlockingProbe| {
                due.applies_to(probe, now)
                    && (is_one || probe.may_send(now, MULTI_RUNTIME_PROBE_INTERVAL))
            };
            // One probe at a time, because each may start a thread.
            let is_unknown = |probe: &RuntimeProbe| {
                is_one && probe.worker_count() == 0 && probe.blocking.is_unsent()
            };
            let next =
                self.probes.iter_mut().find(|probe| may_send(&probe.blocking) || is_unknown(probe));
            if let Some(probe) = next {
                probe.send_blocking(now, &self.clock);
            }
        }
        longest
    }
}

impl Drop for Reader {
    fn drop(&mut self) {
        // A handle keeps its runtime's epoll descriptor open, and no other code removes it from the
        // list.
        self.runtimes.clear();
    }
}

impl std::fmt::Debug for Reader {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Reader")
            .field("runtimes", &self.probes.len())
            .field("memory_limit", &self.limits.memory)
            .field("cpu_limit", &self.limits.cpu)
            .finish_non_exhaustive()
    }
}
