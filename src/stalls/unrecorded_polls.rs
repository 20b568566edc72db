//! Inference of stalls in polls that are not recorded. Uses no clock, runtime or thread.
//!
//! ```text
//! check   a worker that is not parked has unchanged counters     -> it makes no progress
//! check   a worker's thread has used no CPU for the threshold, and
//!         no parked worker explains it                           -> read its stack; report a poll
//! round   threads that compute: in the same poll at every sample -> report once certain
//! ```
//!
//! A worker updates its counters every 61 polls, so unchanged counters are only a hint: with polls
//! of 10 ms they change every 600 ms. There are two kinds of evidence. The cheap one is tried
//! first:
//!
//! - **The thread slept.** A thread that used no CPU between two checks was in one poll all the
//!   time. Reading its CPU clock costs 0.3 us and does not disturb the thread. Its stack is read
//!   once, after the threshold, to distinguish a poll from a parked worker.
//! - **Every sample shows the same task**, for the threshold and for at least [`BATCH`], and for
//!   longer than the worker's last batches. `BATCH` is the longest time that 61 polls of one task
//!   can take without a stall. A stack identifies the poll by the frames outside of the task's own
//!   code and by their contents, above all the task's address. This distinguishes tasks, but not
//!   two polls of one task. Samples are taken at irregular times, so that alternating tasks are not
//!   mistaken for one. Time in which the thread waited for a core is not counted.
//!
//! A sample costs 0.1 to 0.5 ms, so the whole search is limited by a CPU budget (`budget.rs`).
//! Samples based on a mere hint are taken only while the budget exceeds a reserve. Suspicions with
//! evidence may use the reserve: a thread that sleeps, a thread seen twice in the same poll, a
//! worker without progress for longer than its batches usually take.
//!
//! So some stalls are missed:
//!
//! - a blocking poll that exceeds the threshold by less than the check interval; it is found later
//!   if it recurs;
//! - a computing poll that ends within 0.4 s, or within one batch of a worker whose batches are
//!   long.
//!
//! Computing polls of equal length are reported the first time and then taken for such batches: one
//! poll of 400 ms and 40 polls of 10 ms of the same task cannot be distinguished.
//!
//! It is not known which thread runs which worker. If more threads look stalled than workers make
//! no progress, some of them block no worker, and none is reported. A thread whose stack shows that
//! it handed its worker to another thread (`block_in_place`) is dismissed.

use std::collections::BTreeMap;
use std::time::Duration;

use crate::base::Moment;
use crate::model::WorkerProgress;
use crate::stalls::recorded_polls::{PERIOD, REST};
use crate::stalls::search_budget::SearchBudget;
use crate::stalls::workers::{BUSY, WorkerState, WorkerStates};

/// Longest time between two counter updates of a worker without a stall: 61 polls of 5 ms, plus a
/// margin.
const BATCH: Duration = Duration::from_millis(310);

/// Samples in the same poll that are required before a computing thread is reported. If two tasks
/// alternate, one of them is in eight consecutive samples once in 128 times (`2 * 2^-8`). With
/// tasks 11 ms apart on average, over [`BATCH`], this almost never happens.
const SAMES: u32 = 8;

/// Minimum time between two samples of a computing thread; at most twice as long. On average
/// [`SAMES`] of them fit into [`BATCH`].
const SAMPLE: Duration = Duration::from_millis(25);

/// The same for a thread whose stall was reported, to find the end of the stall.
const SAMPLE_REPORTED: Duration = Duration::from_millis(150);

/// Minimum time between two searches over all running threads.
const PAUSE: Duration = Duration::from_millis(20);

/// Maximum CPU time that a sleeping thread uses to answer one signal.
const ANSWER: Duration = Duration::from_micros(50);

/// Maximum number of threads followed at once.
pub(crate) const MAX_FOLLOWED: usize = 64;

/// The request for one sampling round.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PollStackRequest {
    /// Threads whose current stack is needed.
    pub(crate) follow: Vec<u32>,
    /// Sleeping threads whose stack is needed.
    pub(crate) still: Vec<Still>,
    /// Running threads without a known poll whose stack is needed.
    pub(crate) search: Vec<u32>,
    /// `true` if threads of other workers are searched for by thread name.
    pub(crate) names: bool,
}

/// A thread that has used no CPU for a while.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Still {
    pub(crate) tid: u32,
    pub(crate) cpu: Duration,
    pub(crate) since: Moment,
}

/// State of a worker's thread at a check.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkerThread {
    pub(crate) tid: u32,
    /// CPU time used so far.
    pub(crate) cpu: Duration,
    /// `true` if the thread is in a recorded poll.
    pub(crate) recorded: bool,
}

/// Result of a sampling round for one thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PollSample {
    pub(crate) tid: u32,
    /// Hash of the poll that the thread is in. `None` if the thread is no worker or in no poll.
    pub(crate) poll: Option<u64>,
    /// `true` if the thread is in a worker's loop, or if that is unknown.
    pub(crate) is_worker: bool,
    /// Time since which the thread has slept. `None` if that is not certain.
    pub(crate) still: Option<Moment>,
    /// Total run delay of the thread since its start.
    pub(crate) waited: Duration,
}

/// A poll that has lasted too long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SuspectedStall {
    pub(crate) tid: u32,
    /// Time at which the poll was first seen.
    pub(crate) since: Moment,
    pub(crate) lasted: Duration,
    /// The worker that the poll runs on, if that is certain.
    pub(crate) worker: Option<(u64, u32)>,
    /// `true` if the thread drives a single-threaded runtime.
    pub(crate) is_driver: bool,
}

/// The state of the inference: workers, their threads, and the threads being followed.
#[derive(Debug)]
pub(crate) struct UnrecordedPollDetector {
    threshold: Duration,
    workers: WorkerStates,
    threads: BTreeMap<u32, Thread>,
    followed: Vec<TrackedThread>,
    /// Earliest time of the next search over all running threads.
    next_search: Option<Moment>,
    budget: SearchBudget,
}

/// A worker's thread.
#[derive(Debug)]
struct Thread {
    cpu: Duration,
    /// Time since which `cpu` is unchanged.
    since: Moment,
    recorded: bool,
    /// `Unset` unless the thread was found parked and has slept since then.
    parked: WorkerBaseline,
}

/// CPU time of a thread after it answered a signal. It becomes known at the next check.
#[derive(Clone, Copy, Debug, PartialEq)]
enum WorkerBaseline {
    Unset,
    Pending,
    At(Duration),
}

impl WorkerBaseline {
    /// Compares with the CPU time `cpu` read by a check. Returns `true` if the thread has run since
    /// it answered.
    fn has_run(&mut self, cpu: Duration) -> bool {
        match *self {
            Self::Unset => true,
            Self::Pending => {
                *self = Self::At(cpu);
                false
            }
            Self::At(before) => cpu.saturating_sub(before) > ANSWER,
        }
    }
}

#[derive(Debug)]
struct TrackedThread {
    tid: u32,
    poll: u64,
    since: Moment,
    /// Time at which the thread was last seen running.
    ran: Moment,
    /// `true` if the thread had slept at the last sample.
    slept: bool,
    /// Number of samples in this poll.
    sames: u32,
    /// Time of the next sample.
    next: Moment,
    answered: WorkerBaseline,
    /// `true` if the thread has run since it answered.
    has_run: bool,
    /// Run delay of the thread at the first and at the last sample in this poll.
    waited: (Duration, Duration),
    told: bool,
    /// `true` if the thread blocks no worker, or if that is unknown.
    acquitted: bool,
}

/// Suspected stalls that need a closer inspection of their threads' stacks.
#[derive(Debug)]
pub(crate) struct StallVerdict {
    pub(crate) suspicions: Vec<SuspectedStall>,
    /// Maximum number of them that can be stalled.
    most: usize,
}

impl TrackedThread {
    fn is_open(&self) -> bool {
        !self.told && !self.acquitted
    }
}

impl UnrecordedPollDetector {
    pub(crate) fn new(threshold: Duration) -> Self {
        Self {
            threshold,
            workers: WorkerStates::new(threshold),
            threads: BTreeMap::new(),
            followed: Vec::new(),
            next_search: None,
            budget: SearchBudget::new(),
        }
    }

    /// Charges the CPU time of a check, or of other work for the search.
    pub(crate) fn charge(&mut self, cost: Duration, is_look: bool) {
        if is_look { self.budget.charge_look(cost) } else { self.budget.charge(cost) }
    }

    /// Restarts all measurements at `now`, up to which the process was stopped.
    pub(crate) fn stood_still(&mut self, now: Moment) {
        self.workers.stood_still(now);
        self.threads.values_mut().for_each(|thread| thread.since = now);
        self.followed.retain(|thread| thread.told);
    }

    /// Updates the state from the counters of the workers and the CPU time of their threads at
    /// `now`. Returns the sampling round to run, if any, and the time until the next check.
    pub(crate) fn look(
        &mut self,
        now: Moment,
        beats: &[WorkerProgress],
        threads: &[WorkerThread],
    ) -> (Option<PollStackRequest>, Duration) {
        self.budget.refill(now);
        let rest = self.workers.look(now, beats);
        self.note(now, threads);
        let standing = self.workers.standing(now).count();
        let pace = self.budget.pace().min(Duration::from_millis(500));
        if standing == 0 {
            self.followed.clear();
            return (None, spread(rest, now).max(pace));
        }
        let is_complete = self.threads.len() == beats.len();
        let (still, still_due) = self.sleepers(now, is_complete);
        let is_late = self.workers.standing(now).any(|worker| worker.is_late(now));
        let may_hint = self.budget.has_plenty() || (is_late && self.budget.has_any());

        let told = self.followed.iter().filter(|thread| thread.told).count();
        let recorded = self.threads.values().filter(|thread| thread.recorded).count();
        let explained = self.followed.iter().filter(|thread| !thread.acquitted).count()
            + if is_complete { recorded } else { 0 };
        let may_search =
            standing > explained && may_hint && self.next_search.is_none_or(|at| now >= at);
        let running = self.threads.iter().filter(|(tid, thread)| {
            let is_followed = self.followed.iter().any(|followed| followed.tid == **tid);
            thread.since == now && !thread.recorded && !is_followed
        });
        let search: Vec<u32> = running.map(|(&tid, _)| tid).filter(|_| may_search).collect();
        let names = may_search && !is_complete;
        let may_ask = |thread: &&TrackedThread| {
            let sampled = if thread.sames > 1 { self.budget.has_any() } else { may_hint };
            thread.has_run
                && now >= thread.next
                && if thread.is_open() { sampled } else { self.budget.has_plenty() }
        };
        let follow: Vec<u32> = self.followed.iter().filter(may_ask).map(|it| it.tid).collect();

        let sampled = self.followed.iter().filter(|thread| thread.is_open() && thread.has_run);
        let mut next = spread(if standing > told { BUSY } else { REST }, now);
        for due in sampled.map(|thread| thread.next).chain(still_due) {
            next = next.min(due.since(now));
        }
        let next = next.clamp(PERIOD, self.threshold.max(PERIOD)).max(pace);
        let ask = PollStackRequest { follow, still, search, names };
        ((ask != PollStackRequest::default()).then_some(ask), next)
    }

    /// Updates the CPU times of the workers' threads at `now`.
    fn note(&mut self, now: Moment, threads: &[WorkerThread]) {
        self.threads.retain(|tid, _| threads.iter().any(|thread| thread.tid == *tid));
        for &WorkerThread { tid, cpu, recorded } in threads {
            let fresh = Thread { cpu, since: now, recorded, parked: WorkerBaseline::Unset };
            let known = self.threads.entry(tid).or_insert(fresh);
            if known.cpu != cpu {
                (known.cpu, known.since) = (cpu, now);
            }
            known.recorded = recorded;
            if known.parked.has_run(cpu) {
                known.parked = WorkerBaseline::Unset;
            }
        }
        for thread in &mut self.followed {
            // A thread that belongs to no known worker is assumed to run.
            let known = self.threads.get(&thread.tid);
            thread.has_run = known.is_none_or(|known| thread.answered.has_run(known.cpu));
        }
    }

    /// Returns the threads that have slept for the threshold and may be in a poll, and the time at
    /// which the next thread reaches the threshold.
    fn sleepers(&self, now: Moment, is_complete: bool) -> (Vec<Still>, Option<Moment>) {
        let sleeps = |thread: &&Thread| thread.since < now && !thread.recorded;
        // All threads are known, and at most as many sleep as workers were parked all the time. So
        // the sleeping threads are the parked workers.
        if is_complete && self.threads.values().filter(sleeps).count() <= self.workers.asleep() {
            return (Vec::new(), None);
        }
        let open = self.threads.iter().filter(|(tid, thread)| {
            sleeps(thread)
                && thread.parked == WorkerBaseline::Unset
                && !self.followed.iter().any(|it| it.tid == **tid && !it.is_open() && !it.has_run)
        });
        let (mut still, mut due) = (Vec::new(), None::<Moment>);
        for (&tid, thread) in open {
            let at = thread.since + self.threshold;
            if now < at {
                due = Some(due.map_or(at, |due| due.min(at)));
            } else if self.budget.has_any() {
                still.push(Still { tid, cpu: thread.cpu, since: thread.since });
            }
        }
        still.sort_unstable_by_key(|still| still.since);
        still.truncate(MAX_FOLLOWED / 4);
        (still, due)
    }

    /// Evaluates at `now` the samples of a round that started at `asked`. [`Self::look`] must have
    /// been called before.
    pub(crate) fn hear(
        &mut self,
        now: Moment,
        asked: Moment,
        samples: &[PollSample],
        searched: bool,
    ) -> Option<StallVerdict> {
        if searched {
            self.next_search = Some(now + jittered(PAUSE, now));
        }
        for sample in samples {
            self.take(now, sample);
        }
        let standing: Vec<&WorkerState> = self.workers.standing(now).collect();
        let told = self.followed.iter().filter(|thread| thread.told).count();
        let most = standing.len().saturating_sub(told);
        let whole_batch =
            standing.iter().any(|worker| now.since(worker.since) >= BATCH && worker.is_late(now));
        let worker = match standing[..] {
            [only] => Some(only.beat.worker),
            _ => None,
        };
        let is_certain = |thread: &&TrackedThread| {
            let slept = thread.slept && asked.since(thread.ran) >= self.threshold;
            let waited = thread.waited.1.saturating_sub(thread.waited.0);
            let own = asked.since(thread.since).saturating_sub(waited);
            let same = whole_batch && thread.sames >= SAMES && own >= self.threshold.max(BATCH);
            thread.is_open() && (slept || same)
        };
        let suspicions = self.followed.iter().filter(is_certain).map(|thread| SuspectedStall {
            tid: thread.tid,
            since: thread.since,
            lasted: asked.since(thread.since),
            worker: self.workers.driven_by(thread.tid).or(worker),
            is_driver: self.workers.driven_by(thread.tid).is_some(),
        });
        let suspicions: Vec<SuspectedStall> = suspicions.collect();
        (most > 0 && !suspicions.is_empty()).then_some(StallVerdict { suspicions, most })
    }

    /// Applies the result of inspecting the suspects: `is_stuck` returns `true` for a thread that
    /// is stalled. Returns the stalls to report.
    pub(crate) fn settle(
        &mut self,
        verdict: StallVerdict,
        is_stuck: impl Fn(u32) -> bool,
    ) -> Vec<SuspectedStall> {
        let StallVerdict { mut suspicions, most } = verdict;
        let examined: Vec<u32> = suspicions.iter().map(|suspicion| suspicion.tid).collect();
        suspicions.retain(|suspicion| is_stuck(suspicion.tid));
        if suspicions.len() > most {
            suspicions.clear();
        }
        for thread in self.followed.iter_mut().filter(|thread| examined.contains(&thread.tid)) {
            thread.told = suspicions.iter().any(|suspicion| suspicion.tid == thread.tid);
            thread.next = thread.next.max(thread.ran + SAMPLE_REPORTED);
            thread.acquitted = !thread.told;
        }
        suspicions
    }

    /// Returns the start of the oldest reported poll that is still in progress.
    pub(crate) fn oldest(&self) -> Option<Moment> {
        self.followed.iter().filter(|thread| thread.told).map(|thread| thread.since).min()
    }

    fn take(&mut self, now: Moment, sample: &PollSample) {
        let known = self.followed.iter_mut().find(|thread| thread.tid == sample.tid);
        let Some(poll) = sample.poll else {
            self.followed.retain(|thread| thread.tid != sample.tid);
            if let Some(thread) = self.threads.get_mut(&sample.tid) {
                thread.parked = WorkerBaseline::Pending;
            }
            if !sample.is_worker {
                self.workers.dismiss(sample.tid, now);
            }
            return;
        };
        let since = sample.still.unwrap_or(now);
        let next = now + jittered(SAMPLE, now);
        if let Some(thread) = known
            && thread.poll == poll
        {
            thread.sames += 1;
            thread.slept = sample.still.is_some();
            thread.ran = since.max(thread.ran);
            thread.next = if thread.is_open() { next } else { now + SAMPLE_REPORTED };
            thread.answered = WorkerBaseline::Pending;
            thread.waited.1 = sample.waited;
            return;
        }
        let fresh = TrackedThread {
            tid: sample.tid,
            poll,
            since,
            ran: since,
            slept: sample.still.is_some(),
            sames: 1,
            next,
            answered: WorkerBaseline::Pending,
            has_run: true,
            waited: (sample.waited, sample.waited),
            told: false,
            acquitted: false,
        };
        match self.followed.iter().position(|thread| thread.tid == sample.tid) {
            Some(at) => self.followed[at] = fresh,
            None if self.followed.len() < MAX_FOLLOWED => self.followed.push(fresh),
            None => {}
        }
    }
}

/// Returns a time between `time` and `2 * time`. Alternating tasks switch at a steady rate, and
/// samples at a steady rate would follow it.
fn jittered(time: Duration, now: Moment) -> Duration {
    let mixed = now.as_nanos().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
    time + time * mixed as u32 / 256
}

/// Returns a time between `3/4 * time` and `5/4 * time`. Polls that recur with equal length and
/// distance would meet checks at a steady rate at the same point each time: either every stall
/// would be missed or none.
fn spread(time: Duration, now: Moment) -> Duration {
    let mixed = now.as_nanos().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
    (time * 3 / 4 + time * mixed as u32 / 512).max(PERIOD)
}

#[cfg(test)]
mod tests;
