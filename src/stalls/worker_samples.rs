//! Detection of unrecorded stalls: reads the workers' counters and samples the threads that may be
//! stalled.
//!
//! The decisions are in `trace::stalls`. This module samples threads, on the thread
//! `marple-stalls`. Candidates are threads named like one that ran a task of an observed runtime. A
//! thread found not to be a worker is skipped for a while.

use std::collections::HashMap;
use std::hash::{DefaultHasher, Hasher};
use std::time::Duration;

use tokio::sync::oneshot::Receiver;

use super::unrecorded_polls::{
    MAX_FOLLOWED, PollSample, PollStackRequest, StallVerdict, Still, SuspectedStall,
    UnrecordedPollDetector, WorkerThread,
};
use crate::base::side_thread::SideThread;
use crate::base::{Clock, Moment, SystemClock, standstill, warnings};
use crate::model::{Profile, ValueType, WorkerProgress};
use crate::os::clock::cpu_timer;
use crate::os::images;
use crate::os::proc::threads;
use crate::stalls::poll_roles::{Flavor, PollRole, poll_in, role};
pub(crate) use crate::stalls::poll_roles::{holds_up, is_in_place_function};
use crate::stalls::thread_probe::{SampledStack, ThreadProbe};
use crate::symbols;
use crate::trace::open_polls::polling_threads;
use crate::vitals::Runtimes;

/// Time for which a thread that is not a worker is skipped.
const PLAIN: Duration = Duration::from_secs(10);

/// Maximum number of addresses with a known role: more than a service has in tokio's code.
const MAX_ROLES: usize = 4096;

/// Number of symbol look-ups exempt from the CPU budget. Reading the names of tokio's functions
/// takes ten times the CPU time of the search itself: 40 ms in a debug build. Within the budget,
/// that would suspend the search for half a second, longer than most stalls. Names are read once,
/// in the first searches.
const FREE_LESSONS: u32 = 8;

/// Cost of a round beyond the CPU time of the sampling thread: two thread wake-ups.
const ROUND: Duration = Duration::from_micros(20);

/// CPU time a sampled thread takes to reply.
const ANSWER: Duration = Duration::from_micros(15);

/// Number of threads above which only names of threads with ids near those of known workers are
/// read. Reading a name takes 7 us.
const MAX_LISTED: usize = 512;
const NEAR: u32 = 128;

/// The detector of unrecorded stalls.
pub(crate) struct StallCandidates {
    runtimes: Runtimes,
    suspects: UnrecordedPollDetector,
    beats: Vec<WorkerProgress>,
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
    refused: bool,
    /// Total standstill time at the last check.
    stood_still: Duration,
}

/// Result of one round of sampling.
struct ExamineRound {
    examiner: Box<StackExaminer>,
    asked: Moment,
    samples: Vec<PollSample>,
    searched: bool,
    cost: Duration,
}

impl StallCandidates {
    pub(crate) fn new(runtimes: Runtimes, threshold: Duration, thread: SideThread) -> Self {
        Self {
            runtimes,
            suspects: UnrecordedPollDetector::new(threshold),
            beats: Vec::new(),
            workers: Vec::new(),
            drivers: Vec::new(),
            threads: Vec::new(),
            examiner: None,
            round: None,
            thread,
            refused: false,
            stood_still: standstill::total(),
        }
    }

    /// Checks the workers and samples threads if necessary. Returns the time until the next check.
    /// `before` is the CPU time of this thread before the check of recorded polls, which is part of
    /// the cost.
    pub(crate) fn look(&mut self, before: Duration) -> Duration {
        let (ask, next) = self.look_at_workers();
        if let Some(ask) = ask.filter(|_| !self.refused && self.round.is_none()) {
            self.ask(ask);
        }
        self.suspects.charge(threads::cpu_time().saturating_sub(before), true);
        next
    }

    fn look_at_workers(&mut self) -> (Option<PollStackRequest>, Duration) {
        let stood_still = standstill::total();
        if stood_still != self.stood_still {
            self.stood_still = stood_still;
            self.suspects.stood_still(SystemClock.now());
        }
        self.runtimes.beats(&mut self.beats);
        self.drivers.clear();
        self.drivers.extend(self.beats.iter().filter_map(|beat| beat.driver));
        let recorded = polling_threads();
        self.threads.clear();
        // The CPU time of the threads is irrelevant while all workers are parked.
        if self.beats.iter().any(|beat| !beat.parked) {
            let mut tids = self.runtimes.threads();
            self.workers.retain(|tid| !tids.contains(tid));
            tids.extend(&self.workers);
            tids.extend(&self.drivers);
            tids.sort_unstable();
            tids.dedup();
            self.threads.extend(tids.into_iter().filter_map(|tid| {
                let cpu = cpu_timer::cpu_time_of(tid).ok()?;
                Some(WorkerThread { tid, cpu, recorded: recorded.contains(&tid) })
            }));
            let alive = |tid: &u32| self.threads.iter().any(|thread| thread.tid == *tid);
            self.workers.retain(alive);
        }
        self.suspects.look(SystemClock.now(), &self.beats, &self.threads)
    }

    fn ask(&mut self, ask: PollStackRequest) {
        let examiner = match self.examiner.take() {
            Some(examiner) => Ok(examiner),
            None => ThreadProbe::new().map(|onlooker| Box::new(StackExaminer::new(onlooker))),
        };
        match examiner {
            Ok(examiner) => {
                let mut workers: Vec<u32> = self.threads.iter().map(|thread| thread.tid).collect();
                workers.retain(|tid| !self.drivers.contains(tid));
                let drivers = self.drivers.clone();
                self.round =
                    Some(self.thread.run(move || examiner.round(&ask, &workers, &drivers)));
            }
            Err(why) => {
                self.refused = true;
                let text = format!("stalls of tasks that are not recorded are not seen: {why}");
                warnings::set("stacks.threads", text);
            }
        }
    }

    /// Waits for the samples of the current round. Returns the suspected stalls, if any. Never
    /// completes while no round is running.
    pub(crate) async fn heard(&mut self) -> Option<StallVerdict> {
        let Some(round) = &mut self.round else { return std::future::pending().await };
        let round = round.await;
        self.round = None;
        let before = threads::cpu_time();
        let ExamineRound { examiner, asked, samples, searched, cost } = round.ok()?;
        let found = samples.iter().filter(|sample| sample.poll.is_some()).map(|sample| sample.tid);
        let fresh = found.filter(|tid| !self.threads.iter().any(|thread| thread.tid == *tid));
        self.workers.extend(fresh);
        self.workers.truncate(MAX_FOLLOWED);
        self.examiner = Some(examiner);
        self.look_at_workers();
        let verdict = self.suspects.hear(SystemClock.now(), asked, &samples, searched);
        let own = threads::cpu_time().saturating_sub(before);
        self.suspects.charge(own + cost, false);
        verdict
    }

    /// Charges the CPU time used to confirm suspected stalls.
    pub(crate) fn charge(&mut self, cost: Duration) {
        self.suspects.charge(cost, false);
    }

    /// Returns the suspected stalls that are confirmed, given the result of `is_stuck` for each
    /// thread.
    pub(crate) fn settle(
        &mut self,
        verdict: StallVerdict,
        is_stuck: impl Fn(u32) -> bool,
    ) -> Vec<SuspectedStall> {
        self.suspects.settle(verdict, is_stuck)
    }

    /// Returns `true` if there is a worker whose stalls would be detected.
    pub(crate) fn sees_workers(&self) -> bool {
        !self.refused && !self.beats.is_empty()
    }

    /// Returns the start time of the oldest reported stall in progress.
    pub(crate) fn oldest(&self) -> Option<Moment> {
        self.suspects.oldest()
    }
}

/// Sampler of threads that caches the roles of functions.
struct StackExaminer {
    onlooker: ThreadProbe,
    roles: HashMap<u64, PollRole>,
    /// Number of symbol look-ups.
    lessons: u32,
    /// Threads that are not workers, each with the time until which it is skipped.
    plain: HashMap<u32, Moment>,
}

impl StackExaminer {
    fn new(onlooker: ThreadProbe) -> Self {
        Self { onlooker, roles: HashMap::new(), lessons: 0, plain: HashMap::new() }
    }

    fn round(
        mut self: Box<Self>,
        ask: &PollStackRequest,
        workers: &[u32],
        drivers: &[u32],
    ) -> ExamineRound {
        let (asked, before) = (SystemClock.now(), threads::cpu_time());
        let still: Vec<&Still> = ask.still.iter().filter(|still| self.has_slept(still)).collect();
        let mut open = ask.follow.clone();
        open.extend(still.iter().map(|still| still.tid));
        open.extend(&ask.search);
        if ask.names {
            open.extend(self.candidates(asked, workers));
        }
        open.sort_unstable();
        open.dedup();
        open.truncate(MAX_FOLLOWED);
        // Stalls of recorded polls are detected exactly, so their threads are skipped.
        let recorded = polling_threads();
        let (others, open): (Vec<u32>, Vec<u32>) =
            open.into_iter().partition(|tid| recorded.contains(tid));
        let left_out = |tid| PollSample {
            tid,
            poll: None,
            is_worker: true,
            still: None,
            waited: Duration::ZERO,
        };
        let mut samples: Vec<PollSample> = others.into_iter().map(left_out).collect();
        let stands = self.onlooker.ask(&SystemClock, &open);
        let learning = threads::cpu_time();
        self.learn(&stands, drivers);
        let learning = threads::cpu_time().saturating_sub(learning);
        let free = if self.lessons <= FREE_LESSONS { learning } else { Duration::ZERO };
        samples.extend(open.iter().map(|&tid| {
            let stand = stands.iter().find(|stand| stand.tid == tid);
            let flavor = Flavor::of(tid, drivers);
            let poll = stand.and_then(|stand| self.poll_of(stand, flavor));
            let is_worker = stand.is_none_or(|stand| self.is_worker(stand, flavor));
            if !is_worker {
                self.plain.insert(tid, asked + PLAIN);
            }
            let still = still.iter().find(|still| still.tid == tid).map(|still| still.since);
            let waited = stand.map_or(Duration::ZERO, |stand| stand.runs.waited);
            PollSample { tid, poll, is_worker, still, waited }
        }));
        let own = threads::cpu_time().saturating_sub(before + free);
        let cost = own + ROUND + ANSWER * open.len() as u32;
        let searched = ask.names || !ask.search.is_empty();
        ExamineRound { examiner: self, asked, samples, searched, cost }
    }

    /// Returns `true` if a thread sleeps and has used no CPU since `still` was recorded, so that it
    /// is not waiting for a core.
    fn has_slept(&self, still: &Still) -> bool {
        cpu_timer::cpu_time_of(still.tid).is_ok_and(|cpu| cpu == still.cpu)
            && !self.onlooker.is_runnable(still.tid)
    }

    /// Returns the threads named like one of `workers`.
    fn candidates(&mut self, now: Moment, workers: &[u32]) -> Vec<u32> {
        self.plain.retain(|_, until| *until > now);
        let names: Vec<String> = workers.iter().filter_map(|&tid| self.stem(tid)).collect();
        if names.is_empty() {
            return Vec::new();
        }
        let is_many = self.onlooker.count().is_none_or(|count| count > MAX_LISTED);
        let mut tids = match workers.iter().min().zip(workers.iter().max()) {
            // A runtime starts its workers in sequence, so their ids are close.
            Some((first, last)) if is_many => (first.saturating_sub(NEAR)
                ..first.saturating_add(NEAR))
                .chain(last.saturating_sub(NEAR)..last.saturating_add(NEAR))
                .collect(),
            _ => self.onlooker.list(),
        };
        tids.retain(|tid| !workers.contains(tid) && !self.plain.contains_key(tid));
        let (like, others) = tids
            .into_iter()
            .partition(|&tid| self.stem(tid).is_some_and(|name| names.contains(&name)));
        let others: Vec<u32> = others;
        self.plain.extend(others.into_iter().map(|tid| (tid, now + PLAIN)));
        like
    }

    /// Returns the thread's name without its trailing number.
    fn stem(&self, tid: u32) -> Option<String> {
        let name = self.onlooker.name(tid)?;
        Some(name.trim_end_matches(|end: char| end.is_ascii_digit()).to_owned())
    }

    /// Symbolizes the stacks that contain frames of unknown role.
    fn learn(&mut self, stands: &[SampledStack], drivers: &[u32]) {
        let flavor = |stand: &SampledStack| Flavor::of(stand.tid, drivers);
        let unread: Vec<&SampledStack> =
            stands.iter().filter(|stand| self.read(stand, flavor(stand)).is_none()).collect();
        if unread.is_empty() {
            return;
        }
        self.lessons = self.lessons.saturating_add(1);
        if self.roles.len() > MAX_ROLES {
            self.roles.clear();
        }
        let kind = ValueType { name: "threads", unit: "count" };
        let mut profile = Profile::new(&[kind], kind, 1, SystemClock.wall());
        for address in unread.iter().flat_map(|stand| stand.frames.iter()) {
            profile.frames.intern(*address);
        }
        let Ok(loaded) = images::loaded() else { return };
        profile.attach_mappings(loaded);
        symbols::name_functions(&mut profile);
        for frame in profile.frames.iter() {
            let function = frame.lines.first().map(|line| line.function.index());
            let function = function.and_then(|function| profile.functions.get(function));
            let name = function.map_or("", |function| profile.strings.get(function.name));
            self.roles.insert(frame.address, role(name));
        }
    }

    /// Returns a hash that identifies the poll of a worker.
    fn poll_of(&self, stand: &SampledStack, flavor: Flavor) -> Option<u64> {
        let at = self.read(stand, flavor)??;
        let mut hasher = DefaultHasher::new();
        hasher.write_u64(*stand.marks.get(at)?);
        stand.frames.get(at..)?.iter().for_each(|&frame| hasher.write_u64(frame));
        Some(hasher.finish())
    }

    /// Returns the index of the frame in which a worker polls: `Some(None)` if it does not poll,
    /// `None` if frames are unknown.
    fn read(&self, stand: &SampledStack, flavor: Flavor) -> Option<Option<usize>> {
        let role = |at: usize| self.roles.get(stand.frames.get(at)?).copied();
        poll_in(role, stand.frames.len(), flavor)
    }

    fn is_worker(&self, stand: &SampledStack, flavor: Flavor) -> bool {
        stand.frames.iter().any(|frame| self.roles.get(frame) == Some(&flavor.worker_loop()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_worker_is_found_in_its_poll_and_functions_are_read_once_for_that() {
        let mut builder = tokio::runtime::Builder::new_multi_thread();
        let runtime = builder.worker_threads(1).thread_name("examined").build().unwrap();
        let (tell, told) = std::sync::mpsc::channel();
        let (release, released) = std::sync::mpsc::channel::<()>();
        runtime.spawn(async move {
            tell.send(threads::current()).unwrap();
            let _ = released.recv();
        });
        let worker = told.recv().unwrap();
        let ask = PollStackRequest { search: vec![worker], ..PollStackRequest::default() };
        let mut examiner = Box::new(StackExaminer::new(ThreadProbe::new().unwrap()));
        for _ in 0..3 {
            let round = examiner.round(&ask, &[worker], &[]);
            let sample = round.samples.iter().find(|sample| sample.tid == worker).unwrap();
            assert!(sample.poll.is_some(), "{sample:?}");
            examiner = round.examiner;
        }
        assert_eq!(examiner.lessons, 1);
        drop(release);
    }
}
