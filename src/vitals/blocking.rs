//! Time that work waits for a thread of a runtime's blocking pool.
//!
//! A full pool delays files, name resolution and `spawn_blocking`, while tasks, lag and CPU look
//! normal. Stable tokio has no metrics for the pool. An empty closure is therefore sent through it,
//! one at a time and at most once a second. The time it waits is the lag.
//!
//! **An idle pool is left alone**, because tokio would start a thread for the closure and keep it
//! for ten seconds. The closure is sent only after a thread of the pool has used CPU, which it does
//! whenever it starts or ends some work. It is also sent every [`CALM`] while there are such
//! threads, too rarely to keep one alive. Pool threads share their names with the workers; those in
//! excess of the workers are pool threads. A runtime without workers gets one closure at the start,
//! which reveals the names of its threads.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, AtomicU64, Ordering};
use std::time::Duration;

use tokio::runtime::Handle;

use super::Runtimes;
use crate::base::standstill::running_time;
use crate::base::{Clock, Moment};
use crate::os::clock::cpu_timer;
use crate::os::proc::thread_list::ThreadList;
use crate::os::proc::threads;

/// Interval of closures while no pool thread is active: more than tokio's 10 s for idle threads.
const CALM: Duration = Duration::from_secs(15);

/// Interval of thread listings while the number of threads is unchanged.
const LIST_EVERY: Duration = Duration::from_secs(10);

/// Minimum interval of listings per thread. A listing costs 0.5 us a thread: 0.02 % of a core.
const LIST_PER_THREAD: Duration = Duration::from_micros(2500);

/// Maximum names read per scan, 7 us each.
const MAX_NAMES: usize = 64;

/// Maximum threads with known names, and maximum threads whose CPU time is read per scan. The
/// latter is twice the default size of tokio's pool.
const MAX_THREADS: usize = 4096;
const MAX_POOL: usize = 1024;

/// Maximum number of learned names.
const MAX_LEARNED: usize = 64;

/// Maximum CPU time of a pool thread between the end of a closure and its sleep.
const REST: Duration = Duration::from_micros(50);

/// A closure that waited for less found a free thread, or tokio started one for it.
const LATE: Duration = Duration::from_millis(100);

/// tokio's default thread name.
const DEFAULT_NAME: &str = "tokio-rt-worker";

/// An empty closure sent through the blocking pool of one runtime.
pub(super) struct BlockingProbe {
    answer: Arc<ProbeReply>,
    sent: Option<Moment>,
    /// Time of the last send.
    last: Option<Moment>,
    /// Waiting time of the last closure.
    waited: Duration,
}

#[derive(Default)]
struct ProbeReply {
    /// Time at which the closure ran, in nanoseconds since the clock's zero plus one; 0 if it has
    /// not run.
    ran: AtomicU64,
    thread: AtomicU32,
    /// CPU time of that thread at that time, in nanoseconds.
    cpu: AtomicU64,
}

impl BlockingProbe {
    pub(super) fn new() -> Self {
        Self { answer: Arc::default(), sent: None, last: None, waited: Duration::ZERO }
    }

    /// Sends a closure through the pool of `runtime` unless one is pending.
    pub(super) fn send(&mut self, now: Moment, runtime: &Handle, clock: &Arc<dyn Clock>) {
        if self.sent.is_some() {
            return;
        }
        (self.sent, self.last) = (Some(now), Some(now));
        self.answer.ran.store(0, Ordering::Relaxed);
        let (answer, clock) = (Arc::clone(&self.answer), Arc::clone(clock));
        drop(runtime.spawn_blocking(move || {
            let ran = clock.now().as_nanos().saturating_add(1);
            let cpu = u64::try_from(threads::cpu_time().as_nanos()).unwrap_or(u64::MAX);
            answer.cpu.store(cpu, Ordering::Relaxed);
            answer.thread.store(threads::current(), Ordering::Relaxed);
            answer.ran.store(ran, Ordering::Release);
        }));
    }

    /// Returns the waiting time of the last closure, or that of the pending one so far if longer.
    pub(super) fn lag(&mut self, now: Moment) -> Duration {
        let Some(sent) = self.sent else {
            if self.last.is_none_or(|last| now.since(last) > CALM) {
                self.waited = Duration::ZERO;
            }
            return self.waited;
        };
        match self.answer.ran.load(Ordering::Acquire) {
            0 => self.waited.max(running_time(sent, now)),
            ran => {
                self.sent = None;
                self.waited = running_time(sent, Moment::from_nanos(ran - 1));
                self.waited
            }
        }
    }

    /// Returns `true` if no closure is pending, and the last one was late or was sent at least
    /// `time` ago.
    pub(super) fn has_rested(&self, now: Moment, time: Duration) -> bool {
        let was_late = self.waited >= LATE;
        self.sent.is_none() && (was_late || self.last.is_none_or(|last| now.since(last) >= time))
    }

    /// Returns `true` if no closure has been sent yet.
    pub(super) fn is_fresh(&self) -> bool {
        self.last.is_none()
    }

    fn is_due(&self, now: Moment) -> bool {
        self.last.is_none_or(|last| now.since(last) >= CALM)
    }

    /// Returns the thread that ran the last closure, and its CPU time at that time.
    fn answered(&self) -> Option<(u32, Duration)> {
        let thread = self.answer.thread.load(Ordering::Relaxed);
        let cpu = Duration::from_nanos(self.answer.cpu.load(Ordering::Relaxed));
        (thread != 0).then_some((thread, cpu))
    }
}

#[derive(Debug)]
struct PoolThread {
    /// Its name without the trailing number.
    stem: Arc<str>,
    /// `true` if its name was read twice. A thread starts with its creator's name and sets its own
    /// one a moment later.
    is_settled: bool,
    /// `true` if it has the name of a worker.
    is_alike: bool,
    /// Its CPU time at the last scan; `None` before the first.
    cpu: Option<Duration>,
}

pub(super) struct BlockingPools {
    tasks: Option<ThreadList>,
    threads: BTreeMap<u32, PoolThread>,
    /// Threads whose names were read once.
    unsettled: Vec<u32>,
    tids: Vec<u32>,
    count: Option<usize>,
    listed: Option<Moment>,
    /// Threads identified as workers.
    known: Vec<u32>,
    /// Names of threads that have run a closure.
    learned: BTreeSet<Arc<str>>,
    /// Names of the threads identified as workers. A field so that its memory is reused.
    known_stems: Vec<Arc<str>>,
    pool: Vec<u32>,
}

impl BlockingPools {
    pub(super) fn new() -> Self {
        Self {
            tasks: ThreadList::open().ok(),
            threads: BTreeMap::new(),
            unsettled: Vec::new(),
            tids: Vec::new(),
            count: None,
            listed: None,
            known: Vec::with_capacity(super::runtimes::MAX_THREADS),
            learned: BTreeSet::new(),
            known_stems: Vec::with_capacity(super::runtimes::MAX_THREADS),
            pool: Vec::new(),
        }
    }

    /// Returns `true` if pools can be observed on this system.
    pub(super) fn are_seen(&self) -> bool {
        self.tasks.is_some()
    }

    /// Returns the total run delay of thread `tid`, or `None` if it is unknown.
    pub(super) fn run_delay(&self, tid: u32) -> Option<Duration> {
        self.tasks.as_ref()?.run_delay(tid)
    }

    /// Returns `true` if the kernel counts run delays. Opens the list of threads if an earlier
    /// attempt failed for lack of descriptors.
    pub(super) fn sees_run_delays(&mut self) -> bool {
        if self.tasks.is_none() {
            self.tasks = ThreadList::open().ok();
        }
        self.run_delay(threads::current()).is_some()
    }

    /// Scans the threads of the pools; called once a second. `workers` is the number of worker
    /// threads. Returns the probes to send. Allocates only for new threads.
    pub(super) fn look<'p>(
        &mut self,
        now: Moment,
        runtimes: &Runtimes,
        workers: usize,
        probes: impl Iterator<Item = &'p BlockingProbe> + Clone,
    ) -> ProbeDue {
        let has_settled = self.settle_names();
        self.list(now);
        let has_learned = self.learn(probes.clone());
        if runtimes.copy_threads(&mut self.known) || has_settled || has_learned {
            self.mark();
        }
        self.find_pool(workers);
        for (tid, cpu) in probes.filter_map(BlockingProbe::answered) {
            if let Some(thread) = self.threads.get_mut(&tid)
                && let Some(last) = &mut thread.cpu
            {
                *last = (*last).max(cpu + REST);
            }
        }
        let mut has_worked = false;
        for tid in self.pool.iter().take(MAX_POOL) {
            let Some(thread) = self.threads.get_mut(tid) else { continue };
            let Ok(cpu) = cpu_timer::cpu_time_of(*tid) else { continue };
            if thread.cpu.is_none_or(|last| cpu > last) {
                thread.cpu = Some(cpu);
                has_worked = true;
            }
        }
        match (has_worked, self.pool.is_empty()) {
            (true, _) => ProbeDue::Now,
            (false, false) => ProbeDue::IfCalm,
            (false, true) => ProbeDue::No,
        }
    }

    /// Reads the names of the threads that were new at the last scan again. Returns `true` if there
    /// were any.
    fn settle_names(&mut self) -> bool {
        let Self { tasks: Some(tasks), unsettled, threads, .. } = self else { return false };
        let mut has_settled = false;
        for tid in unsettled.drain(..) {
            let Some(thread) = threads.get_mut(&tid) else { continue };
            if let Some(name) = tasks.name(tid) {
                thread.stem = stem(&name).into();
            }
            thread.is_settled = true;
            has_settled = true;
        }
        has_settled
    }

    /// Lists the threads if their number has changed, and reads the names of new ones.
    fn list(&mut self, now: Moment) {
        let Some(tasks) = &mut self.tasks else { return };
        let count = tasks.count();
        let threads = u32::try_from(self.tids.len()).unwrap_or(u32::MAX);
        let pause = LIST_PER_THREAD.saturating_mul(threads);
        let pause = if count == self.count { LIST_EVERY.max(pause) } else { pause };
        let is_recent = self.listed.is_some_and(|at| now.since(at) < pause);
        if is_recent || tasks.list(&mut self.tids).is_err() {
            return;
        }
        (self.listed, self.count) = (Some(now), count);
        let tids = &self.tids;
        self.threads.retain(|tid, _| tids.binary_search(tid).is_ok());
        for &tid in tids.iter().take(MAX_THREADS) {
            if self.threads.contains_key(&tid) {
                continue;
            }
            if self.unsettled.len() == MAX_NAMES {
                // The others are read at the next scan.
                self.count = None;
                break;
            }
            if let Some(name) = tasks.name(tid) {
                let stem = stem(&name).into();
                let thread = PoolThread { stem, is_settled: false, is_alike: false, cpu: None };
                self.threads.insert(tid, thread);
                self.unsettled.push(tid);
            }
        }
        // A scan of the same threads does not allocate.
        self.pool.reserve(self.threads.len());
    }

    /// Adds the names of threads that ran a closure. Returns `true` if one of them is new.
    fn learn<'p>(&mut self, probes: impl Iterator<Item = &'p BlockingProbe>) -> bool {
        let mut is_new = false;
        for (tid, _) in probes.filter_map(BlockingProbe::answered) {
            let Some(thread) = self.threads.get(&tid).filter(|thread| thread.is_settled) else {
                continue;
            };
            if self.learned.len() < MAX_LEARNED && !self.learned.contains(&thread.stem) {
                is_new |= self.learned.insert(thread.stem.clone());
            }
        }
        is_new
    }

    /// Marks the threads that are named like workers.
    fn mark(&mut self) {
        let Self { threads, known, learned, known_stems, .. } = self;
        known_stems.clear();
        known_stems.extend(known.iter().filter_map(|tid| Some(threads.get(tid)?.stem.clone())));
        known_stems.sort_unstable();
        for thread in threads.values_mut() {
            let stem = &thread.stem;
            thread.is_alike = thread.is_settled
                && (**stem == *DEFAULT_NAME
                    || learned.contains(stem)
                    || known_stems.binary_search(stem).is_ok());
        }
    }

    /// Finds the threads that are named like workers but are not workers. Workers are started
    /// first.
    fn find_pool(&mut self, workers: usize) {
        let Self { threads, known, pool, .. } = self;
        let alike = threads.iter().filter(|(_, thread)| thread.is_alike).map(|(&tid, _)| tid);
        let seen = alike.clone().filter(|tid| known.contains(tid)).count();
        let others = alike.filter(|tid| !known.contains(tid));
        pool.clear();
        pool.extend(others.skip(workers.saturating_sub(seen)));
    }
}

/// Returns the name of a thread without the trailing number.
fn stem(name: &str) -> &str {
    name.trim_end_matches(|end: char| end.is_ascii_digit())
}

/// Selection of the probes to send.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum ProbeDue {
    /// All probes that are not pending.
    Now,
    /// Probes whose last closure was sent at least [`CALM`] ago.
    IfCalm,
    /// No probe.
    No,
}

impl ProbeDue {
    pub(super) fn applies_to(self, probe: &BlockingProbe, now: Moment) -> bool {
        match self {
            Self::Now => true,
            Self::IfCalm => probe.is_due(now),
            Self::No => false,
        }
    }
}
