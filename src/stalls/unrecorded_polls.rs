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
//! - **Every sample shows the same task**, for the threshold and for at least
//!   [`MAX_BATCH_DURATION`], and for longer than the worker's last batches. [`MAX_BATCH_DURATION`]
//!   is the longest time that 61 polls of one task can take without a stall. A stack identifies the
//!   poll by the frames outside of the task's own code and by their contents, above all the task's
//!   address. This distinguishes tasks, but not two polls of one task. Samples are taken at
//!   irregular times, so that alternating tasks are not mistaken for one. Time in which the thread
//!   waited for a core is not counted.
//!
//! A sample costs 0.1 to 0.5 ms, so the whole search is limited by a CPU budget
//! (`search_budget.rs`). Samples based on a mere hint are taken only while the budget exceeds a
//! reserve. Suspicions with evidence may use the reserve: a thread that sleeps, a thread seen twice
//! in the same poll, a worker without progress for longer than its batches usually take.
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

mod tracked_thread;
mod worker_threads;

use std::time::Duration;

use crate::base::Moment;
use crate::model::WorkerProgress;
use crate::stalls::recorded_polls::{CHECK_INTERVAL, IDLE_CHECK_INTERVAL};
use crate::stalls::search_budget::SearchBudget;
use crate::stalls::workers::{BUSY_CHECK_INTERVAL, WorkerState, WorkerStates};
use tracked_thread::TrackedThread;
pub(crate) use worker_threads::WorkerThread;
use worker_threads::WorkerThreads;

/// Longest time between two counter updates of a worker without a stall: 61 polls of 5 ms, plus a
/// margin.
const MAX_BATCH_DURATION: Duration = Duration::from_millis(310);

/// Minimum time between two searches over all running threads.
const SEARCH_INTERVAL: Duration = Duration::from_millis(20);

/// Maximum number of threads followed at once.
pub(crate) const MAX_TRACKED_THREADS: usize = 64;

/// The request for one sampling round.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct PollStackRequest {
    /// Threads whose current stack is needed.
    pub(crate) tracked: Vec<u32>,
    /// Sleeping threads whose stack is needed.
    pub(crate) sleeping: Vec<SleepingWorker>,
    /// Running threads without a known poll whose stack is needed.
    pub(crate) search: Vec<u32>,
    /// `true` if threads of other workers are searched for by thread name.
    pub(crate) search_by_name: bool,
}

/// A thread that has used no CPU for a while.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SleepingWorker {
    pub(crate) tid: u32,
    pub(crate) cpu_time: Duration,
    pub(crate) asleep_since: Moment,
}

/// Result of a sampling round for one thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct PollSample {
    pub(crate) tid: u32,
    /// Hash of the poll that the thread is in. `None` if the thread is no worker or in no poll.
    pub(crate) poll_hash: Option<u64>,
    /// `true` if the thread is in a worker's loop, or if that is unknown.
    pub(crate) is_worker: bool,
    /// Time since which the thread has slept. `None` if that is not certain.
    pub(crate) asleep_since: Option<Moment>,
    /// Total run delay of the thread since its start.
    pub(crate) run_delay: Duration,
}

/// A poll that has lasted too long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct SuspectedStall {
    pub(crate) tid: u32,
    /// Time at which the poll was first seen.
    pub(crate) first_seen: Moment,
    pub(crate) duration: Duration,
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
    threads: WorkerThreads,
    tracked: Vec<TrackedThread>,
    /// Earliest time of the next search over all running threads.
    next_search: Option<Moment>,
    budget: SearchBudget,
}

/// Suspected stalls that need a closer inspection of their threads' stacks.
#[derive(Debug)]
pub(crate) struct StallSuspects {
    pub(crate) suspects: Vec<SuspectedStall>,
    /// Maximum number of them that can be stalled.
    max_stalled: usize,
}

impl UnrecordedPollDetector {
    pub(crate) fn new(threshold: Duration) -> Self {
        Self {
            threshold,
            workers: WorkerStates::new(threshold),
            threads: WorkerThreads::default(),
            tracked: Vec::new(),
            next_search: None,
            budget: SearchBudget::new(),
        }
    }

    /// Charges the CPU time of a check, or of other work for the search.
    pub(crate) fn charge(&mut self, cost: Duration, is_check: bool) {
        if is_check { self.budget.charge_check(cost) } else { self.budget.charge(cost) }
    }

    /// Restarts all measurements at `now`, up to which the process was stopped.
    pub(crate) fn restart_measurements(&mut self, now: Moment) {
        self.workers.restart_measurements(now);
        self.threads.restart_measurements(now);
        self.tracked.retain(|thread| thread.reported);
    }

    /// Updates the state from the counters of the workers and the CPU time of their threads at
    /// `now`. Returns the sampling round to run, if any, and the time until the next check.
    pub(crate) fn check(
        &mut self,
        now: Moment,
        progress: &[WorkerProgress],
        threads: &[WorkerThread],
    ) -> (Option<PollStackRequest>, Duration) {
        self.budget.refill(now);
        let interval = self.workers.update(now, progress);
        self.threads.update(now, threads);
        for thread in &mut self.tracked {
            thread.update(self.threads.cpu_time(thread.tid));
        }
        let stuck = self.workers.without_progress(now).count();
        let min_interval = self.budget.min_check_interval().min(Duration::from_millis(500));
        if stuck == 0 {
            self.tracked.clear();
            return (None, spread(interval, now).max(min_interval));
        }
        let is_complete = self.threads.len() == progress.len();
        let (sleeping, still_due) = self.sleeping_threads(now, is_complete);
        let is_late = self.workers.without_progress(now).any(|worker| worker.is_late(now));
        let may_follow_hints = self.budget.exceeds_reserve() || (is_late && self.budget.has_any());

        let reported = self.tracked.iter().filter(|thread| thread.reported).count();
        let recorded = self.threads.in_recorded_polls();
        let explained = self.tracked.iter().filter(|thread| !thread.dismissed).count()
            + if is_complete { recorded } else { 0 };
        let may_search =
            stuck > explained && may_follow_hints && self.next_search.is_none_or(|at| now >= at);
        let is_tracked = |tid: &u32| self.tracked.iter().any(|tracked| tracked.tid == *tid);
        let running = self.threads.running(now).filter(|tid| may_search && !is_tracked(tid));
        let search: Vec<u32> = running.collect();
        let search_by_name = may_search && !is_complete;
        let should_sample = |thread: &&TrackedThread| {
            let sampled =
                if thread.same_samples > 1 { self.budget.has_any() } else { may_follow_hints };
            thread.has_run
                && now >= thread.next_sample
                && if thread.is_undecided() { sampled } else { self.budget.exceeds_reserve() }
        };
        let tracked: Vec<u32> =
            self.tracked.iter().filter(should_sample).map(|it| it.tid).collect();

        let sampled = self.tracked.iter().filter(|thread| thread.is_undecided() && thread.has_run);
        let mut next =
            spread(if stuck > reported { BUSY_CHECK_INTERVAL } else { IDLE_CHECK_INTERVAL }, now);
        for due in sampled.map(|thread| thread.next_sample).chain(still_due) {
            next = next.min(due.since(now));
        }
        let next = next.clamp(CHECK_INTERVAL, self.threshold.max(CHECK_INTERVAL)).max(min_interval);
        let request = PollStackRequest { tracked, sleeping, search, search_by_name };
        ((request != PollStackRequest::default()).then_some(request), next)
    }

    /// Returns the threads that have slept for the threshold and may be in a poll, and the time at
    /// which the next thread reaches the threshold.
    fn sleeping_threads(
        &self,
        now: Moment,
        is_complete: bool,
    ) -> (Vec<SleepingWorker>, Option<Moment>) {
        // All threads are known, and at most as many sleep as workers were parked all the time. So
        // the sleeping threads are the parked workers.
        if is_complete && self.threads.sleeping(now).count() <= self.workers.parked_count() {
            return (Vec::new(), None);
        }
        let is_decided = |tid: u32| {
            let mut tracked = self.tracked.iter().filter(|tracked| tracked.tid == tid);
            tracked.any(|tracked| !tracked.is_undecided() && !tracked.has_run)
        };
        let open = self
            .threads
            .sleeping(now)
            .filter(|(tid, thread)| !thread.is_parked() && !is_decided(*tid));
        let mut sleeping = Vec::new();
        let mut due = None::<Moment>;
        for (tid, thread) in open {
            let at = thread.unchanged_since + self.threshold;
            if now < at {
                due = Some(due.map_or(at, |due| due.min(at)));
            } else if self.budget.has_any() {
                sleeping.push(SleepingWorker {
                    tid,
                    cpu_time: thread.cpu_time,
                    asleep_since: thread.unchanged_since,
                });
            }
        }
        sleeping.sort_unstable_by_key(|sleeping| sleeping.asleep_since);
        sleeping.truncate(MAX_TRACKED_THREADS / 4);
        (sleeping, due)
    }

    /// Evaluates at `now` the samples of a round that started at `sampled_at`. [`Self::check`] must
    /// have been called before.
    pub(crate) fn ingest(
        &mut self,
        now: Moment,
        sampled_at: Moment,
        samples: &[PollSample],
        searched: bool,
    ) -> Option<StallSuspects> {
        if searched {
            self.next_search = Some(now + jittered(SEARCH_INTERVAL, now));
        }
        for sample in samples {
            self.ingest_sample(now, sample);
        }
        let stuck: Vec<&WorkerState> = self.workers.without_progress(now).collect();
        let reported = self.tracked.iter().filter(|thread| thread.reported).count();
        let max_stalled = stuck.len().saturating_sub(reported);
        let exceeds_batch = stuck.iter().any(|worker| {
            now.since(worker.unchanged_since) >= MAX_BATCH_DURATION && worker.is_late(now)
        });
        let worker = match stuck[..] {
            [only] => Some(only.progress.worker),
            _ => None,
        };
        let certain = self.tracked.iter().filter(|thread| {
            thread.has_slept(sampled_at, self.threshold)
                || (exceeds_batch && thread.has_computed(sampled_at, self.threshold))
        });
        let certain = certain.filter(|thread| thread.is_undecided());
        let suspects = certain.map(|thread| SuspectedStall {
            tid: thread.tid,
            first_seen: thread.first_seen,
            duration: sampled_at.since(thread.first_seen),
            worker: self.workers.driven_by(thread.tid).or(worker),
            is_driver: self.workers.driven_by(thread.tid).is_some(),
        });
        let suspects: Vec<SuspectedStall> = suspects.collect();
        (max_stalled > 0 && !suspects.is_empty()).then_some(StallSuspects { suspects, max_stalled })
    }

    /// Applies the result of inspecting the suspects: `is_stalled` returns `true` for a thread that
    /// is stalled. Returns the stalls to report.
    pub(crate) fn confirm(
        &mut self,
        candidates: StallSuspects,
        is_stalled: impl Fn(u32) -> bool,
    ) -> Vec<SuspectedStall> {
        let StallSuspects { mut suspects, max_stalled } = candidates;
        let inspected: Vec<u32> = suspects.iter().map(|suspect| suspect.tid).collect();
        suspects.retain(|suspect| is_stalled(suspect.tid));
        if suspects.len() > max_stalled {
            suspects.clear();
        }
        for thread in self.tracked.iter_mut().filter(|thread| inspected.contains(&thread.tid)) {
            thread.decide(suspects.iter().any(|suspect| suspect.tid == thread.tid));
        }
        suspects
    }

    /// Returns the start of the oldest reported poll that is still in progress.
    pub(crate) fn oldest_reported(&self) -> Option<Moment> {
        self.tracked.iter().filter(|thread| thread.reported).map(|thread| thread.first_seen).min()
    }

    fn ingest_sample(&mut self, now: Moment, sample: &PollSample) {
        let Some(poll_hash) = sample.poll_hash else {
            self.tracked.retain(|thread| thread.tid != sample.tid);
            self.threads.mark_parked(sample.tid);
            if !sample.is_worker {
                self.workers.dismiss(sample.tid, now);
            }
            return;
        };
        if let Some(thread) = self.tracked.iter_mut().find(|thread| thread.tid == sample.tid) {
            if thread.poll_hash == poll_hash {
                thread.add_sample(now, sample);
            } else {
                *thread = TrackedThread::new(now, poll_hash, sample);
            }
        } else if self.tracked.len() < MAX_TRACKED_THREADS {
            self.tracked.push(TrackedThread::new(now, poll_hash, sample));
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
    (time * 3 / 4 + time * mixed as u32 / 512).max(CHECK_INTERVAL)
}

#[cfg(test)]
mod tests;
