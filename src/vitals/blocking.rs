//! Time that `spawn_blocking` closures wait for a thread of a runtime's blocking pool.
//!
//! A full pool delays files, name resolution and `spawn_blocking`, while tasks, lag and CPU look
//! normal. Stable tokio has no metrics for the pool. An empty closure is therefore sent through it,
//! one at a time and at most once a second. The time it waits is the lag.
//!
//! **An idle pool is left alone**, because tokio would start a thread for the closure and keep it
//! for ten seconds. The closure is sent only after a thread of the pool has used CPU, as it does
//! whenever it starts or ends some work. While there are pool threads, it is also sent every
//! [`INACTIVE_PROBE_INTERVAL`], too rarely to keep one alive. Pool threads have the same names as
//! workers, so the threads of that name in excess of the workers are pool threads. A runtime
//! without workers gets one closure at the start, which reveals the names of its threads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;

use super::Runtimes;
use super::run_time::RunTime;
use crate::base::standstill::running_time;
use crate::base::{Clock, Moment};
use crate::os::clock::cpu_timer;
use crate::os::proc::thread_list::ThreadList;
use crate::os::proc::threads;

/// Interval of closures while no pool thread is active. Longer than the 10 s after which tokio ends
/// an idle thread.
const INACTIVE_PROBE_INTERVAL: Duration = Duration::from_secs(15);

/// Interval of thread listings while the number of threads is unchanged.
const LIST_INTERVAL: Duration = Duration::from_secs(10);

/// Minimum interval of listings per thread. A listing costs 0.5 us per thread, so all of them cost
/// at most 0.02 % of a core.
const LIST_INTERVAL_PER_THREAD: Duration = Duration::from_micros(2500);

/// Maximum number of names read per scan. Each takes 7 us.
const MAX_NAMES_PER_SCAN: usize = 64;

/// Maximum number of threads with known names.
const MAX_THREADS: usize = 4096;

/// Maximum number of threads whose CPU time is read per scan: twice the default size of tokio's
/// pool.
const MAX_POOL_THREADS: usize = 1024;

/// Maximum number of learned names.
const MAX_LEARNED_NAMES: usize = 64;

/// Maximum CPU time that a pool thread uses between the end of a closure and its next sleep.
const MAX_CPU_AFTER_CLOSURE: Duration = Duration::from_micros(50);

/// Minimum wait of a closure that counts as late. One that waited for less found a free thread, or
/// tokio started one for it.
const MIN_LATE_WAIT: Duration = Duration::from_millis(100);

/// tokio's default thread name.
const DEFAULT_NAME: &str = "tokio-rt-worker";

/// An empty closure sent through the blocking pool of one runtime.
pub(super) struct BlockingProbe {
    reply: Arc<ProbeReply>,
    /// Time at which the pending closure was sent. `None` if there is none.
    sent_at: Option<Moment>,
    last_sent_at: Option<Moment>,
    /// Waiting time of the last closure.
    waited: Duration,
}

#[derive(Default)]
struct ProbeReply {
    ran_at: RunTime,
    /// Thread that ran the closure; 0 if none has.
    thread: AtomicU32,
    /// CPU time of `thread` at `ran_at`, in nanoseconds.
    cpu_nanos: AtomicU64,
}

impl BlockingProbe {
    pub(super) fn new() -> Self {
        Self { reply: Arc::default(), sent_at: None, last_sent_at: None, waited: Duration::ZERO }
    }

    /// Sends a closure through the pool of `runtime` unless one is pending.
    pub(super) fn send(&mut self, now: Moment, runtime: &Handle, clock: &Arc<dyn Clock>) {
        if self.sent_at.is_some() {
            return;
        }
        self.sent_at = Some(now);
        self.last_sent_at = Some(now);
        self.reply.ran_at.clear();
        let reply = Arc::clone(&self.reply);
        let clock = Arc::clone(clock);
        drop(runtime.spawn_blocking(move || {
            let ran_at = clock.now();
            let cpu = u64::try_from(threads::cpu_time().as_nanos()).unwrap_or(u64::MAX);
            reply.cpu_nanos.store(cpu, Ordering::Relaxed);
            reply.thread.store(threads::current_tid(), Ordering::Relaxed);
            reply.ran_at.set(ran_at);
        }));
    }

    /// Returns the waiting time of the last closure, or that of the pending one so far if longer.
    /// Zero if the last closure was sent more than [`INACTIVE_PROBE_INTERVAL`] ago.
    pub(super) fn lag(&mut self, now: Moment) -> Duration {
        let Some(sent) = self.sent_at else {
            if self.last_sent_at.is_none_or(|last| now.since(last) > INACTIVE_PROBE_INTERVAL) {
                self.waited = Duration::ZERO;
            }
            return self.waited;
        };
        match self.reply.ran_at.get() {
            None => self.waited.max(running_time(sent, now)),
            Some(ran_at) => {
                self.sent_at = None;
                self.waited = running_time(sent, ran_at);
                self.waited
            }
        }
    }

    /// Returns `true` if no closure is pending, and the last one was late or was sent at least
    /// `min_interval` ago.
    pub(super) fn may_send(&self, now: Moment, min_interval: Duration) -> bool {
        let was_late = self.waited >= MIN_LATE_WAIT;
        self.sent_at.is_none()
            && (was_late || self.last_sent_at.is_none_or(|last| now.since(last) >= min_interval))
    }

    pub(super) fn is_unsent(&self) -> bool {
        self.last_sent_at.is_none()
    }

    fn is_due(&self, now: Moment) -> bool {
        self.last_sent_at.is_none_or(|last| now.since(last) >= INACTIVE_PROBE_INTERVAL)
    }

    /// Returns the thread that ran the last closure, and its CPU time at that time.
    fn last_reply(&self) -> Option<(u32, Duration)> {
        let thread = self.reply.thread.load(Ordering::Relaxed);
        let cpu = Duration::from_nanos(self.reply.cpu_nanos.load(Ordering::Relaxed));
        (thread != 0).then_some((thread, cpu))
    }
}

#[derive(Debug)]
struct PoolThread {
    /// Its name without the trailing number.
    stem: Arc<str>,
    /// `true` if its name was read twice. A thread starts with the name of its creator and sets its
    /// own a moment later.
    has_final_name: bool,
    /// `true` if it has the name of a worker.
    has_worker_name: bool,
    /// Its CPU time at the last scan; `None` before the first.
    cpu: Option<Duration>,
}

pub(super) struct BlockingPools {
    thread_list: Option<ThreadList>,
    threads: BTreeMap<u32, PoolThread>,
    /// Threads whose names were read once.
    unconfirmed_names: Vec<u32>,
    /// All threads of the process, in order.
    tids: Vec<u32>,
    /// Number of threads at the last listing. `None` if names of that listing were not read.
    thread_count: Option<usize>,
    listed_at: Option<Moment>,
    /// Threads identified as workers.
    known_workers: Vec<u32>,
    /// Names of threads that have run a closure.
    learned_names: BTreeSet<Arc<str>>,
    /// Names of the threads identified as workers. A field so that its memory is reused.
    worker_stems: Vec<Arc<str>>,
    pool_threads: Vec<u32>,
}

impl BlockingPools {
    pub(super) fn new() -> Self {
        Self {
            thread_list: ThreadList::open().ok(),
            threads: BTreeMap::new(),
            unconfirmed_names: Vec::new(),
            tids: Vec::new(),
            thread_count: None,
            listed_at: None,
            known_workers: Vec::with_capacity(super::runtimes::MAX_THREADS),
            learned_names: BTreeSet::new(),
            worker_stems: Vec::with_capacity(super::runtimes::MAX_THREADS),
            pool_threads: Vec::new(),
        }
    }

    /// Returns `true` if pools can be observed on this system.
    pub(super) fn is_available(&self) -> bool {
        self.thread_list.is_some()
    }

    /// Returns the total run delay of thread `tid`, or `None` if it is unknown.
    pub(super) fn run_delay(&self, tid: u32) -> Option<Duration> {
        self.thread_list.as_ref()?.run_delay(tid)
    }

    /// Returns `true` if the kernel counts run delays. Opens the list of threads if an earlier
    /// attempt failed for lack of descriptors.
    pub(super) fn check_run_delays(&mut self) -> bool {
        if self.thread_list.is_none() {
            self.thread_list = ThreadList::open().ok();
        }
        self.run_delay(threads::current_tid()).is_some()
    }

    /// Scans the threads of the pools; called once a second. `workers` is the number of worker
    /// threads of all runtimes. Returns the selection of probes to send. Allocates only for new
    /// threads.
    pub(super) fn scan<'p>(
        &mut self,
        now: Moment,
        runtimes: &Runtimes,
        workers: usize,
        probes: impl Iterator<Item = &'p BlockingProbe> + Clone,
    ) -> ProbeDue {
        let has_confirmed_names = self.confirm_names();
        self.list_threads(now);
        let has_learned_names = self.learn_names(probes.clone());
        if runtimes.copy_threads(&mut self.known_workers)
            || has_confirmed_names
            || has_learned_names
        {
            self.mark_worker_names();
        }
        self.find_pool_threads(workers);
        for (tid, cpu) in probes.filter_map(BlockingProbe::last_reply) {
            if let Some(thread) = self.threads.get_mut(&tid)
                && let Some(last) = &mut thread.cpu
            {
                *last = (*last).max(cpu + MAX_CPU_AFTER_CLOSURE);
            }
        }
        let mut has_worked = false;
        for tid in self.pool_threads.iter().take(MAX_POOL_THREADS) {
            let Some(thread) = self.threads.get_mut(tid) else { continue };
            let Ok(cpu) = cpu_timer::thread_cpu_time(*tid) else { continue };
            if thread.cpu.is_none_or(|last| cpu > last) {
                thread.cpu = Some(cpu);
                has_worked = true;
            }
        }
        match (has_worked, self.pool_threads.is_empty()) {
            (true, _) => ProbeDue::Now,
            (false, false) => ProbeDue::IfInactive,
            (false, true) => ProbeDue::No,
        }
    }

    /// Reads the names a second time for threads that were new at the last scan. Returns `true` if
    /// there were any.
    fn confirm_names(&mut self) -> bool {
        let Self { thread_list: Some(list), unconfirmed_names, threads, .. } = self else {
            return false;
        };
        let mut has_confirmed = false;
        for tid in unconfirmed_names.drain(..) {
            let Some(thread) = threads.get_mut(&tid) else { continue };
            if let Some(name) = list.name(tid) {
                thread.stem = thread_name_stem(&name).into();
            }
            thread.has_final_name = true;
            has_confirmed = true;
        }
        has_confirmed
    }

    /// Lists the threads if a listing is due, and reads the names of new ones. Listings are more
    /// rare while the number of threads is unchanged.
    fn list_threads(&mut self, now: Moment) {
        let Some(list) = &mut self.thread_list else { return };
        let count = list.count();
        let threads = u32::try_from(self.tids.len()).unwrap_or(u32::MAX);
        let min_interval = LIST_INTERVAL_PER_THREAD.saturating_mul(threads);
        let interval = match count == self.thread_count {
            true => LIST_INTERVAL.max(min_interval),
            false => min_interval,
        };
        let is_recent = self.listed_at.is_some_and(|at| now.since(at) < interval);
        if is_recent || list.list(&mut self.tids).is_err() {
            return;
        }
        self.listed_at = Some(now);
        self.thread_count = count;
        let tids = &self.tids;
        self.threads.retain(|tid, _| tids.binary_search(tid).is_ok());
        for &tid in tids.iter().take(MAX_THREADS) {
            if self.threads.contains_key(&tid) {
                continue;
            }
            if self.unconfirmed_names.len() == MAX_NAMES_PER_SCAN {
                // The other names are read at the next listing, which this makes due earlier.
                self.thread_count = None;
                break;
            }
            if let Some(name) = list.name(tid) {
                let stem = thread_name_stem(&name).into();
                let thread =
                    PoolThread { stem, has_final_name: false, has_worker_name: false, cpu: None };
                self.threads.insert(tid, thread);
                self.unconfirmed_names.push(tid);
            }
        }
        // Reserved here, so that a scan of the same threads does not allocate.
        self.pool_threads.reserve(self.threads.len());
    }

    /// Adds the names of threads that have run a closure. Returns `true` if one was added.
    fn learn_names<'p>(&mut self, probes: impl Iterator<Item = &'p BlockingProbe>) -> bool {
        let mut has_learned = false;
        for (tid, _) in probes.filter_map(BlockingProbe::last_reply) {
            let Some(thread) = self.threads.get(&tid).filter(|thread| thread.has_final_name) else {
                continue;
            };
            if self.learned_names.len() < MAX_LEARNED_NAMES
                && !self.learned_names.contains(&thread.stem)
            {
                has_learned |= self.learned_names.insert(thread.stem.clone());
            }
        }
        has_learned
    }

    /// Marks the threads that are named like workers.
    fn mark_worker_names(&mut self) {
        let Self { threads, known_workers, learned_names, worker_stems, .. } = self;
        worker_stems.clear();
        worker_stems
            .extend(known_workers.iter().filter_map(|tid| Some(threads.get(tid)?.stem.clone())));
        worker_stems.sort_unstable();
        for thread in threads.values_mut() {
            let stem = &thread.stem;
            thread.has_worker_name = thread.has_final_name
                && (**stem == *DEFAULT_NAME
                    || learned_names.contains(stem)
                    || worker_stems.binary_search(stem).is_ok());
        }
    }

    /// Finds the threads that are named like workers but are not workers. Workers that are not
    /// known are assumed to have the lowest thread IDs, because a runtime starts them first.
    fn find_pool_threads(&mut self, workers: usize) {
        let Self { threads, known_workers, pool_threads, .. } = self;
        let worker_named =
            threads.iter().filter(|(_, thread)| thread.has_worker_name).map(|(&tid, _)| tid);
        let known_count = worker_named.clone().filter(|tid| known_workers.contains(tid)).count();
        let others = worker_named.filter(|tid| !known_workers.contains(tid));
        pool_threads.clear();
        pool_threads.extend(others.skip(workers.saturating_sub(known_count)));
    }
}

/// Returns a thread's name without its trailing digits, in which the threads of a pool differ.
pub(crate) fn thread_name_stem(name: &str) -> &str {
    name.trim_end_matches(|end: char| end.is_ascii_digit())
}

/// Selection of the probes to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProbeDue {
    /// All probes that are not pending.
    Now,
    /// Probes whose last closure was sent at least [`INACTIVE_PROBE_INTERVAL`] ago.
    IfInactive,
    /// No probe.
    No,
}

impl ProbeDue {
    pub(super) fn applies_to(self, probe: &BlockingProbe, now: Moment) -> bool {
        match self {
            Self::Now => true,
            Self::IfInactive => probe.is_due(now),
            Self::No => false,
        }
    }
}
