//! Detection of unrecorded stalls: reads the workers' counters and samples the threads that may be
//! stalled.
//!
//! The decisions are in `unrecorded_polls`. This module samples threads, on the thread
//! `marple-stalls`. Candidates are threads named like one that ran a task of an observed runtime. A
//! thread found not to be a worker is skipped for a while.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use tokio::sync::oneshot::Receiver;

use super::unrecorded_polls::{
    MAX_TRACKED_THREADS, PollSample, PollStackRequest, SleepingWorker, StallSuspects,
    SuspectedStall, UnrecordedPollDetector, WorkerThread,
};
use crate::base::side_thread::SideThread;
use crate::base::{Clock, Moment, SystemClock, standstill, warnings};
use crate::model::{Profile, ValueType, WorkerProgress};
use crate::os::clock::cpu_timer;
use crate::os::images;
use crate::os::proc::threads;
use crate::stalls::poll_roles::{Flavor, PollRole, find_poll, function_role};
pub(crate) use crate::stalls::poll_roles::{blocks_worker, is_in_place_function};
use crate::stalls::thread_probe::{SampledStack, ThreadProbe};
use crate::symbols;
use crate::trace::open_polls::threads_in_recorded_polls;
use crate::vitals::{Runtimes, thread_name_stem};

/// Time for which a thread that is not a worker is skipped.
const NON_WORKER_SKIP_TIME: Duration = Duration::from_secs(10);

/// Maximum number of addresses with a known role: more than a service has in tokio's code.
const MAX_ROLES: usize = 4096;

/// Number of symbol look-ups exempt from the CPU budget. Reading the names of tokio's functions
/// takes ten times the CPU time of the search itself: 40 ms in a debug build. Within the budget,
/// that would suspend the search for half a second, longer than most stalls. Names are read once,
/// in the first searches.
const FREE_SYMBOL_LOOKUPS: u32 = 8;

/// Cost of a round beyond the CPU time of the sampling thread: two thread wake-ups.
const ROUND_OVERHEAD: Duration = Duration::from_micros(20);

/// CPU time a sampled thread takes to reply.
const REPLY_COST: Duration = Duration::from_micros(15);

/// Number of threads above which only names of threads with ids near those of known workers are
/// read. Reading a name takes 7 us.
const MAX_THREADS_NAMED: usize = 512;
const TID_SEARCH_RANGE: u32 = 128;

/// The detector of unrecorded stalls.
pub(crate) struct StallCandidates {
    runtimes: Runtimes,
    detector: UnrecordedPollDetector,
    worker_progress: Vec<WorkerProgress>,
    /// Threads found to be workers that have not yet run a task of the agent.
    workers: Vec<u32>,
    /// Threads that drive a current-thread runtime.
    drivers: Vec<u32>,
    threads: Vec<WorkerThread>,
    /// `None` before the first round, and during a round, which then owns the examiner.
    examiner: Option<Box<StackExaminer>>,
    round: Option<Receiver<ExamineRound>>,
    thread: SideThread,
    /// True if the system does not permit sampling threads.
    sampling_denied: bool,
    /// Total standstill time at the last check.
    standstill_total: Duration,
}

/// Result of one round of sampling.
struct ExamineRound {
    examiner: Box<StackExaminer>,
    requested_at: Moment,
    samples: Vec<PollSample>,
    did_search: bool,
    cost: Duration,
}

impl StallCandidates {
    pub(crate) fn new(runtimes: Runtimes, threshold: Duration, thread: SideThread) -> Self {
        Self {
            runtimes,
            detector: UnrecordedPollDetector::new(threshold),
            worker_progress: Vec::new(),
            workers: Vec::new(),
            drivers: Vec::new(),
            threads: Vec::new(),
            examiner: None,
            round: None,
            thread,
            sampling_denied: false,
            standstill_total: standstill::total(),
        }
    }

    /// Checks the workers and samples threads if necessary. Returns the time until the next check.
    /// `before` is the CPU time of this thread before the check of recorded polls, which is part of
    /// the cost.
    pub(crate) fn check(&mut self, before: Duration) -> Duration {
        let (request, next) = self.check_workers();
        if let Some(request) = request.filter(|_| !self.sampling_denied && self.round.is_none()) {
            self.start_round(request);
        }
        self.detector.charge(threads::cpu_time().saturating_sub(before), true);
        next
    }

    fn check_workers(&mut self) -> (Option<PollStackRequest>, Duration) {
        let standstill_total = standstill::total();
        if standstill_total != self.standstill_total {
            self.standstill_total = standstill_total;
            self.detector.restart_measurements(SystemClock.now());
        }
        self.runtimes.read_worker_progress(&mut self.worker_progress);
        self.drivers.clear();
        self.drivers.extend(self.worker_progress.iter().filter_map(|beat| beat.driver_tid));
        let recorded = threads_in_recorded_polls();
        self.threads.clear();
        // The CPU time of the threads is irrelevant while all workers are parked.
        if self.worker_progress.iter().any(|beat| !beat.is_parked) {
            let mut tids = self.runtimes.threads();
            self.workers.retain(|tid| !tids.contains(tid));
            tids.extend(&self.workers);
            tids.extend(&self.drivers);
            tids.sort_unstable();
            tids.dedup();
            self.threads.extend(tids.into_iter().filter_map(|tid| {
                let cpu = cpu_timer::thread_cpu_time(tid).ok()?;
                Some(WorkerThread { tid, cpu_time: cpu, in_recorded_poll: recorded.contains(&tid) })
            }));
            let alive = |tid: &u32| self.threads.iter().any(|thread| thread.tid == *tid);
            self.workers.retain(alive);
        }
        self.detector.check(SystemClock.now(), &self.worker_progress, &self.threads)
    }

    fn start_round(&mut self, request: PollStackRequest) {
        let examiner = match self.examiner.take() {
            Some(examiner) => Ok(examiner),
            None => ThreadProbe::new().map(|probe| Box::new(StackExaminer::new(probe))),
        };
        match examiner {
            Ok(examiner) => {
                let mut workers: Vec<u32> = self.threads.iter().map(|thread| thread.tid).collect();
                workers.retain(|tid| !self.drivers.contains(tid));
                let drivers = self.drivers.clone();
                self.round =
                    Some(self.thread.run(move || examiner.run_round(&request, &workers, &drivers)));
            }
            Err(why) => {
                self.sampling_denied = true;
                let text = format!("stalls of unrecorded tasks are not detected: {why}");
                warnings::set("stacks.threads", text);
            }
        }
    }

    /// Waits for the samples of the current round. Returns the suspected stalls, if any. Never
    /// completes while no round is running.
    pub(crate) async fn next_verdict(&mut self) -> Option<StallSuspects> {
        let Some(round) = &mut self.round else { return std::future::pending().await };
        let round = round.await;
        self.round = None;
        let before = threads::cpu_time();
        let ExamineRound { examiner, requested_at: asked, samples, did_search: searched, cost } =
            round.ok()?;
        let found =
            samples.iter().filter(|sample| sample.poll_hash.is_some()).map(|sample| sample.tid);
        let fresh = found.filter(|tid| !self.threads.iter().any(|thread| thread.tid == *tid));
        self.workers.extend(fresh);
        self.workers.truncate(MAX_TRACKED_THREADS);
        self.examiner = Some(examiner);
        self.check_workers();
        let verdict = self.detector.ingest(SystemClock.now(), asked, &samples, searched);
        let own = threads::cpu_time().saturating_sub(before);
        self.detector.charge(own + cost, false);
        verdict
    }

    /// Charges the CPU time used to confirm suspected stalls.
    pub(crate) fn charge(&mut self, cost: Duration) {
        self.detector.charge(cost, false);
    }

    /// Returns the suspected stalls that are confirmed, given the result of `is_stalled` for each
    /// thread.
    pub(crate) fn confirm(
        &mut self,
        verdict: StallSuspects,
        is_stalled: impl Fn(u32) -> bool,
    ) -> Vec<SuspectedStall> {
        self.detector.confirm(verdict, is_stalled)
    }

    /// Returns `true` if there is a worker whose stalls would be detected.
    pub(crate) fn has_workers(&self) -> bool {
        !self.sampling_denied && !self.worker_progress.is_empty()
    }

    /// Returns the start time of the oldest reported stall in progress.
    pub(crate) fn oldest_start(&self) -> Option<Moment> {
        self.detector.oldest_reported()
    }
}

/// Sampler of threads that caches the roles of functions.
struct StackExaminer {
    probe: ThreadProbe,
    roles: HashMap<u64, PollRole>,
    /// Number of symbol look-ups.
    symbol_lookups: u32,
    /// Threads that are not workers, each with the time until which it is skipped.
    ignored_threads: HashMap<u32, Moment>,
}

impl StackExaminer {
    fn new(probe: ThreadProbe) -> Self {
        Self { probe, roles: HashMap::new(), symbol_lookups: 0, ignored_threads: HashMap::new() }
    }

    fn run_round(
        mut self: Box<Self>,
        request: &PollStackRequest,
        workers: &[u32],
        drivers: &[u32],
    ) -> ExamineRound {
        let requested_at = SystemClock.now();
        let before = threads::cpu_time();
        let asleep: Vec<&SleepingWorker> =
            request.sleeping.iter().filter(|still| self.has_slept(still)).collect();
        let mut tids = request.tracked.clone();
        tids.extend(asleep.iter().map(|still| still.tid));
        tids.extend(&request.search);
        if request.search_by_name {
            tids.extend(self.candidate_threads(requested_at, workers));
        }
        tids.sort_unstable();
        tids.dedup();
        tids.truncate(MAX_TRACKED_THREADS);
        // Stalls of recorded polls are detected exactly, so their threads are skipped.
        let recorded = threads_in_recorded_polls();
        let (others, tids): (Vec<u32>, Vec<u32>) =
            tids.into_iter().partition(|tid| recorded.contains(tid));
        let recorded_sample = |tid| PollSample {
            tid,
            poll_hash: None,
            is_worker: true,
            asleep_since: None,
            run_delay: Duration::ZERO,
        };
        let mut samples: Vec<PollSample> = others.into_iter().map(recorded_sample).collect();
        let stacks = self.probe.sample(&SystemClock, &tids);
        let lookup_start = threads::cpu_time();
        self.resolve_roles(&stacks, drivers);
        let lookup_time = threads::cpu_time().saturating_sub(lookup_start);
        let free =
            if self.symbol_lookups <= FREE_SYMBOL_LOOKUPS { lookup_time } else { Duration::ZERO };
        samples.extend(tids.iter().map(|&tid| {
            let stack = stacks.iter().find(|stand| stand.tid == tid);
            let flavor = Flavor::of_thread(tid, drivers);
            let poll = stack.and_then(|stand| self.poll_hash(stand, flavor));
            let is_worker = stack.is_none_or(|stand| self.is_worker(stand, flavor));
            if !is_worker {
                self.ignored_threads.insert(tid, requested_at + NON_WORKER_SKIP_TIME);
            }
            let still =
                asleep.iter().find(|still| still.tid == tid).map(|still| still.asleep_since);
            let waited = stack.map_or(Duration::ZERO, |stand| stand.sched_stat.run_delay);
            PollSample { tid, poll_hash: poll, is_worker, asleep_since: still, run_delay: waited }
        }));
        let own = threads::cpu_time().saturating_sub(before + free);
        let cost = own + ROUND_OVERHEAD + REPLY_COST * tids.len() as u32;
        let searched = request.search_by_name || !request.search.is_empty();
        ExamineRound { examiner: self, requested_at, samples, did_search: searched, cost }
    }

    /// Returns `true` if a thread sleeps and has used no CPU since `still` was recorded, so that it
    /// is not waiting for a core.
    fn has_slept(&self, still: &SleepingWorker) -> bool {
        cpu_timer::thread_cpu_time(still.tid).is_ok_and(|cpu| cpu == still.cpu_time)
            && !self.probe.is_runnable(still.tid)
    }

    /// Returns the threads named like one of `workers`.
    fn candidate_threads(&mut self, now: Moment, workers: &[u32]) -> Vec<u32> {
        self.ignored_threads.retain(|_, until| *until > now);
        let names: Vec<String> = workers.iter().filter_map(|&tid| self.name_stem(tid)).collect();
        if names.is_empty() {
            return Vec::new();
        }
        let is_many = self.probe.count().is_none_or(|count| count > MAX_THREADS_NAMED);
        let mut tids = match workers.iter().min().zip(workers.iter().max()) {
            // A runtime starts its workers in sequence, so their ids are close.
            Some((first, last)) if is_many => (first.saturating_sub(TID_SEARCH_RANGE)
                ..first.saturating_add(TID_SEARCH_RANGE))
                .chain(last.saturating_sub(TID_SEARCH_RANGE)..last.saturating_add(TID_SEARCH_RANGE))
                .collect(),
            _ => self.probe.list(),
        };
        tids.retain(|tid| !workers.contains(tid) && !self.ignored_threads.contains_key(tid));
        let (matching, others) = tids
            .into_iter()
            .partition(|&tid| self.name_stem(tid).is_some_and(|name| names.contains(&name)));
        let others: Vec<u32> = others;
        self.ignored_threads
            .extend(others.into_iter().map(|tid| (tid, now + NON_WORKER_SKIP_TIME)));
        matching
    }

    fn name_stem(&self, tid: u32) -> Option<String> {
        Some(thread_name_stem(&self.probe.name(tid)?).to_owned())
    }

    /// Symbolizes the stacks that contain frames of unknown role.
    fn resolve_roles(&mut self, stacks: &[SampledStack], drivers: &[u32]) {
        let flavor = |stand: &SampledStack| Flavor::of_thread(stand.tid, drivers);
        let unresolved: Vec<&SampledStack> =
            stacks.iter().filter(|stand| self.poll_index(stand, flavor(stand)).is_none()).collect();
        if unresolved.is_empty() {
            return;
        }
        self.symbol_lookups = self.symbol_lookups.saturating_add(1);
        if self.roles.len() > MAX_ROLES {
            self.roles.clear();
        }
        let kind = ValueType { name: "threads", unit: "count" };
        let mut profile = Profile::new(&[kind], kind, 1, SystemClock.wall());
        for address in unresolved.iter().flat_map(|stand| stand.frames.iter()) {
            profile.frames.intern(*address);
        }
        let Ok(loaded) = images::loaded() else { return };
        profile.attach_mappings(loaded);
        symbols::symbolize(&mut profile);
        for frame in profile.frames.iter() {
            let function = frame.lines.first().map(|line| line.function.index());
            let function = function.and_then(|function| profile.functions.get(function));
            let name = function.map_or("", |function| profile.strings.get(function.name));
            self.roles.insert(frame.address, function_role(name));
        }
    }

    /// Returns a hash that identifies the poll of a worker.
    fn poll_hash(&self, stack: &SampledStack, flavor: Flavor) -> Option<u64> {
        let at = self.poll_index(stack, flavor)??;
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(*stack.frame_hashes.get(at)?);
        stack.frames.get(at..)?.iter().for_each(|&frame| hasher.write_u64(frame));
        Some(hasher.finish())
    }

    /// Returns the index of the frame in which a worker polls: `Some(None)` if it does not poll,
    /// `None` if frames are unknown.
    fn poll_index(&self, stack: &SampledStack, flavor: Flavor) -> Option<Option<usize>> {
        let role = |at: usize| self.roles.get(stack.frames.get(at)?).copied();
        find_poll(role, stack.frames.len(), flavor)
    }

    fn is_worker(&self, stack: &SampledStack, flavor: Flavor) -> bool {
        stack.frames.iter().any(|frame| self.roles.get(frame) == Some(&flavor.worker_loop()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn worker_poll_is_found_with_one_symbol_lookup() {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).thread_name("examined").build().unwrap();
        let (tid_sender, tid_receiver) = std::sync::mpsc::channel();
        let (release, released) = std::sync::mpsc::channel::<()>();
        runtime.spawn(async move {
            tid_sender.send(threads::current_tid()).unwrap();
            let _ = released.recv();
        });
        let worker = tid_receiver.recv().unwrap();
        let request = PollStackRequest { search: vec![worker], ..PollStackRequest::default() };
        let mut examiner = Box::new(StackExaminer::new(ThreadProbe::new().unwrap()));
        for _ in 0..3 {
            let round = examiner.run_round(&request, &[worker], &[]);
            let sample = round.samples.iter().find(|sample| sample.tid == worker).unwrap();
            assert!(sample.poll_hash.is_some(), "{sample:?}");
            examiner = round.examiner;
        }
        assert_eq!(examiner.symbol_lookups, 1);
        drop(release);
    }
}
