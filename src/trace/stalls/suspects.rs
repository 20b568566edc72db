//! Suspected stalls, where polls are not recorded: without a clock, a runtime or a thread.
//!
//! ```text
//! look   a worker that is not parked counts no further             -> it stands still
//! look   a worker's thread has used no CPU for the threshold, and
//!        no parked worker explains it                              -> its stack: in a poll? then reported
//! round  threads that compute: the same poll whenever sampled      -> reported, once that is certain
//! ```
//!
//! A worker updates its counters every 61 polls, so that standing still is no more than a hint: at 10 ms a poll it
//! updates them every 600 ms. There are two kinds of evidence, and the cheap one comes first:
//!
//! - **It slept.** A thread that used no CPU between two looks was in one poll all the time. Its CPU clock costs
//!   0.3 us and disturbs nobody. Its stack is read once, after the threshold, to tell a poll from a parked worker.
//! - **The same task in every sample**, for the threshold and for [`BATCH`] at least: the longest that 61
//!   polls of one task may take that are no stalls, or what the worker's last batches took. A stack shows the
//!   poll by its frames outside of the task's own code and what is in them, the task's address above all. That
//!   tells tasks apart, but not two polls of one task; samples come at irregular times, so that tasks in turn are
//!   not taken for one. Time it waited for a core is not counted.
//!
//! A sample costs 0.1 to 0.5 ms, so all of this is held to a budget of CPU time (`budget.rs`). Samples on no more than
//! a hint are taken while more than a reserve is left; suspicions that have evidence use the rest: a thread that sleeps, one
//! that was in the same poll twice, a worker that stands still for longer than its batches did.
//!
//! So some stalls are missed: one that blocks for less than the time between two looks above the threshold, which is found
//! later if it recurs; one that computes and is over within 0.4 s, or within a batch of a worker whose batches are
//! long. Polls of equal length that compute are reported the first time and then taken for such batches: nothing
//! tells one poll of 400 ms from 40 polls of 10 ms of the same task.
//!
//! Threads are not known by their workers. When more of them look stuck than workers stand still, some hold up
//! nobody, and none is told. One whose stack shows that it left its worker to another (`block_in_place`) is
//! acquitted.

use std::collections::BTreeMap;
use std::time::Duration;

use super::budget::Budget;
use super::overdue::{PERIOD, REST};
use super::workers::{BUSY, Worker, Workers};
use crate::base::Moment;
use crate::model::Beat;

/// What a worker may do without telling: 61 polls of 5 ms, and a little.
const BATCH: Duration = Duration::from_millis(310);

/// The samples of a thread that computes before it is certain. Of two tasks in turn, one is seen eight times in a row
/// once in 128 times, and 11 ms apart on average (that is, over [`BATCH`]) about never.
const SAMES: u32 = 8;

/// Between two samples of a thread that computes, and up to twice as much: [`SAMES`] of them in [`BATCH`].
const SAMPLE: Duration = Duration::from_millis(25);

/// The same of one whose stall was reported, to find out when it is over.
const SAMPLE_REPORTED: Duration = Duration::from_millis(150);

/// The shortest between two searches among threads.
const PAUSE: Duration = Duration::from_millis(20);

/// What a thread uses that sleeps and answers a signal, at most.
const ANSWER: Duration = Duration::from_micros(50);

/// The threads that are followed at once.
pub(crate) const MAX_FOLLOWED: usize = 64;

/// What a round is to find out.
#[derive(Clone, Debug, Default, PartialEq)]
pub(crate) struct Ask {
    /// Where these threads are by now.
    pub(crate) follow: Vec<u32>,
    /// Where these threads sleep.
    pub(crate) still: Vec<Still>,
    /// Where these threads are, of which nothing is known but that they run.
    pub(crate) search: Vec<u32>,
    /// Whether other workers' threads are to be searched for by their names.
    pub(crate) names: bool,
}

/// A thread that has used no CPU for a while.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Still {
    pub(crate) tid: u32,
    pub(crate) cpu: Duration,
    pub(crate) since: Moment,
}

/// What a look sees of a worker's thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct WorkerThread {
    pub(crate) tid: u32,
    /// The CPU time it has used.
    pub(crate) cpu: Duration,
    /// Whether it is in a poll that is recorded.
    pub(crate) recorded: bool,
}

/// What a round says of a thread.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Sample {
    pub(crate) tid: u32,
    /// The poll that it is in, if it is a worker in one.
    pub(crate) poll: Option<u64>,
    /// Whether it is in a worker's loop, or that is not known.
    pub(crate) is_worker: bool,
    /// Since when it has slept, if that is certain.
    pub(crate) still: Option<Moment>,
    /// How long it has waited for a core in all its life.
    pub(crate) waited: Duration,
}

/// A poll that has lasted for too long.
#[derive(Clone, Copy, Debug, PartialEq)]
pub(crate) struct Suspicion {
    pub(crate) tid: u32,
    /// When it was first seen.
    pub(crate) since: Moment,
    pub(crate) lasted: Duration,
    /// Whose it is, where that is certain.
    pub(crate) worker: Option<(u64, u32)>,
    /// Whether the thread drives a runtime of one thread.
    pub(crate) is_driver: bool,
}

/// What is known of workers and threads.
#[derive(Debug)]
pub(crate) struct Suspects {
    threshold: Duration,
    workers: Workers,
    threads: BTreeMap<u32, Thread>,
    followed: Vec<Followed>,
    /// When threads may be searched next.
    next_search: Option<Moment>,
    budget: Budget,
}

/// A worker's thread.
#[derive(Debug)]
struct Thread {
    cpu: Duration,
    /// Since when it has used that.
    since: Moment,
    recorded: bool,
    /// It was found parked, and sleeps since then.
    parked: Baseline,
}

/// The CPU time of a thread after it has answered. It is not known before the look after that.
#[derive(Clone, Copy, Debug, PartialEq)]
enum Baseline {
    Unset,
    Pending,
    At(Duration),
}

impl Baseline {
    /// Takes the CPU time of a look. Returns whether the thread has run since it answered.
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
struct Followed {
    tid: u32,
    poll: u64,
    since: Moment,
    /// When it was last seen to run.
    ran: Moment,
    /// Whether it had slept when it was last looked at.
    slept: bool,
    /// How often it was seen in this poll.
    sames: u32,
    /// When it is to be sampled again.
    next: Moment,
    answered: Baseline,
    /// Whether it has run since it answered.
    has_run: bool,
    /// How long it had waited for a core when it was first seen there, and when it last was.
    waited: (Duration, Duration),
    told: bool,
    /// Holds up nobody, or that is not known.
    acquitted: bool,
}

/// Threads to be looked at closely.
#[derive(Debug)]
pub(crate) struct Verdict {
    pub(crate) suspicions: Vec<Suspicion>,
    /// How many of them may be stuck.
    most: usize,
}

impl Followed {
    fn is_open(&self) -> bool {
        !self.told && !self.acquitted
    }
}

impl Suspects {
    pub(crate) fn new(threshold: Duration) -> Self {
        Self {
            threshold,
            workers: Workers::new(threshold),
            threads: BTreeMap::new(),
            followed: Vec::new(),
            next_search: None,
            budget: Budget::new(),
        }
    }

    /// Charges the CPU time of a look, or of anything else that was done for the search.
    pub(crate) fn charge(&mut self, cost: Duration, is_look: bool) {
        if is_look { self.budget.charge_look(cost) } else { self.budget.charge(cost) }
    }

    /// The process stood still until `now`: nobody could get on before that.
    pub(crate) fn stood_still(&mut self, now: Moment) {
        self.workers.stood_still(now);
        self.threads.values_mut().for_each(|thread| thread.since = now);
        self.followed.retain(|thread| thread.told);
    }

    /// Takes what workers tell at `now` and what their threads have used; gives what to ask threads, and how long until
    /// the next look.
    pub(crate) fn look(
        &mut self,
        now: Moment,
        beats: &[Beat],
        threads: &[WorkerThread],
    ) -> (Option<Ask>, Duration) {
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
        let may_ask = |thread: &&Followed| {
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
        let ask = Ask { follow, still, search, names };
        ((ask != Ask::default()).then_some(ask), next)
    }

    /// Takes what threads have used by `now`.
    fn note(&mut self, now: Moment, threads: &[WorkerThread]) {
        self.threads.retain(|tid, _| threads.iter().any(|thread| thread.tid == *tid));
        for &WorkerThread { tid, cpu, recorded } in threads {
            let fresh = Thread { cpu, since: now, recorded, parked: Baseline::Unset };
            let known = self.threads.entry(tid).or_insert(fresh);
            if known.cpu != cpu {
                (known.cpu, known.since) = (cpu, now);
            }
            known.recorded = recorded;
            if known.parked.has_run(cpu) {
                known.parked = Baseline::Unset;
            }
        }
        for thread in &mut self.followed {
            // One that is no known worker's is taken to run.
            let known = self.threads.get(&thread.tid);
            thread.has_run = known.is_none_or(|known| thread.answered.has_run(known.cpu));
        }
    }

    /// The threads that have slept for the threshold and may be in a poll, and when the next will have.
    fn sleepers(&self, now: Moment, is_complete: bool) -> (Vec<Still>, Option<Moment>) {
        let sleeps = |thread: &&Thread| thread.since < now && !thread.recorded;
        // As many as workers were parked all the time, and each thread is known: those are they.
        if is_complete && self.threads.values().filter(sleeps).count() <= self.workers.asleep() {
            return (Vec::new(), None);
        }
        let open = self.threads.iter().filter(|(tid, thread)| {
            sleeps(thread)
                && thread.parked == Baseline::Unset
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

    /// Takes what a round that was begun at `asked` has said by `now`. Call [`Self::look`] before.
    pub(crate) fn hear(
        &mut self,
        now: Moment,
        asked: Moment,
        samples: &[Sample],
        searched: bool,
    ) -> Option<Verdict> {
        if searched {
            self.next_search = Some(now + jittered(PAUSE, now));
        }
        for sample in samples {
            self.take(now, sample);
        }
        let standing: Vec<&Worker> = self.workers.standing(now).collect();
        let told = self.followed.iter().filter(|thread| thread.told).count();
        let most = standing.len().saturating_sub(told);
        let whole_batch =
            standing.iter().any(|worker| now.since(worker.since) >= BATCH && worker.is_late(now));
        let worker = match standing[..] {
            [only] => Some(only.beat.worker),
            _ => None,
        };
        let is_certain = |thread: &&Followed| {
            let slept = thread.slept && asked.since(thread.ran) >= self.threshold;
            let waited = thread.waited.1.saturating_sub(thread.waited.0);
            let own = asked.since(thread.since).saturating_sub(waited);
            let same = whole_batch && thread.sames >= SAMES && own >= self.threshold.max(BATCH);
            thread.is_open() && (slept || same)
        };
        let suspicions = self.followed.iter().filter(is_certain).map(|thread| Suspicion {
            tid: thread.tid,
            since: thread.since,
            lasted: asked.since(thread.since),
            worker: self.workers.driven_by(thread.tid).or(worker),
            is_driver: self.workers.driven_by(thread.tid).is_some(),
        });
        let suspicions: Vec<Suspicion> = suspicions.collect();
        (most > 0 && !suspicions.is_empty()).then_some(Verdict { suspicions, most })
    }

    /// Takes which of the threads are stuck, looked at closely; gives those to be told.
    pub(crate) fn settle(
        &mut self,
        verdict: Verdict,
        is_stuck: impl Fn(u32) -> bool,
    ) -> Vec<Suspicion> {
        let Verdict { mut suspicions, most } = verdict;
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

    /// Since when the oldest poll that was told goes on.
    pub(crate) fn oldest(&self) -> Option<Moment> {
        self.followed.iter().filter(|thread| thread.told).map(|thread| thread.since).min()
    }

    fn take(&mut self, now: Moment, sample: &Sample) {
        let known = self.followed.iter_mut().find(|thread| thread.tid == sample.tid);
        let Some(poll) = sample.poll else {
            self.followed.retain(|thread| thread.tid != sample.tid);
            if let Some(thread) = self.threads.get_mut(&sample.tid) {
                thread.parked = Baseline::Pending;
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
            thread.answered = Baseline::Pending;
            thread.waited.1 = sample.waited;
            return;
        }
        let fresh = Followed {
            tid: sample.tid,
            poll,
            since,
            ran: since,
            slept: sample.still.is_some(),
            sames: 1,
            next,
            answered: Baseline::Pending,
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

/// Between `time` and twice that. Tasks that take turns at a worker do so at a steady rate, which samples at a steady rate
/// would follow.
fn jittered(time: Duration, now: Moment) -> Duration {
    let mixed = now.as_nanos().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
    time + time * mixed as u32 / 256
}

/// `time` on average, between three and five quarters of it. Polls that recur at equal length and distance would meet looks
/// at a steady rate at the same place each time, and each of them would be missed or none.
fn spread(time: Duration, now: Moment) -> Duration {
    let mixed = now.as_nanos().wrapping_mul(0x9e37_79b9_7f4a_7c15) >> 56;
    (time * 3 / 4 + time * mixed as u32 / 512).max(PERIOD)
}

#[cfg(test)]
mod tests;
