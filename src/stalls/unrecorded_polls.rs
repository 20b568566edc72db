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

use std::collections::BTreeMap;
use std::time::Duration;

use crate::base::Moment;
use crate::model::WorkerProgress;
use crate::stalls::recorded_polls::{CHECK_INTERVAL, IDLE_CHECK_INTERVAL};
use crate::stalls::search_budget::SearchBudget;
use crate::stalls::workers::{BUSY_CHECK_INTERVAL, WorkerState, WorkerStates};

/// Longest time between two counter updates of a worker without a stall: 61 polls of 5 ms, plus a
/// margin.
const MAX_BATCH_DURATION: Duration = Duration::from_millis(310);

/// Samples in the same poll that are required before a computing thread is reported. If two tasks
/// alternate, one of them is in eight consecutive samples once in 128 times (`2 * 2^-8`). With
/// tasks 11 ms apart on average, over [`MAX_BATCH_DURATION`], this almost never happens.
const MIN_SAME_SAMPLES: u32 = 8;

/// Minimum time between two samples of a computing thread; at most twice as long. On average
/// [`MIN_SAME_SAMPLES`] of them fit into [`MAX_BATCH_DURATION`].
const SAMPLE_INTERVAL: Duration = Duration::from_millis(25);

/// The same for a thread whose stall was reported, to find the end of the stall.
const REPORTED_SAMPLE_INTERVAL: Duration = Duration::from_millis(150);

/// Minimum time between two searches over all running threads.
const SEARCH_INTERVAL: Duration = Duration::from_millis(20);

/// Maximum CPU time that a sleeping thread uses to answer one signal.
const MAX_HANDLER_CPU_TIME: Duration = Duration::from_micros(50);

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

/// State of a worker's thread at a check.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkerThread {
    pub(crate) tid: u32,
    /// CPU time used so far.
    pub(crate) cpu_time: Duration,
    /// `true` if the thread is in a recorded poll.
    pub(crate) in_recorded_poll: bool,
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
    threads: BTreeMap<u32, WorkerThreadState>,
    tracked: Vec<TrackedThread>,
    /// Earliest time of the next search over all running threads.
    next_search: Option<Moment>,
    budget: SearchBudget,
}

/// A worker's thread.
#[derive(Debug)]
struct WorkerThreadState {
    cpu_time: Duration,
    /// Time since which `cpu` is unchanged.
    unchanged_since: Moment,
    in_recorded_poll: bool,
    /// `Unset` unless the thread was found parked and has slept since then.
    parked_baseline: WorkerBaseline,
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
            Self::At(before) => cpu.saturating_sub(before) > MAX_HANDLER_CPU_TIME,
        }
    }
}

#[derive(Debug)]
struct TrackedThread {
    tid: u32,
    poll_hash: u64,
    first_seen: Moment,
    /// Time at which the thread was last seen running.
    last_ran: Moment,
    /// `true` if the thread had slept at the last sample.
    was_asleep: bool,
    /// Number of samples in this poll.
    same_samples: u32,
    /// Time of the next sample.
    next_sample: Moment,
    signal_baseline: WorkerBaseline,
    /// `true` if the thread has run since it answered.
    has_run: bool,
    /// Run delay of the thread at the first and at the last sample in this poll.
    run_delay: (Duration, Duration),
    reported: bool,
    /// `true` if the thread blocks no worker, or if that is unknown.
    dismissed: bool,
}

/// Suspected stalls that need a closer inspection of their threads' stacks.
#[derive(Debug)]
pub(crate) struct StallSuspects {
    pub(crate) suspects: Vec<SuspectedStall>,
    /// Maximum number of them that can be stalled.
    max_stalled: usize,
}

impl TrackedThread {
    fn is_undecided(&self) -> bool {
        !self.reported && !self.dismissed
    }
}

impl UnrecordedPollDetector {
    pub(crate) fn new(threshold: Duration) -> Self {
        Self {
            threshold,
            workers: WorkerStates::new(threshold),
            threads: BTreeMap::new(),
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
        self.threads.values_mut().for_each(|thread| thread.unchanged_since = now);
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
        self.update_threads(now, threads);
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
        let recorded = self.threads.values().filter(|thread| thread.in_recorded_poll).count();
        let explained = self.tracked.iter().filter(|thread| !thread.dismissed).count()
            + if is_complete { recorded } else { 0 };
        let may_search =
            stuck > explained && may_follow_hints && self.next_search.is_none_or(|at| now >= at);
        let running = self.threads.iter().filter(|(tid, thread)| {
            let is_followed = self.tracked.iter().any(|followed| followed.tid == **tid);
            thread.unchanged_since == now && !thread.in_recorded_poll && !is_followed
        });
        let search: Vec<u32> = running.map(|(&tid, _)| tid).filter(|_| may_search).collect();
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

    /// Updates the CPU times of the workers' threads at `now`.
    fn update_threads(&mut self, now: Moment, threads: &[WorkerThread]) {
        self.threads.retain(|tid, _| threads.iter().any(|thread| thread.tid == *tid));
        for &WorkerThread { tid, cpu_time: cpu, in_recorded_poll: recorded } in threads {
            let fresh = WorkerThreadState {
                cpu_time: cpu,
                unchanged_since: now,
                in_recorded_poll: recorded,
                parked_baseline: WorkerBaseline::Unset,
            };
            let known = self.threads.entry(tid).or_insert(fresh);
            if known.cpu_time != cpu {
                (known.cpu_time, known.unchanged_since) = (cpu, now);
            }
            known.in_recorded_poll = recorded;
            if known.parked_baseline.has_run(cpu) {
                known.parked_baseline = WorkerBaseline::Unset;
            }
        }
        for thread in &mut self.tracked {
            // A thread that belongs to no known worker is assumed to run.
            let known = self.threads.get(&thread.tid);
            thread.has_run =
                known.is_none_or(|known| thread.signal_baseline.has_run(known.cpu_time));
        }
    }

    /// Returns the threads that have slept for the threshold and may be in a poll, and the time at
    /// which the next thread reaches the threshold.
    fn sleeping_threads(
        &self,
        now: Moment,
        is_complete: bool,
    ) -> (Vec<SleepingWorker>, Option<Moment>) {
        let sleeps =
            |thread: &&WorkerThreadState| thread.unchanged_since < now && !thread.in_recorded_poll;
        // All threads are known, and at most as many sleep as workers were parked all the time. So
        // the sleeping threads are the parked workers.
        if is_complete
            && self.threads.values().filter(sleeps).count() <= self.workers.parked_count()
        {
            return (Vec::new(), None);
        }
        let open = self.threads.iter().filter(|(tid, thread)| {
            sleeps(thread)
                && thread.parked_baseline == WorkerBaseline::Unset
                && !self.tracked.iter().any(|tracked| {
                    tracked.tid == **tid && !tracked.is_undecided() && !tracked.has_run
                })
        });
        let (mut sleeping, mut due) = (Vec::new(), None::<Moment>);
        for (&tid, thread) in open {
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
        sleeping.sort_unstable_by_key(|still| still.asleep_since);
        sleeping.truncate(MAX_TRACKED_THREADS / 4);
        (sleeping, due)
    }

    /// Evaluates at `now` the samples of a round that started at `asked`. [`Self::check`] must have
    /// been called before.
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
        let is_certain = |thread: &&TrackedThread| {
            let slept = thread.was_asleep && sampled_at.since(thread.last_ran) >= self.threshold;
            let waited = thread.run_delay.1.saturating_sub(thread.run_delay.0);
            let own = sampled_at.since(thread.first_seen).saturating_sub(waited);
            let same = exceeds_batch
                && thread.same_samples >= MIN_SAME_SAMPLES
                && own >= self.threshold.max(MAX_BATCH_DURATION);
            thread.is_undecided() && (slept || same)
        };
        let suspects = self.tracked.iter().filter(is_certain).map(|thread| SuspectedStall {
            tid: thread.tid,
            first_seen: thread.first_seen,
            duration: sampled_at.since(thread.first_seen),
            worker: self.workers.driven_by(thread.tid).or(worker),
            is_driver: self.workers.driven_by(thread.tid).is_some(),
        });
        let suspects: Vec<SuspectedStall> = suspects.collect();
        (max_stalled > 0 && !suspects.is_empty()).then_some(StallSuspects { suspects, max_stalled })
    }

    /// Applies the result of inspecting the suspects: `is_stuck` returns `true` for a thread that
    /// is stalled. Returns the stalls to report.
    pub(crate) fn confirm(
        &mut self,
        candidates: StallSuspects,
        is_stuck: impl Fn(u32) -> bool,
    ) -> Vec<SuspectedStall> {
        let StallSuspects { suspects: mut suspicions, max_stalled: most } = candidates;
        let inspected: Vec<u32> = suspicions.iter().map(|suspicion| suspicion.tid).collect();
        suspicions.retain(|suspicion| is_stuck(suspicion.tid));
        if suspicions.len() > most {
            suspicions.clear();
        }
        for thread in self.tracked.iter_mut().filter(|thread| inspected.contains(&thread.tid)) {
            thread.reported = suspicions.iter().any(|suspicion| suspicion.tid == thread.tid);
            thread.next_sample = thread.next_sample.max(thread.last_ran + REPORTED_SAMPLE_INTERVAL);
            thread.dismissed = !thread.reported;
        }
        suspicions
    }

    /// Returns the start of the oldest reported poll that is still in progress.
    pub(crate) fn oldest_reported(&self) -> Option<Moment> {
        self.tracked.iter().filter(|thread| thread.reported).map(|thread| thread.first_seen).min()
    }

    fn ingest_sample(&mut self, now: Moment, sample: &PollSample) {
        let known = self.tracked.iter_mut().find(|thread| thread.tid == sample.tid);
        let Some(poll) = sample.poll_hash else {
            self.tracked.retain(|thread| thread.tid != sample.tid);
            if let Some(thread) = self.threads.get_mut(&sample.tid) {
                thread.parked_baseline = WorkerBaseline::Pending;
            }
            if !sample.is_worker {
                self.workers.dismiss(sample.tid, now);
            }
            return;
        };
        let since = sample.asleep_since.unwrap_or(now);
        let next = now + jittered(SAMPLE_INTERVAL, now);
        if let Some(thread) = known
            && thread.poll_hash == poll
        {
            thread.same_samples += 1;
            thread.was_asleep = sample.asleep_since.is_some();
            thread.last_ran = since.max(thread.last_ran);
            thread.next_sample =
                if thread.is_undecided() { next } else { now + REPORTED_SAMPLE_INTERVAL };
            thread.signal_baseline = WorkerBaseline::Pending;
            thread.run_delay.1 = sample.run_delay;
            return;
        }
        let fresh = TrackedThread {
            tid: sample.tid,
            poll_hash: poll,
            first_seen: since,
            last_ran: since,
            was_asleep: sample.asleep_since.is_some(),
            same_samples: 1,
            next_sample: next,
            signal_baseline: WorkerBaseline::Pending,
            has_run: true,
            run_delay: (sample.run_delay, sample.run_delay),
            reported: false,
            dismissed: false,
        };
        match self.tracked.iter().position(|thread| thread.tid == sample.tid) {
            Some(at) => self.tracked[at] = fresh,
            None if self.tracked.len() < MAX_TRACKED_THREADS => self.tracked.push(fresh),
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
    (time * 3 / 4 + time * mixed as u32 / 512).max(CHECK_INTERVAL)
}

#[cfg(test)]
mod tests;
